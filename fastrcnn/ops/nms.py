"""Non-maximum suppression, of all boxes or group by group, by torchvision's kernel.

Registered as torch.ops.fastrcnn.nms, so that torch.compile keeps it in the graph: the number of groups, and of boxes
that stay, follows from the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import torchvision_backend  # noqa: F401  makes torchvision's kernel usable
from .arguments import also_called, check_device, check_tensor, is_int, plain

torch.library.define("fastrcnn::nms", "(Tensor boxes, Tensor scores, Tensor groups, float iou_threshold) -> Tensor")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """`batched_nms` of boxes that are all of one group."""
    _check_boxes(boxes, scores=scores)
    return torch.ops.fastrcnn.nms(boxes, scores, torch.zeros_like(scores), _checked_threshold(iou_threshold))


@also_called(idxs="groups")
def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Indices (M,) int64 of the boxes that stay, best score first.

    boxes (R, 4) half-open x1 y1 x2 y2 in pixels, computed with in float32; scores (R,); groups (R,): boxes of
    different groups never suppress one another. A box goes where its IoU with a better one of its group is at
    least `iou_threshold`, as in Fast R-CNN's code; for torchvision's functions it has to be more than that.

    torchvision's name `idxs` works for `groups`. Raises TypeError or ValueError; the message begins with the name of
    the argument at fault.
    """
    _check_boxes(boxes, scores=scores, groups=groups)
    return torch.ops.fastrcnn.nms(boxes, scores, groups, _checked_threshold(iou_threshold))


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """The operator's kernel: `batched_nms` of arguments that are known to be sound."""
    boxes, scores = boxes.float(), scores.float()
    # The kernel's IoU is float32: more than the float32 below the threshold is exactly at least the threshold.
    threshold = float(np.nextafter(np.float32(iou_threshold), np.float32(-np.inf)))
    order = groups.argsort(stable=True)  # the groups' members side by side: one look for all groups
    sizes = groups[order].unique_consecutive(return_counts=True)[1].tolist()
    parts = (t.split(sizes) for t in (order, boxes[order], scores[order]))
    theirs = torch.ops.torchvision.nms
    kept = [members[theirs(own, own_scores, threshold)] for members, own, own_scores in zip(*parts, strict=True)]
    if not sizes:
        return groups.new_zeros((0,), dtype=torch.int64)
    keep = torch.cat(kept).sort().values  # so that of equal scores the earlier box comes first
    return keep[scores[keep].sort(descending=True, stable=True).indices]


torch.library.impl("fastrcnn::nms", "CompositeExplicitAutograd", suppress)


@torch.library.register_fake("fastrcnn::nms")
def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


def _check_boxes(boxes: Tensor, **each: Tensor) -> None:
    """Raises TypeError or ValueError unless `boxes` is a tensor (R, 4) and each of the others one (R,) beside it."""
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
