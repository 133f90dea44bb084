"""Evaluation of detections and proposals: PASCAL VOC AP, COCO AP, recall, and result files.

Boxes are numpy arrays with half-open coordinates x1 y1 x2 y2 in pixels of the original image.
"""
