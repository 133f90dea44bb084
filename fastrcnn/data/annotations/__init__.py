"""Readers of annotations: VOC and COCO."""
