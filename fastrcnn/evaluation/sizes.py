"""AP of small, medium and large objects, by VOC's matching and COCO's areas."""

from __future__ import annotations

import numpy as np

from fastrcnn.evaluation.recall import MEDIUM, SMALL
from fastrcnn.evaluation.voc_ap import ClassAP, ClassDetections, ClassTruth, VocMetric, area

SIZES = {  # square pixels, from and below
    "small": (0.0, float(SMALL)),
    "medium": (float(SMALL), float(MEDIUM)),
    "large": (float(MEDIUM), np.inf),
}


def size_ap(
    detections: ClassDetections, truth: ClassTruth, curve: ClassAP, metric: VocMetric
) -> dict[str, float | None]:
    """AP of a class for the objects of each of SIZES; None where it has none. curve: what class_ap says at IoU .5.

    As in COCO's evaluation an object of another size is like a difficult one: a detection of it does not count, and
    nor does one that fits no object and is itself of another size.
    """
    order = np.argsort(-detections.scores, kind="stable")
    order = order[~curve.ignored[order]]
    matches, correct = curve.matches[order], curve.correct[order]
    areas = _areas(detections.boxes[order])
    object_areas = _areas(truth.boxes)
    areas[matches >= 0] = object_areas[matches[matches >= 0]]
    found: dict[str, float | None] = {}
    for name, (low, high) in SIZES.items():
        positives = np.count_nonzero(~truth.difficult & (object_areas >= low) & (object_areas < high))
        hits = np.cumsum(correct[(areas >= low) & (areas < high)])
        precision = hits / np.arange(1, len(hits) + 1)
        found[name] = area(precision, hits / positives, metric) if positives else None
    return found


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
