"""AP by size, by hand."""

from __future__ import annotations

import pytest
from mistakes import found, truth

from fastrcnn.evaluation.recall import size_ap
from fastrcnn.evaluation.voc_ap import class_ap


def test_other_sizes_are_neither_found_nor_missed_nor_false() -> None:
    """A small false box stands before all, and a medium one before the medium object that is found, of two. Areas: 100,
    50 x 50 twice, 96 x 96, which is large, and a small difficult one."""
    objects = truth(
        (0, (200, 0, 210, 10), False),
        (0, (0, 0, 50, 50), False),
        (2, (0, 0, 50, 50), False),
        (1, (0, 0, 96, 96), False),
        (1, (200, 0, 210, 10), True),
    )
    detections = found(
        (1, 0.95, (200, 0, 210, 10)),  # difficult
        (0, 0.9, (300, 0, 310, 10)),  # false
        (1, 0.8, (0, 0, 95, 95)),  # itself of medium size
        (0, 0.7, (200, 0, 210, 10)),
        (0, 0.6, (300, 0, 340, 40)),  # false, medium
        (0, 0.5, (0, 0, 50, 50)),
    )
    sizes = size_ap(detections, objects, class_ap(detections, objects, "voc10"), "voc10")
    assert sizes == {"small": pytest.approx(1 / 2), "medium": pytest.approx(1 / 4), "large": 1.0}


def test_a_size_without_objects_has_no_ap() -> None:
    objects = truth((0, (0, 0, 10, 10), True), (0, (0, 0, 40, 40), False))
    sizes = size_ap(found(), objects, class_ap(found(), objects, "voc07"), "voc07")
    assert sizes == {"small": None, "medium": 0.0, "large": None}
