"""Box operations: area, IoU, clipping, and the box regression of R-CNN.

A box consists of four numbers x1, y1, x2, y2 in pixels. It is half-open: x2 and y2 are one past the last pixel, so the
width is x2 - x1. Areas and IoUs equal those of the author's code (Girshick's fast-rcnn repository), in which x2 and y2
are inclusive and the width is x2 - x1 + 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A decoded box is at most 1000 / 16 times as wide and as high as its RoI, so that the exponential cannot overflow with
# an untrained regressor. The author's code does not have this limit, but trained models do not reach it.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def area(boxes: Tensor) -> Tensor:
    """Return the areas (R,) of boxes (R, 4). A box with x2 < x1 or y2 < y1 has area 0.

    The areas are int64 for integer boxes, float64 for float64 boxes, and float32 otherwise.
    """
    boxes = _widen(boxes)
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU (A, B) of each box in `a` (A, 4) with each box in `b` (B, 4). It is 0 if a box has no area.

    The result is float64 if `a` or `b` is float64, and float32 otherwise.
    """
    a, b = _widen(a), _widen(b)
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])  # (A, B, 2)
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    size = (bottom_right - top_left).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1e-12), torch.zeros_like(union))


def _widen(boxes: Tensor) -> Tensor:
    """Convert integer boxes to int64 and half-precision boxes to float32. Areas could overflow in smaller dtypes."""
    if boxes.is_floating_point():
        return boxes if boxes.dtype == torch.float64 else boxes.float()
    return boxes.long()


def clip(boxes: Tensor, height: float | Tensor, width: float | Tensor) -> Tensor:
    """Return boxes (..., 4) clipped to an image of `height` x `width` pixels."""
    width, height = (side.to(boxes) if isinstance(side, Tensor) else side for side in (width, height))
    x = boxes[..., 0::2].clamp(min=0).clamp(max=width)
    y = boxes[..., 1::2].clamp(min=0).clamp(max=height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def encode(rois: Tensor, truth: Tensor) -> Tensor:
    """Return the regression targets (R, 4) that transform `rois` (R, 4) into the ground-truth boxes `truth` (R, 4).

    A target is dx, dy, dw, dh. dx and dy are offsets of the centre in units of the RoI's width and height. dw and dh
    are the logarithms of the new width and height divided by those of the RoI (R-CNN, appendix C).
    """
    size = rois[:, 2:] - rois[:, :2]
    centre = rois[:, :2] + 0.5 * size
    truth_size = truth[:, 2:] - truth[:, :2]
    truth_centre = truth[:, :2] + 0.5 * truth_size
    return torch.cat(((truth_centre - centre) / size, torch.log(truth_size / size)), dim=1)


def decode(rois: Tensor, deltas: Tensor) -> Tensor:
    """Apply K deltas to each of the `rois` (R, 4) and return boxes (R, K, 4). This is the inverse of `encode`.

    deltas: (R, K, 4), not normalised by mean and standard deviation. Larger dw and dh are reduced to MAX_LOG_RATIO.
    """
    size = (rois[:, 2:] - rois[:, :2])[:, None]  # (R, 1, 2)
    centre = rois[:, None, :2] + 0.5 * size
    new_centre = centre + deltas[..., :2] * size
    half = 0.5 * size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_RATIO))
    return torch.cat((new_centre - half, new_centre + half), dim=-1)
