"""Images to detections."""
