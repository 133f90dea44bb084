"""What holds for every metric, also where there is nothing to count; expected values by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fastrcnn.evaluation.evaluate import average_precision
from fastrcnn.evaluation.voc_ap import METRICS, ClassDetections, ClassTruth
from fastrcnn.settings import Metric

A, B = [0, 0, 50, 50], [100, 0, 150, 50]


def truth(*objects: tuple[int, list, bool]) -> ClassTruth:
    images, boxes, difficult = zip(*objects, strict=True) if objects else ((), np.zeros((0, 4)), ())
    return ClassTruth(np.array(images), np.array(boxes), np.array(difficult, bool))


def found(*detections: tuple[int, float, list]) -> ClassDetections:
    images, scores, boxes = zip(*detections, strict=True) if detections else ((), (), np.zeros((0, 4)))
    return ClassDetections(np.array(images), np.array(scores), np.array(boxes))


@pytest.mark.parametrize("metric", METRICS)
def test_classes_without_objects_and_without_detections(metric: Metric) -> None:
    objects = {
        "found": truth((0, A, False)),
        "missed": truth((0, A, False)),
        "absent": truth(),
        "hard": truth((0, A, True), (1, A, True)),
    }
    one = found((0, 0.5, A))
    result = average_precision({"found": one, "missed": found(), "absent": one, "hard": one}, objects, metric)
    assert result.ap == {"found": pytest.approx(1), "missed": 0, "absent": None, "hard": None}
    assert result.objects == {"found": 1, "missed": 1, "absent": 0, "hard": 0}
    assert result.mean == pytest.approx(0.5)


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_is_detected_or_nothing_can_be(metric: Metric) -> None:
    two = {"a": truth((0, A, False)), "b": truth((1, B, False))}
    for nothing in ({}, {"a": found(), "b": found()}):
        result = average_precision(nothing, two, metric)
        assert (result.mean, result.ap) == (0, {"a": 0, "b": 0})
    hard = average_precision({"a": found((0, 0.5, A))}, {"a": truth((0, A, True)), "b": truth()}, metric)
    assert (hard.mean, hard.ap) == (None, {"a": None, "b": None})
    assert average_precision({}, {}, metric).mean is None


@pytest.mark.parametrize("metric", METRICS)
def test_a_better_detection_where_no_object_is_halves_the_precision(metric: Metric) -> None:
    """In an image without any object, and in one that has objects of the other class alone."""
    objects = {"a": truth((0, A, False)), "b": truth((2, A, False))}
    for image in (1, 2):
        result = average_precision({"a": found((image, 0.9, A), (0, 0.5, A))}, objects, metric)
        assert result.ap == {"a": pytest.approx(0.5), "b": 0}


@pytest.mark.parametrize("metric", METRICS)
def test_a_difficult_object_costs_nothing_missed_or_found(metric: Metric) -> None:
    objects = {"a": truth((0, A, False), (0, B, True))}
    for detections in (found((0, 0.5, A)), found((0, 0.9, B), (0, 0.5, A))):
        assert average_precision({"a": detections}, objects, metric).mean == pytest.approx(1)


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_that_the_truth_lacks_is_refused(metric: Metric) -> None:
    with pytest.raises(ValueError, match="dog"):
        average_precision({"dog": found()}, {"cat": truth()}, metric)


def test_the_metrics_differ_where_they_should() -> None:
    """Of two objects one is found, IoU .8: six of the eleven points; half the area; of the ten IoUs .5 to .8 the seven,
    each with 51 of 101 points."""
    objects = {"a": truth((0, A, False), (0, B, False))}
    detections = {"a": found((0, 0.5, [0, 0, 50, 40]))}
    means = {metric: average_precision(detections, objects, metric).mean for metric in METRICS}  # type: ignore[arg-type]
    assert means == pytest.approx({"voc07": 6 / 11, "voc10": 0.5, "coco": 0.7 * 51 / 101})
    figures = average_precision(detections, objects, "coco").figures
    expected = {"AP50": 51 / 101, "AP75": 51 / 101, "AP_small": None, "AP_medium": 0.7 * 51 / 101, "AP_large": None}
    expected |= {"AR_1": 0.35, "AR_10": 0.35, "AR_100": 0.35, "AR_small": None, "AR_medium": 0.35, "AR_large": None}
    assert figures == {name: value and pytest.approx(value) for name, value in expected.items()}
