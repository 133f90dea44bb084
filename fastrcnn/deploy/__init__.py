"""A trained detector as one file that runs elsewhere: an ONNX graph, or a program of torch.export.

Both take and give the same, so that who runs them needs to scale a picture and to suppress duplicates, no more:

    image      (height, width, 3) uint8, RGB, the picture scaled
    proposals  (P, 4) float32, half-open x1 y1 x2 y2 in pixels of the picture before it was scaled
    scale      () float64, pixels of `image` per pixel of the picture
    size       (2,) int64, height and width of the picture before it was scaled

    scores     (P, classes + 1) float32, probabilities, or margins of SVMs; background first
    boxes      (P, classes + 1, 4) float32, half-open, in pixels of the picture and cut off at its border
"""
