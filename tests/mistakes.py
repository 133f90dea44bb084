"""Detections and truth of cats and dogs that hold a case of every kind of mistake, and what makes such cases."""

from __future__ import annotations

import numpy as np

from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth, class_ap
from fastrcnn.report.diagnosis import Diagnosis, diagnose

Box = tuple[float, float, float, float]


def found(*rows: tuple[int, float, Box]) -> ClassDetections:
    boxes = np.array([r[2] for r in rows], float).reshape(-1, 4)
    return ClassDetections(np.array([r[0] for r in rows], int), np.array([r[1] for r in rows], float), boxes)


def truth(*rows: tuple[int, Box, bool]) -> ClassTruth:
    boxes = np.array([r[1] for r in rows], float).reshape(-1, 4)
    return ClassTruth(np.array([r[0] for r in rows], int), boxes, np.array([r[2] for r in rows], bool))


def diagnosed(
    detections: dict[str, ClassDetections],
    objects: dict[str, ClassTruth],
    proposals: dict[str, np.ndarray] | None = None,
) -> dict[str, Diagnosis]:
    curves = {name: class_ap(d, objects[name], "voc10") for name, d in detections.items()}
    return diagnose(detections, objects, curves, proposals)


CATS = truth((0, (0, 0, 10, 10), False), (0, (20, 0, 30, 10), True), (0, (40, 0, 50, 10), False))
DOGS = truth((0, (0, 20, 10, 30), False), (0, (60, 0, 70, 10), False), (0, (80, 0, 90, 10), True))
# Boxes on 10 x 10 objects, so that their height says the IoU.
CASES = [
    ((0, 0.9, (0, 0, 10, 10)), "right", 1.0),
    ((0, 0.8, (0, 0, 10, 9)), "duplicate", 0.9),
    ((0, 0.7, (20, 0, 30, 8)), "left out", 0.8),  # of the difficult cat
    ((0, 0.6, (40, 0, 50, 4)), "localisation", 0.4),
    ((0, 0.5, (0, 20, 10, 30)), "confusion", 1.0),
    ((0, 0.4, (60, 0, 70, 3)), "both", 0.3),
    ((0, 0.3, (0, 60, 10, 70)), "background", 0.0),
    ((0, 0.2, (40, 0, 50, 5)), "localisation", 0.5),  # not above .5
    ((0, 0.1, (40, 0, 50, 1)), "localisation", 0.1),
    ((0, 0.09, (60, 0, 70, 5)), "both", 0.5),
    ((0, 0.08, (60, 0, 70, 0.9)), "background", 0.0),  # IoU .09
    ((0, 0.07, (80, 0, 90, 8)), "confusion", 0.8),  # with a difficult dog
    ((1, 0.06, (0, 0, 10, 10)), "background", 0.0),  # in an image without objects
]
DETECTIONS = {"cat": found(*(case[0] for case in CASES)), "dog": found()}
OBJECTS = {"cat": CATS, "dog": DOGS}
