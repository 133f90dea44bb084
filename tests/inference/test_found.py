"""What `detect(image)` returns: drawing, saving, and what is worth drawing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastrcnn.errors import UserError
from fastrcnn.evaluation.voc_ap import ClassAP, best_threshold
from fastrcnn.inference.found import Found
from fastrcnn.structures import Detections
from fastrcnn.visualize import draw_detections, worth_drawing


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), classes=("cat", "dog"))


def test_boxes_in_a_better_one_of_their_class_are_not_drawn() -> None:
    found = detections(
        ([0.0, 0.0, 100.0, 100.0], 0.9, 1),
        ([10.0, 10.0, 30.0, 30.0], 0.8, 1),  # within the first
        ([10.0, 10.0, 30.0, 30.0], 0.7, 2),  # of another class
        ([90.0, 0.0, 110.0, 100.0], 0.6, 1),  # half of it within the first
        ([0.0, 0.0, 200.0, 200.0], 0.5, 1),  # around the first
        ([0.0, 0.0, 5.0, 5.0], 0.4, 2),  # below the threshold
    )
    assert worth_drawing(found, 0.5) == [0, 2, 3, 4]
    assert worth_drawing(found, 0.95) == []


def test_found_is_drawn_saved_and_a_dictionary(tmp_path: Path) -> None:
    image = np.full((300, 400, 3), 128, np.uint8)
    plain = detections(([10.0, 20.0, 200.0, 220.0], 0.9, 1), ([50.0, 50.0, 390.0, 290.0], 0.3, 2))
    found = Found(**vars(plain), pixels=lambda: image, draw_threshold=0.4)
    np.testing.assert_array_equal(found.plot(), draw_detections(image, plain, plain.classes, 0.4))
    assert (found.plot(0.2) != found.plot()).any()
    np.testing.assert_array_equal(found.plot(0.95), image)
    saved = cv2.imread(str(found.save(tmp_path / "new.png")))
    np.testing.assert_array_equal(saved[:, :, ::-1], found.plot())
    for name in ("found", "found.txt"):
        with pytest.raises(UserError, match=rf"{name}: the file name must have the suffix of an image format"):
            found.save(tmp_path / name)
    assert {key: value.shape for key, value in found.to_dict().items()} == {
        "boxes": (2, 4),
        "labels": (2,),
        "scores": (2,),
    }
    assert repr(found) == repr(plain)


def curve(positives: int, *scored: tuple[float, bool]) -> ClassAP:
    """The curve of a class whose detections have these scores, and are right or wrong."""
    right = np.cumsum([ok for _, ok in scored])
    scores = np.array([score for score, _ in scored], float)
    precision, nothing = right / np.arange(1, len(scored) + 1), np.zeros(0)
    return ClassAP(None, positives, nothing, precision, right / max(positives, 1), scores, *[nothing] * 4)


def test_the_best_threshold_is_that_of_the_best_f1_of_all_classes() -> None:
    """Of 4 objects the first class has 3. By falling score: right, right, wrong, right, wrong, wrong. F1 after each:
    2/5, 4/6, 4/7, 6/8, 6/9, 6/10."""
    first = curve(3, (0.9, True), (0.7, False), (0.6, True), (0.1, False))
    second = curve(1, (0.8, True), (0.5, False))
    assert best_threshold([first, second]) == 0.55, "halfway from .6 to .5"
    assert best_threshold([second]) == pytest.approx(0.65)
    assert best_threshold([curve(1, (0.8, True))]) == 0.8, "nothing below"
    assert best_threshold([curve(2, (0.9, False))]) is None
    assert best_threshold([curve(2)]) is None
    assert best_threshold([]) is None


def test_detections_of_one_score_are_kept_together() -> None:
    # at .5 two are right and three wrong, whatever their order: F1 4/7; at .9 it is 2/3
    assert best_threshold([curve(2, (0.9, True), (0.5, True), (0.5, False), (0.5, False), (0.5, False))]) == 0.7
