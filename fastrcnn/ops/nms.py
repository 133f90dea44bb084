"""Non-maximum suppression, group by group, by torchvision's kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import torchvision_library

torchvision_library.load()


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Indices (M,) int64 of the boxes that stay, best score first.

    boxes (R, 4) half-open x1 y1 x2 y2 in pixels, scores (R,), groups (R,) integer: boxes of different groups
    never suppress one another. A box goes where its IoU with a better one of its group is at least
    `iou_threshold`, as in Fast R-CNN's code; torchvision's kernel asks for more than the threshold, and is
    given the float below it.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: expected the shape (R, 4), got {tuple(boxes.shape)}")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores: expected the shape ({len(boxes)},), got {tuple(scores.shape)}")
    if groups.shape != boxes.shape[:1]:
        raise ValueError(f"groups: expected the shape ({len(boxes)},), got {tuple(groups.shape)}")
    boxes, scores = boxes.float(), scores.float()
    # float32 below a float32: the kernel's IoU is float32, so "more than this" is exactly "at least the
    # threshold".
    threshold = float(np.nextafter(np.float32(iou_threshold), np.float32(-np.inf)))
    order = groups.argsort(stable=True)  # the groups' members side by side: one look for all groups
    sizes = groups[order].unique_consecutive(return_counts=True)[1].tolist()
    parts = (t.split(sizes) for t in (order, boxes[order], scores[order]))
    suppress = torch.ops.torchvision.nms
    kept = [members[suppress(own, own_scores, threshold)] for members, own, own_scores in zip(*parts, strict=True)]
    if not sizes:
        return groups.new_zeros((0,), dtype=torch.int64)
    keep = torch.cat(kept).sort().values  # so that of equal scores the earlier box comes first
    return keep[scores[keep].sort(descending=True, stable=True).indices]
