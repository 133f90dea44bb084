"""Postprocessing: convert scores and boxes into detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrcnn.ops import batched_nms
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Detections

DEFAULT = DetectionSettings()


def best_boxes(class_scores: Tensor, boxes: Tensor, settings: DetectionSettings = DEFAULT) -> Detections:
    """Select the detections of one image, best first, from scored boxes.

    class_scores: (K, classes + 1), probabilities or margins, background first.
    boxes: (K, classes + 1, 4), half-open, clipped to the image.
    settings: max_per_class limits the boxes of each class before non-maximum suppression (100 in the author's code).
        max_per_image limits the detections of the image afterwards.
    """
    boxes = boxes[:, 1:]  # (K, classes, 4)
    scores = class_scores[:, 1:]  # (K, classes)
    least, most = settings.score_threshold, settings.max_per_class
    keep = torch.ones_like(scores, dtype=torch.bool) if least is None else scores >= least
    if most is not None and len(scores) > most:
        best = scores.topk(most, dim=0).indices  # (max_per_class, classes)
        keep &= torch.zeros_like(keep).scatter_(0, best, True)
    row, column = torch.nonzero(keep, as_tuple=True)
    boxes, scores, labels = boxes[row, column], scores[row, column], column + 1
    # Drop boxes that were entirely outside the image. They have no area after clipping.
    real = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores, labels = boxes[real], scores[real], labels[real]
    kept = batched_nms(boxes, scores, labels, settings.nms_iou)[: settings.max_per_image]
    return Detections(boxes[kept], scores[kept], labels[kept])


def entering_scores(class_scores: Tensor, max_per_class: int | None) -> Tensor:
    """Return the scores (M, classes), best first, of the boxes of each class that enter non-maximum suppression.

    No score threshold is applied. class_scores: (K, classes + 1), background first. M is the smaller of K and
    `max_per_class`, or K if `max_per_class` is None.
    """
    count = len(class_scores) if max_per_class is None else min(max_per_class, len(class_scores))
    return class_scores[:, 1:].topk(count, dim=0).values


def class_thresholds(entered: Sequence[Tensor], average: int) -> Tensor:
    """Compute the score thresholds (classes,) that the detections in a set of images must exceed.

    entered: the scores (M_i, classes) from `entering_scores` for each of N images. average: mean number of boxes of a
    class to keep per image. The threshold is the (average x N)-th best score of the class, or minus infinity if
    the class has at most average x N scores.

    Applying the threshold after non-maximum suppression gives the same result as applying it before, because a box can
    only be suppressed by a box with a higher score. Source: test_net in the author's lib/fast_rcnn/test.py, which
    finds the threshold with a heap.
    """
    scores = torch.cat(list(entered))
    limit = average * len(entered)
    if len(scores) <= limit:
        return scores.new_full((scores.shape[1],), -torch.inf)
    return scores.topk(limit, dim=0).values[-1]
