"""COCO AP: worked by hand, and against pycocotools called the usual way, by JSON files and summarize()."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from coco_oracle import figures

from fastrcnn.evaluation.coco_ap import coco_ap
from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth

NO_TRUTH = ClassTruth(np.zeros(0), np.zeros((0, 4)), np.zeros(0))


def random_case(seed: int) -> tuple[dict[str, ClassDetections], dict[str, ClassTruth]]:
    """Three classes on six images, objects of all three sizes, a tenth of them difficult."""
    rng = np.random.default_rng(seed)
    truth, detections = {}, {}
    for name in ("a", "b", "c"):
        corners = rng.uniform(0, 300, (40, 2))
        boxes = np.concatenate((corners, corners + np.exp(rng.uniform(2.5, 5.5, (40, 2)))), axis=1)
        truth[name] = ClassTruth(rng.integers(0, 6, 40), boxes, rng.random(40) < 0.1)
        near = rng.integers(0, 40, 150)
        moved = boxes[near] + rng.normal(0, 4, (150, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        detections[name] = ClassDetections(truth[name].images[near], rng.permutation(150) / 150, moved)
    return detections, truth


def called_directly(folder: Path, detections: dict[str, ClassDetections], truth: dict[str, ClassTruth]) -> np.ndarray:
    """The figures that pycocotools' own summary of the two files holds."""
    annotations, results = [], []
    for category, name in enumerate(truth, 10):
        objects, found = truth[name], detections[name]
        for image, (x1, y1, x2, y2), hard in zip(objects.images, objects.boxes, objects.difficult, strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": int(image) + 100, "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(hard),
            })  # fmt: skip
        for image, score, (x1, y1, x2, y2) in zip(found.images, found.scores, found.boxes, strict=True):
            results.append({
                "image_id": int(image) + 100, "category_id": category, "score": float(score),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            })  # fmt: skip
    images = [{"id": image + 100} for image in range(6)]
    categories = [{"id": category} for category, _ in enumerate(truth, 10)]
    (folder / "truth.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": annotations, "info": {}})
    )
    (folder / "results.json").write_text(json.dumps(results))
    return figures(folder / "truth.json", folder / "results.json")


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_called_directly(tmp_path: Path, seed: int) -> None:
    detections, truth = random_case(seed)
    result = coco_ap(detections, truth)
    found = [result.mean, *result.figures.values()]
    names = ["AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    names += ["AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"]
    assert list(result.figures) == names  # as summarize() orders them
    expected = called_directly(tmp_path, detections, truth)
    np.testing.assert_allclose(np.array(found, float), expected, rtol=0, atol=1e-12)
    assert len(set(expected)) == 12  # so that no figure can stand for another
    alone = [coco_ap({name: detections[name]}, {name: truth[name]}).mean for name in truth]
    assert list(result.ap.values()) == alone
    assert result.mean == pytest.approx(np.mean(np.array(alone, float)))


def test_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    coco_ap(*random_case(0))
    assert capfd.readouterr() == ("", "")


def test_worked_by_hand() -> None:
    """Overlap 100 x 72 of 100 x 100: IoU .72, right at .5, .55, .6, .65 and .7, wrong at the five above."""
    truth = {"a": ClassTruth(np.array([0]), np.array([[0, 0, 100, 100]]), np.array([False]))}
    detections = {"a": ClassDetections(np.array([0]), np.array([0.9]), np.array([[0, 0, 100, 72]]))}
    result = coco_ap(detections, truth)
    assert (result.figures["AP50"], result.figures["AP75"]) == (pytest.approx(1.0), 0.0)
    assert result.mean == pytest.approx(0.5)
    sizes = [result.figures[f"AP_{size}"] for size in ("small", "medium", "large")]
    assert sizes == [None, None, pytest.approx(0.5)]


def test_nothing_there() -> None:
    box = np.array([[0.0, 0, 50, 50]])
    truth = {
        "found": ClassTruth(np.array([0]), box, np.array([False])),
        "missed": ClassTruth(np.array([0]), box, np.array([False])),
        "absent": NO_TRUTH,
        "hard": ClassTruth(np.array([0]), box, np.array([True])),
    }
    found = ClassDetections(np.array([0]), np.array([0.5]), box)
    result = coco_ap({"found": found, "absent": found, "hard": found}, truth)
    assert result.ap == {"found": pytest.approx(1.0), "missed": 0.0, "absent": None, "hard": None}
    assert result.mean == pytest.approx(0.5)
    assert coco_ap({}, {"absent": NO_TRUTH}).mean is None
    assert coco_ap({}, {}).mean is None


def test_detections_in_a_difficult_object_do_not_count() -> None:
    truth = {"a": ClassTruth(np.array([0, 0]), np.array([[0, 0, 50, 50], [100, 0, 150, 50]]), np.array([True, False]))}
    boxes = np.array([[0, 0, 50, 50], [2, 2, 50, 50], [100, 0, 150, 50]])
    detections = {"a": ClassDetections(np.zeros(3), np.array([0.9, 0.8, 0.7]), boxes)}
    assert coco_ap(detections, truth).mean == pytest.approx(1.0)


def test_a_hundred_detections_count_of_each_class_in_each_image() -> None:
    """The right one is number 61, 100 or 101 of its class, and of another class there are as many again."""
    box, away = [0, 0, 50, 50], [200, 0, 250, 50]
    for false, ap in ((60, 1 / 61), (99, 1 / 100), (100, 0)):
        boxes = np.array([away] * false + [box])
        of_class = ClassDetections(np.zeros(false + 1), np.linspace(1, 0.5, false + 1), boxes)
        objects = ClassTruth(np.zeros(1), np.array([box]), np.zeros(1))
        result = coco_ap({"a": of_class, "b": of_class}, {"a": objects, "b": objects})
        assert result.ap == {"a": pytest.approx(ap), "b": pytest.approx(ap)}
