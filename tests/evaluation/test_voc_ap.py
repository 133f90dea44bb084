"""VOC AP: worked examples, a plain-loop oracle, and figures of an independent evaluator on VOC2007 test."""

from __future__ import annotations

import json
import math
import os
import zipfile
from pathlib import Path

import defusedxml.ElementTree
import numpy as np
import pytest
import torch

from fastrcnn.evaluation.voc_ap import (
    ClassDetections,
    ClassTruth,
    class_ap,
    detections_by_class,
    mean_ap,
    truth_by_class,
)
from fastrcnn.structures import Detections, Sample

A, B, C, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (80, 80, 90, 90)


def truth(*objects: tuple[int, tuple, bool]) -> ClassTruth:
    return ClassTruth(
        np.array([o[0] for o in objects], int),
        np.array([o[1] for o in objects], float).reshape(-1, 4),
        np.array([o[2] for o in objects], bool),
    )


def found(*detections: tuple[int, float, tuple]) -> ClassDetections:
    return ClassDetections(
        np.array([d[0] for d in detections], int),
        np.array([d[1] for d in detections], float),
        np.array([d[2] for d in detections], float).reshape(-1, 4),
    )


# ------------------------------------------------------------------------------------------ worked by hand


def test_curve_and_both_metrics() -> None:
    """Four objects; right, wrong, right: precision 1, 1/2, 2/3 at recall 1/4, 1/4, 1/2."""
    objects = truth((0, A, False), (0, B, False), (1, A, False), (1, C, False))
    detections = found((0, 0.9, A), (0, 0.8, FAR), (1, 0.7, A))
    result = class_ap(detections, objects, "voc07")
    np.testing.assert_allclose(result.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(result.recall, [1 / 4, 1 / 4, 1 / 2])
    # The points 0, .1, .2 have precision 1; .3, .4, .5 have 2/3; the five above have 0.
    assert result.ap == pytest.approx((3 * 1 + 3 * 2 / 3) / 11, abs=1e-15)
    # Recall 0 to 1/4 at 1, 1/4 to 1/2 at 2/3.
    assert class_ap(detections, objects, "voc10").ap == pytest.approx(1 / 4 + 1 / 4 * 2 / 3, abs=1e-15)


def test_perfect_detections_have_ap_one() -> None:
    objects = truth((0, A, False), (3, B, False))
    for metric in ("voc07", "voc10"):
        assert class_ap(found((3, 0.2, B), (0, 0.1, A)), objects, metric).ap == 1.0


def test_second_detection_of_an_object_is_false_even_if_it_fits_better() -> None:
    objects = truth((0, A, False))
    result = class_ap(found((0, 0.8, A), (0, 0.9, (0, 0, 10, 9))), objects, "voc10")
    assert result.correct.tolist() == [False, True]
    assert result.matches.tolist() == [0, 0]  # both match it: the later one is a duplicate, no stray box
    assert result.ap == 1.0  # the duplicate comes after full recall
    np.testing.assert_allclose(result.precision, [1, 1 / 2])


def test_detection_of_a_taken_object_does_not_fall_back_on_its_second_best() -> None:
    near = (0, 0, 10, 12)
    objects = truth((0, A, False), (0, near, False))
    result = class_ap(found((0, 0.9, A), (0, 0.8, A)), objects)
    assert result.correct.tolist() == [True, False]
    assert result.matches.tolist() == [0, 0]


def test_detections_of_difficult_objects_do_not_count() -> None:
    objects = truth((0, A, True), (0, B, False))
    result = class_ap(found((0, 0.9, A), (0, 0.8, A), (0, 0.7, B)), objects, "voc10")
    assert result.ignored.tolist() == [True, True, False]
    assert result.positives == 1
    assert result.ap == 1.0
    assert result.precision.tolist() == [1.0]
    assert result.scores.tolist() == [0.7]


def test_match_needs_more_than_half() -> None:
    """Inclusive pixels 0..9 against 0..19 overlap by exactly 100/200, which is not enough; 0..18 is."""
    objects = truth((0, A, False))
    assert class_ap(found((0, 0.9, (0, 0, 10, 20))), objects).ap == 0.0
    assert class_ap(found((0, 0.9, (0, 0, 10, 19))), objects).ap == 1.0


def test_objects_of_other_images_do_not_match() -> None:
    result = class_ap(found((1, 0.9, A)), truth((0, A, False)))
    assert result.ap == 0.0
    assert result.matches.tolist() == [-1]


def test_equal_scores_keep_the_order_of_the_input() -> None:
    objects = truth((0, A, False))
    right, wrong = (0, 0.5, A), (0, 0.5, FAR)
    assert class_ap(found(right, wrong), objects, "voc10").ap == 1.0
    assert class_ap(found(wrong, right), objects, "voc10").ap == 0.5
    many = found(*[right, wrong] * 500)  # enough for an unstable sort to show
    assert class_ap(many, objects).correct.nonzero()[0].tolist() == [0]


def test_first_of_two_equally_overlapped_objects_is_matched() -> None:
    result = class_ap(found((0, 0.9, A)), truth((0, A, True), (0, A, False)))
    assert result.matches.tolist() == [0]
    assert result.ignored.tolist() == [True]


# MATLAB's 0:0.1:1, by MathWorks' description of the colon operator: the first half counts up from 0, the second down
# from 1. The middle is the mean of the ends.
DEVKIT_POINTS = [k * 0.1 for k in range(5)] + [0.5] + [1 - k * 0.1 for k in range(4, -1, -1)]


def devkit(overlaps: list[float], objects: int) -> float:
    """VOCevaldet.m of VOC2007 where every detection is alone with its object: `>=` .5, then 11 points."""
    right, precision, recall = 0, [], []
    for rank, overlap in enumerate(overlaps, 1):
        right += overlap >= 0.5
        precision.append(right / rank)
        recall.append(right / objects)
    points = [max([p for p, r in zip(precision, recall, strict=True) if r >= t], default=0.0) for t in DEVKIT_POINTS]
    return sum(points) / 11


@pytest.mark.parametrize(
    ("number", "here", "there"),
    [
        (2, 3, 3),  # 0, .1, .2
        (3, 3, 3),  # 3/10 is below 3 * .1 in both
        (5, 6, 6),
        (6, 6, 7),  # 6/10 is below 6 * .1, and is 1 - 4 * .1
        (7, 7, 8),  # 7/10 is below 7 * .1, and is 1 - 3 * .1
        (8, 9, 9),
    ],
)
def test_recalls_at_their_points_here_and_in_the_devkit(number: int, here: int, there: int) -> None:
    """`number` of ten objects are found, without a mistake."""
    objects = truth(*[(i, A, False) for i in range(10)])
    detections = found(*[(i, 0.9, A) for i in range(number)])
    assert class_ap(detections, objects, "voc07").ap == pytest.approx(here / 11)
    assert devkit([1.0] * number, 10) == pytest.approx(there / 11)
    assert class_ap(detections, objects, "voc10").ap == pytest.approx(number / 10)  # without points


def test_overlap_of_exactly_one_half_here_and_in_the_devkit() -> None:
    """Two objects, found with an overlap of exactly 100/200 and of 1."""
    objects = truth((0, A, False), (1, A, False))
    detections = found((0, 0.9, (0, 0, 10, 20)), (1, 0.8, A))
    result = class_ap(detections, objects, "voc07")
    assert result.overlaps.tolist() == [0.5, 1.0]
    assert result.correct.tolist() == [False, True]
    assert result.ap == pytest.approx(6 / 11 * 1 / 2)  # recall 1/2 at precision 1/2
    assert devkit(result.overlaps.tolist(), 2) == 1.0


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (9, 9, 1, 1), (0, 0, 10, 0)])
def test_empty_and_inverted_boxes_match_nothing(box: tuple) -> None:
    result = class_ap(found((0, 0.9, box)), truth((0, A, False), (0, box, False)))
    assert result.matches.tolist() == [-1]
    assert result.ap == 0.0


# ------------------------------------------------------------------------------------------ nothing there


def test_no_detections_no_truth_all_difficult() -> None:
    objects = {
        "found": truth((0, A, False)),
        "missed": truth((0, B, False)),
        "absent": truth(),
        "hard": truth((0, C, True)),
    }
    detections = {"found": found((0, 0.9, A)), "absent": found((0, 0.9, A)), "hard": found((0, 0.9, C))}
    for metric in ("voc07", "voc10"):
        result = mean_ap(detections, objects, metric)
        assert result.ap == {"found": 1.0, "missed": 0.0, "absent": None, "hard": None}
        assert result.mean == 0.5


def test_mean_without_any_truth_is_none() -> None:
    assert mean_ap({}, {"a": truth(), "b": truth((0, A, True))}).mean is None
    assert mean_ap({}, {}).mean is None


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="voc11"):
        class_ap(found(), truth(), "voc11")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN"):
        found((0, math.nan, A))
    with pytest.raises(ValueError, match="negative"):
        found((-1, 0.5, A))
    with pytest.raises(ValueError, match="shape"):
        ClassDetections(np.zeros(2), np.zeros(2), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="shape"):
        ClassTruth(np.zeros(2), np.zeros((2, 5)), np.zeros(2))


def test_arrays_are_made_of_samples_and_detections() -> None:
    def sample(boxes: list, labels: list, difficult: list) -> Sample:
        arrays = (
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int64),
            np.array(difficult, bool),
        )
        return Sample("1", Path("1.jpg"), 100, 100, *arrays)

    objects = truth_by_class(
        [sample([], [], []), sample([A, B], [2, 1], [False, True]), sample([C], [2], [False])], ["cat", "dog"]
    )
    assert objects["cat"].images.tolist() == [1]
    assert objects["cat"].difficult.tolist() == [True]
    assert objects["dog"].images.tolist() == [1, 2]
    assert objects["dog"].boxes.tolist() == [list(A), list(C)]
    detections = detections_by_class(
        [
            Detections(torch.tensor([A, B]).float(), torch.tensor([0.5, 0.25]), torch.tensor([1, 2])),
            Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)),
            Detections(torch.tensor([C]).float(), torch.tensor([0.75]), torch.tensor([2])),
        ],
        ["cat", "dog"],
    )
    assert detections["cat"].scores.tolist() == [0.5]
    assert detections["dog"].images.tolist() == [0, 2]
    assert detections["dog"].boxes.tolist() == [list(B), list(C)]
    assert truth_by_class([], ["cat"])["cat"].boxes.shape == (0, 4)
    assert detections_by_class([], ["cat"])["cat"].boxes.shape == (0, 4)


# ---------------------------------------------------------------------------------------- a plain-loop oracle


def oracle(detections: ClassDetections, objects: ClassTruth, min_iou: float) -> dict:
    """py-faster-rcnn's procedure as plain loops over Python numbers, in the inclusive +1 convention."""
    order = sorted(range(len(detections)), key=lambda d: -float(detections.scores[d]))  # sorted() is stable
    taken: set[int] = set()
    matches, correct, ignored = {}, {}, {}
    for d in order:
        x1, y1, x2, y2 = (float(v) for v in detections.boxes[d] - (0, 0, 1, 1))
        best, best_iou = -1, -math.inf
        for g in range(len(objects)):
            if objects.images[g] != detections.images[d]:
                continue
            u1, v1, u2, v2 = (float(v) for v in objects.boxes[g] - (0, 0, 1, 1))
            width, height = min(x2, u2) - max(x1, u1) + 1, min(y2, v2) - max(y1, v1) + 1
            if width > 0 and height > 0:
                both = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1)
                iou = width * height / (both - width * height)
                if iou > best_iou:
                    best, best_iou = g, iou
        matches[d] = best if best_iou > min_iou else -1
        ignored[d] = matches[d] >= 0 and bool(objects.difficult[best])
        correct[d] = matches[d] >= 0 and not ignored[d] and best not in taken
        if correct[d]:
            taken.add(best)
    positives = sum(not hard for hard in objects.difficult)
    if positives == 0:
        return {"matches": matches, "correct": correct, "ignored": ignored, "voc07": None, "voc10": None}
    right, precision, recall = 0, [], []
    for rank, d in enumerate([d for d in order if not ignored[d]], 1):
        right += correct[d]
        precision.append(right / rank)
        recall.append(right / positives)
    points = [
        max([p for p, r in zip(precision, recall, strict=True) if r >= t], default=0.0)
        for t in np.arange(0.0, 1.1, 0.1)
    ]
    area, before = 0.0, 0.0
    for k, r in enumerate(recall):
        area += (r - before) * max(precision[k:])
        before = r
    return {
        "matches": matches,
        "correct": correct,
        "ignored": ignored,
        "voc07": sum(points) / 11,
        "voc10": area,
    }


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_plain_loop_oracle(seed: int) -> None:
    """Matching exactly, AP to 1e-12; on whole pixels, where IoU .5 and equal scores and overlaps occur."""
    rng = np.random.default_rng(seed)
    images, count = int(rng.integers(1, 6)), int(rng.integers(0, 25))
    corners = rng.integers(0, 12, (count, 2))
    boxes = np.concatenate((corners, corners + rng.integers(1, 9, (count, 2))), axis=1)
    objects = ClassTruth(rng.integers(0, images, count), boxes, rng.random(count) < 0.25)
    number = int(rng.integers(0, 120))
    if count and number:
        near = rng.integers(0, count, number)
        moved = boxes[near] + rng.integers(-2, 3, (number, 4))
        where = np.where(rng.random(number) < 0.8, objects.images[near], rng.integers(0, images, number))
    else:
        number, moved, where = 0, np.zeros((0, 4)), np.zeros(0)
    detections = ClassDetections(where, rng.integers(0, 8, number) / 8, moved)
    min_iou = (0.5, 0.3, 0.7)[seed % 3]
    expected = oracle(detections, objects, min_iou)
    for metric in ("voc07", "voc10"):
        result = class_ap(detections, objects, metric, min_iou)
        for name in ("matches", "correct", "ignored"):
            assert getattr(result, name).tolist() == [expected[name][d] for d in range(number)], name
        if expected[metric] is None:
            assert result.ap is None
        else:
            assert result.ap == pytest.approx(expected[metric], abs=1e-12)


# ------------------------------------------------------------------------------------------ VOC2007 test


@pytest.fixture(scope="module")
def voc2007_test() -> dict:
    """All objects of VOC2007 test, and real detections of four classes, read here by plain means."""
    data = os.environ.get("FASTRCNN_TEST_DATA")
    if not data:
        pytest.skip("FASTRCNN_TEST_DATA is not set: no real VOC detections to evaluate")
    folder = Path(data) / "voc_eval"
    expected = json.loads((folder / "expected_ap.json").read_text())
    rows: dict[str, list] = {name: [] for name in expected}
    with zipfile.ZipFile(folder / "VOC2007_test_annotations.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".xml"))
        index = {Path(n).stem: i for i, n in enumerate(names)}
        assert len(index) == 4952
        for name in names:
            for item in defusedxml.ElementTree.fromstring(archive.read(name)).iter("object"):
                if item.findtext("name") in rows:
                    box = [int(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
                    hard = item.findtext("difficult") == "1"
                    rows[item.findtext("name")].append((index[Path(name).stem], np.array(box) - (1, 1, 0, 0), hard))
    detections = {}
    for name in expected:
        lines = [line.split() for line in (folder / f"comp4_det_test_{name}.txt").read_text().splitlines()]
        numbers = np.array([line[1:] for line in lines], float)
        images = np.array([index[line[0]] for line in lines])
        detections[name] = ClassDetections(images, numbers[:, 0], numbers[:, 1:] - (1, 1, 0, 0))
    objects = {name: truth(*of_class) for name, of_class in rows.items()}
    return {"detections": detections, "truth": objects, "expected": expected}


@pytest.mark.parametrize(("metric", "key"), [("voc07", "voc07_11point"), ("voc10", "all_point")])
def test_real_detections_reach_the_independent_figures(voc2007_test: dict, metric: str, key: str) -> None:
    result = mean_ap(voc2007_test["detections"], voc2007_test["truth"], metric)  # type: ignore[arg-type]
    expected = {name: values[key] for name, values in voc2007_test["expected"].items()}
    assert result.ap == pytest.approx(expected, abs=1e-9)
    assert result.mean == pytest.approx(sum(expected.values()) / 4, abs=1e-9)
