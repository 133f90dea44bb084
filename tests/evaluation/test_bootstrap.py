"""AP of weighted images equals AP of images repeated; resamples are paired and repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from fastrcnn.evaluation import comparison
from fastrcnn.evaluation.comparison import ap_samples, interval, resample, weighted_ap
from fastrcnn.evaluation.matches import ClassMatches, class_matches
from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth, VocMetric, class_ap

IMAGES = 25


def drawn(seed: int) -> tuple[ClassDetections, ClassTruth]:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (60, 2))
    objects = np.concatenate((corner, corner + 10), axis=1).astype(float)
    corner = rng.integers(0, 12, (200, 2))
    boxes = np.concatenate((corner, corner + 10), axis=1).astype(float)
    truth = ClassTruth(rng.integers(0, IMAGES, 60), objects, rng.random(60) < 0.2)
    return ClassDetections(rng.integers(0, IMAGES, 200), rng.permutation(200) / 200, boxes), truth


def repeated(detections: ClassDetections, truth: ClassTruth, weights: np.ndarray, metric: VocMetric) -> float | None:
    """The AP where image i is there weights[i] times, as so many images of their own."""
    own, objects = [], []
    for copy in range(weights.max()):
        d, t = weights[detections.images] > copy, weights[truth.images] > copy
        shift = IMAGES * copy
        own.append(ClassDetections(detections.images[d] + shift, detections.scores[d], detections.boxes[d]))
        objects.append(ClassTruth(truth.images[t] + shift, truth.boxes[t], truth.difficult[t]))
    joined = ClassDetections(*(np.concatenate([getattr(d, f) for d in own]) for f in ("images", "scores", "boxes")))
    there = ClassTruth(*(np.concatenate([getattr(t, f) for t in objects]) for f in ("images", "boxes", "difficult")))
    return class_ap(joined, there, metric).ap


@pytest.mark.parametrize("metric", ["voc07", "voc10"])
def test_weights_do_what_repeating_images_does(metric: VocMetric, monkeypatch: pytest.MonkeyPatch) -> None:
    detections, truth = drawn(1)
    found = class_matches(detections, truth, class_ap(detections, truth))
    weights = resample(IMAGES, 30, seed=3)
    expected = [repeated(detections, truth, w, metric) for w in weights]
    assert 0.05 < min(expected) < max(expected) < 0.9
    np.testing.assert_allclose(weighted_ap(found, weights, metric), expected, atol=1e-12)
    monkeypatch.setattr(comparison, "CELLS", 1000)  # five resamples at a time
    np.testing.assert_allclose(weighted_ap(found, weights, metric), expected, atol=1e-12)
    once = np.ones((1, IMAGES), np.int16)
    assert weighted_ap(found, once, metric)[0] == pytest.approx(class_ap(detections, truth, metric).ap, abs=1e-15)


def test_classes_without_objects_in_a_resample_are_left_out_of_its_mean() -> None:
    """Cats are in image 0, found first; dogs in image 1, found after a false box there."""
    cat = ClassMatches(np.array([0]), np.array([0.9]), np.array([True]), np.array([0]))
    dog = ClassMatches(np.array([1, 1]), np.array([0.9, 0.8]), np.array([False, True]), np.array([1]))
    pig = ClassMatches(np.array([0]), np.array([0.9]), np.array([False]), np.zeros(0, int))
    weights = np.array([[1, 1], [2, 0], [0, 2]], np.int16)
    ap = ap_samples({"cat": cat, "dog": dog, "pig": pig}, weights, "voc10")
    np.testing.assert_array_equal(ap["cat"], [1, 1, np.nan])
    np.testing.assert_array_equal(ap["dog"], [0.5, np.nan, 0.5])
    np.testing.assert_array_equal(ap["pig"], [np.nan] * 3)
    np.testing.assert_array_equal(ap[""], [0.75, 1, 0.5])


def test_a_class_that_is_never_found_has_ap_0() -> None:
    nothing = ClassMatches(np.zeros(0, int), np.zeros(0), np.zeros(0, bool), np.array([0, 1]))
    assert weighted_ap(nothing, resample(2, 5), "voc07").tolist() == [0] * 5


def test_resamples_draw_as_many_images_as_there_are() -> None:
    weights = resample(40, 200, seed=5)
    assert (weights.sum(axis=1) == 40).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.4)  # five standard errors
    assert (weights == resample(40, 200, seed=5)).all()
    assert (weights != resample(40, 200, seed=6)).any()


def test_intervals_are_percentiles() -> None:
    assert interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert interval(np.array([np.nan, 1.0, np.nan])) == (1.0, 1.0)
    assert interval(np.array([np.nan])) is None
