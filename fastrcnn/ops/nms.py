"""Non-maximum suppression of all boxes together or in groups, with torchvision's kernel.

The operator is registered as torch.ops.fastrcnn.nms, so that torch.compile keeps it in the graph. Otherwise, the graph
would break, because the numbers of groups and of remaining boxes depend on the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import torchvision_backend  # noqa: F401  loads torchvision's kernel
from .arguments import also_called, check_device, check_tensor, is_int, plain

AT_ONCE = 20_000  # maximum number of boxes in one call for several groups; its memory use is quadratic

torch.library.define("fastrcnn::nms", "(Tensor boxes, Tensor scores, Tensor groups, float iou_threshold) -> Tensor")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Apply `batched_nms` to boxes (R, 4) with scores (R,) that are all in one group."""
    _check_boxes(boxes, scores=scores)
    return torch.ops.fastrcnn.nms(boxes, scores, torch.zeros_like(scores), _checked_threshold(iou_threshold))


@also_called(idxs="groups")
def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices (M,) int64 of the boxes that remain, sorted by decreasing score, then by index.

    boxes (R, 4) are half-open x1 y1 x2 y2 in pixels, converted to float32. scores have the shape (R,). groups (R,)
    separate the boxes: boxes of different groups do not suppress each other. A box is removed if its IoU with a
    remaining box of its group that precedes it in this order is at least `iou_threshold`, as in the author's code.
    torchvision's functions remove it only if the IoU is greater than the threshold.

    `idxs` is an alias of `groups`, as in torchvision. Raises TypeError or ValueError if an argument is invalid. The
    message begins with the name of the argument.
    """
    _check_boxes(boxes, scores=scores, groups=groups)
    return torch.ops.fastrcnn.nms(boxes, scores, groups, _checked_threshold(iou_threshold))


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Apply `batched_nms` without checking the arguments. This function implements torch.ops.fastrcnn.nms."""
    boxes, scores = boxes.float(), scores.float()
    # torchvision's kernel tests float32 IoUs for >. With the next smaller float32, this is >= iou_threshold.
    threshold = float(np.nextafter(np.float32(iou_threshold), np.float32(-np.inf)))
    one_call = boxes.is_cuda and len(boxes) <= AT_ONCE
    keep = (together if one_call else one_by_one)(boxes, scores, groups, threshold)
    keep = keep.sort().values  # for equal scores, the earlier box comes first
    return keep[scores[keep].sort(descending=True, stable=True).indices]


def one_by_one(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Return the indices (M,) of the boxes that remain, in any order, with one call of the kernel for each group."""
    order = groups.argsort(stable=True)  # members of a group are adjacent, so one synchronisation finds all groups
    sizes = groups[order].unique_consecutive(return_counts=True)[1].tolist()
    parts = (t.split(sizes) for t in (order, boxes[order], scores[order]))
    theirs = torch.ops.torchvision.nms
    kept = [members[theirs(own, own_scores, threshold)] for members, own, own_scores in zip(*parts, strict=True)]
    return torch.cat(kept) if kept else groups.new_zeros((0,), dtype=torch.int64)


def together(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Return the same indices, in any order, with one call of the kernel for all groups.

    The groups are moved apart, in float64, so that their boxes do not overlap. On a GPU, a call takes longer to start
    than to run. The result can differ from `one_by_one` only if an IoU is within rounding errors of the threshold.
    """
    number = groups.unique(return_inverse=True)[1]
    wide = boxes.double()
    extent = wide.nan_to_num(0.0, 0.0, 0.0).abs().sum(dim=1).amax() * 2 + 1 if len(boxes) else 0.0
    return torch.ops.torchvision.nms(wide + (number * extent)[:, None], scores.double(), threshold)


torch.library.impl("fastrcnn::nms", "CompositeExplicitAutograd", suppress)


@torch.library.register_fake("fastrcnn::nms")
def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


def _check_boxes(boxes: Tensor, **each: Tensor) -> None:
    """Raise TypeError or ValueError unless `boxes` is a tensor (R, 4) and the others are tensors (R,) on its device."""
    for name, value in {"boxes": boxes, **each}.items():
        check_tensor(value, name)
        check_device(value, name, boxes, "boxes")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: expected the shape (R, 4), got {tuple(boxes.shape)}")
    for name, value in each.items():
        if value.shape != boxes.shape[:1]:
            raise ValueError(f"{name}: expected the shape ({len(boxes)},), got {tuple(value.shape)}")


def _checked_threshold(iou_threshold: Any) -> float:
    threshold = plain(iou_threshold)
    if not (isinstance(threshold, float) or is_int(threshold)) or threshold != threshold:
        raise ValueError(f"iou_threshold: expected a number, got {iou_threshold!r}")
    return float(threshold)
