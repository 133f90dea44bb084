"""Postprocessing: convert scores and boxes to detections."""

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
    settings: max_per_class limits the boxes of a class before suppression (100 in the author's code), max_per_image
        the detections after suppression.
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
    # A box that was entirely outside the image has no area after clipping.
    real = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores, labels = boxes[real], scores[real], labels[real]
    kept = batched_nms(boxes, scores, labels, settings.nms_iou)[: settings.max_per_image]
    return Detections(boxes[kept], scores[kept], labels[kept])


def entering_scores(class_scores: Tensor, max_per_class: int | None) -> Tensor:
    """Return the scores (M, classes), best first, of each class's boxes that enter suppression.

    class_scores: (K, classes + 1), background first. M is K, or `max_per_class` if that is less.
    """
    count = len(class_scores) if max_per_class is None else min(max_per_class, len(class_scores))
    return class_scores[:, 1:].topk(count, dim=0).values


def class_thresholds(entered: Sequence[Tensor], average: int) -> Tensor:
    """Compute a score threshold (classes,) for each class over a set of images; detections must exceed it.

    entered: for each of N images, the scores (M_i, classes) that entered suppression. average: number of boxes of a
    class to keep per image on average. The threshold is the (average x N)-th best score of the class, or minus infinity
    if there are no more scores than that.

    The threshold can be applied after suppression with the same result as before it, because a box can only be
    suppressed by a box with a higher score. Source: test_net in the author's lib/fast_rcnn/test.py, which finds this
    score with a heap.
    """
    scores = torch.cat(list(entered))
    limit = average * len(entered)
    if len(scores) <= limit:
        return scores.new_full((scores.shape[1],), -torch.inf)
    return scores.topk(limit, dim=0).values[-1]
