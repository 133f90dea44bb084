"""A trained detector as one file for other places, with a model card beside it (card.py).

An ONNX graph and a program of torch.export run by themselves. Both take and give the same, so that who runs them needs
to scale an image and to suppress duplicates, no more:

    image      (height, width, 3) uint8, RGB, the scaled image
    proposals  (P, 4) float32, half-open x1 y1 x2 y2 in pixels of the original image
    scale      () float64, pixels of `image` per pixel of the original image
    size       (2,) int64, height and width of the original image

    scores     (P, classes + 1) float32, probabilities, or margins of SVMs; background first
    boxes      (P, classes + 1, 4) float32, half-open, in pixels of the image and cut off at its border
"""
