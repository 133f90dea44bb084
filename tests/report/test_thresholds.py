"""Counts above thresholds, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from mistakes import DETECTIONS, OBJECTS, diagnosed, found, truth

from fastrcnn.report import diagnosis
from fastrcnn.report.diagnosis import FALSE_KINDS, at_thresholds, threshold_values


def above(counts: np.ndarray, at: float) -> list:
    """Counts (..., 50) of scores of at least `at`, where thresholds are 0, .02, ..., .98."""
    return counts[..., round(at * 50) :].sum(axis=-1).tolist()


def test_counts_at_a_threshold_by_hand() -> None:
    t = at_thresholds(["cat", "dog"], DETECTIONS, diagnosed(DETECTIONS, OBJECTS))
    assert list(FALSE_KINDS) == ["duplicate", "confusion", "localisation", "both", "background"]
    assert above(t.right, 0.5) == [1, 0]
    assert above(t.false[0], 0.5) == [1, 1, 1, 0, 0]  # a score of .5 is in, one of .4 is not
    assert above(t.false[0], 0.52) == [1, 0, 1, 0, 0]
    assert above(t.false[0], 0.0) == [1, 2, 3, 2, 3]
    assert above(t.right, 0.92) == [0, 0]
    assert list(t.confusions) == [(1, 0)]  # dogs taken for cats
    assert above(t.confusions[1, 0], 0.5) == 1
    assert above(t.confusions[1, 0], 0.0) == 2


def test_the_best_threshold_is_that_of_the_best_f1() -> None:
    """At .9 one of the four objects is found without a mistake; lower ones add false detections only. Of equal ones the
    lowest: from .82 to .9."""
    t = at_thresholds(["cat", "dog"], DETECTIONS, diagnosed(DETECTIONS, OBJECTS))
    assert t.values[t.best(4)] == pytest.approx(0.82)
    rows = [(0.9, 0), (0.7, 9), (0.5, 1), (0.4, 2)]  # right but for .7: three of four, and all three objects
    detections = {"cat": found(*((image, score, (0, 0, 9, 9)) for score, image in rows))}
    objects = {"cat": truth(*((image, (0, 0, 9, 9), False) for image in range(3)))}
    t = at_thresholds(["cat"], detections, diagnosed(detections, objects))
    assert t.values[t.best(3)] == 0.0


def test_margins_have_thresholds_of_their_own() -> None:
    values = threshold_values({"cat": found((0, -1.5, (0, 0, 1, 1)), (0, 2.0, (0, 0, 1, 1)))})
    assert (values[0], values[-1], len(values)) == (-1.5, 2.0, 50)
    detections = {"cat": found((0, -1.5, (0, 0, 1, 1)), (0, 2.0, (0, 0, 1, 1)))}
    t = at_thresholds(["cat"], detections, diagnosed(detections, {"cat": OBJECTS["dog"]}))
    assert t.false.sum() == 2
    assert (threshold_values({"cat": found()}) == np.arange(50) / 50).all()


def test_pairs_are_bounded_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MOST_PAIRS", 0)
    t = at_thresholds(["cat", "dog"], DETECTIONS, diagnosed(DETECTIONS, OBJECTS))
    assert (t.confusions, t.left_out_confusions) == ({}, 2)
