"""How good detections and proposals are: PASCAL VOC AP, COCO AP, recall, and the files they are kept in.

Everything here works on numpy arrays with half-open boxes x1 y1 x2 y2 in the pixels of the original image.
"""
