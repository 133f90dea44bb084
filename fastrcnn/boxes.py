"""Boxes: overlap, clipping, flipping, and the regression code of R-CNN.

A box is four numbers x1, y1, x2, y2 in pixels, half-open: x2 and y2 lie one past the last pixel, so a width is
x2 - x1. In overlaps and areas that equals, number for number, the inclusive "+1" convention of the paper's code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A decoded box is at most 1000 / 16 times the RoI's size, so that an untrained regressor cannot overflow. Not in the
# original; no trained model comes near.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def area(boxes: Tensor) -> Tensor:
    """Areas (R,) of boxes (R, 4); an inverted box has none. Small types are widened: see `iou`."""
    boxes = _widen(boxes)
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (A, B) of every box of `a` (A, 4) with every box of `b` (B, 4); 0 for empty boxes.

    float16 and bfloat16 are computed in float32, integers in int64: the area of 290 x 290 pixels does not fit into
    float16 or int16.
    """
    a, b = _widen(a), _widen(b)
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])  # (A, B, 2)
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    size = (bottom_right - top_left).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1e-12), torch.zeros_like(union))


def _widen(boxes: Tensor) -> Tensor:
    """Boxes in a type that holds their areas."""
    if boxes.is_floating_point():
        return boxes if boxes.dtype == torch.float64 else boxes.float()
    return boxes.long()


def clip(boxes: Tensor, height: float | Tensor, width: float | Tensor) -> Tensor:
    """Boxes (..., 4) cut off at the border of an image of `height` x `width` pixels."""
    x = boxes[..., 0::2].clamp(min=0)
    y = boxes[..., 1::2].clamp(min=0)
    x = torch.minimum(x, torch.as_tensor(width, dtype=boxes.dtype, device=boxes.device))
    y = torch.minimum(y, torch.as_tensor(height, dtype=boxes.dtype, device=boxes.device))
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def encode(rois: Tensor, truth: Tensor) -> Tensor:
    """Regression targets (R, 4) = dx, dy, dw, dh that take `rois` (R, 4) to `truth` (R, 4).

    Offsets of the centres in units of the RoI's size, and log ratios of the sizes (R-CNN, appendix C;
    Fast R-CNN, section 2.3).
    """
    size = rois[:, 2:] - rois[:, :2]
    centre = rois[:, :2] + 0.5 * size
    truth_size = truth[:, 2:] - truth[:, :2]
    truth_centre = truth[:, :2] + 0.5 * truth_size
    return torch.cat(((truth_centre - centre) / size, torch.log(truth_size / size)), dim=1)


def decode(rois: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (R, K, 4) that the regression `deltas` (R, K, 4), not normalised, make of `rois` (R, 4)."""
    size = (rois[:, 2:] - rois[:, :2])[:, None]  # (R, 1, 2)
    centre = rois[:, None, :2] + 0.5 * size
    new_centre = centre + deltas[..., :2] * size
    half = 0.5 * size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_RATIO))
    return torch.cat((new_centre - half, new_centre + half), dim=-1)
