"""COCO's small, medium and large objects, and their AP by VOC's matching."""

from __future__ import annotations

import numpy as np

from fastrcnn.evaluation.voc_ap import ClassAP, ClassDetections, ClassTruth, VocMetric, box_sizes, ranked_ap

SIZES = {  # areas in square pixels, from and below
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, np.inf),
}


def by_size(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Of each size, which of the areas (N,) are of it (N,)."""
    return {name: (areas >= low) & (areas < high) for name, (low, high) in SIZES.items()}


def size_ap(
    detections: ClassDetections, truth: ClassTruth, curve: ClassAP, metric: VocMetric
) -> dict[str, float | None]:
    """AP of a class for the objects of each of SIZES; None where it has none. curve: what class_ap says at IoU .5.

    As in COCO's evaluation an object of another size is like a difficult one: a detection of it does not count, and
    nor does one that fits no object and is itself of another size.
    """
    matches, correct = curve.matches[curve.order], curve.correct[curve.order]
    areas = box_sizes(detections.boxes[curve.order]).prod(axis=1)
    object_areas = box_sizes(truth.boxes).prod(axis=1)
    areas[matches >= 0] = object_areas[matches[matches >= 0]]
    ranked = by_size(areas)
    found: dict[str, float | None] = {}
    for name, objects in by_size(object_areas).items():
        positives = int(np.count_nonzero(~truth.difficult & objects))
        found[name] = ranked_ap(correct[ranked[name]], positives, metric) if positives else None
    return found
