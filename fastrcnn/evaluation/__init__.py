"""Evaluation of detections and proposals: PASCAL VOC AP, COCO AP, recall, and result files.

All functions use numpy arrays with half-open boxes x1 y1 x2 y2 in pixels of the original image.
"""
