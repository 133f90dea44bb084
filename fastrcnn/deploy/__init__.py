"""Export of a trained detector to a single file, with a model card next to it (card.py).

An ONNX graph or a torch.export program contains the entire network. The caller has to resize the image, and to apply
the score threshold and non-maximum suppression.

Inputs:

    image      (height, width, 3) uint8, RGB, the scaled image
    proposals  (P, 4) float32, half-open x1 y1 x2 y2 in pixels of the original image
    scale      () float64, pixels of `image` per pixel of the original image
    size       (2,) int64, height and width of the original image

Outputs:

    scores     (P, classes + 1) float32, probabilities or SVM margins; background first
    boxes      (P, classes + 1, 4) float32, half-open, in pixels of the original image and clipped to its border
"""
