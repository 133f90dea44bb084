"""From the network's outputs to detections."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.ops import batched_nms
from fastrcnn.structures import Detections


def postprocess(
    probabilities: Tensor,
    deltas: Tensor,
    rois: Tensor,
    height: int,
    width: int,
    score_threshold: float = 0.05,
    nms_iou: float = 0.3,
    max_per_class: int | None = None,
    max_per_image: int | None = 100,
) -> Detections:
    """Objects in one image, best first.

    probabilities: (K, classes + 1) after softmax; deltas: (K, classes + 1, 4), not normalised any more;
    rois: (K, 4) half-open pixels of the image, whose size is `height` x `width`.
    score_threshold: detections below it are dropped; 0 keeps all.
    nms_iou: within a class, a box that overlaps a better one by this much or more is dropped.
    max_per_class: boxes of a class that enter the suppression, the best ones (100 in the author's test code).
    max_per_image: detections that leave it.
    """
    boxes = box_ops.clip(box_ops.decode(rois, deltas), height, width)[:, 1:]  # (K, classes, 4)
    scores = probabilities[:, 1:]  # (K, classes)
    keep = scores >= score_threshold
    if max_per_class is not None and len(scores) > max_per_class:
        best = scores.topk(max_per_class, dim=0).indices  # (max_per_class, classes)
        keep &= torch.zeros_like(keep).scatter_(0, best, True)
    # A box pushed out of the image has no area and is no detection.
    keep &= (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    row, column = torch.nonzero(keep, as_tuple=True)
    boxes, scores, labels = boxes[row, column], scores[row, column], column + 1
    kept = batched_nms(boxes, scores, labels, nms_iou)[:max_per_image]
    return Detections(boxes[kept], scores[kept], labels[kept])
