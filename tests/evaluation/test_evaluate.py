"""From detections to metrics.json, comp4 files and a table, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastrcnn.evaluation.evaluate import Evaluation, compare, table, write_results
from fastrcnn.evaluation.recall import proposal_recall
from fastrcnn.evaluation.result_files import read_comp4, write_comp4
from fastrcnn.evaluation.voc_ap import ClassDetections
from fastrcnn.structures import Sample

CLASSES = ["cat", "dog", "cow"]
A, B = (0, 0, 10, 10), (20, 20, 40, 30)


def sample(image_id: str, *objects: tuple[int, tuple, bool]) -> Sample:
    return Sample(
        image_id,
        Path(f"{image_id}.jpg"),
        50,
        40,
        np.array([o[1] for o in objects], np.float32).reshape(-1, 4),
        np.array([o[0] for o in objects], np.int64),
        np.array([o[2] for o in objects], bool),
    )


def found(*detections: tuple[int, float, tuple]) -> ClassDetections:
    return ClassDetections(
        np.array([d[0] for d in detections], np.int64),
        np.array([d[1] for d in detections], float),
        np.array([d[2] for d in detections], float).reshape(-1, 4),
    )


# Cats: one of two found, without a mistake. Dogs: a mistake before the only one. Cows: only a difficult one.
SAMPLES = [
    sample("000001", (1, A, False), (2, B, False)),
    sample("000002", (1, B, False), (3, A, True)),
    sample("000003"),
]
DETECTIONS = {
    "cat": found((0, 0.9, A)),
    "dog": found((2, 0.8, A), (0, 0.7, (20, 20, 40, 30.5))),
    "cow": found(),
}


@pytest.fixture
def result() -> Evaluation:
    proposals = [np.array([A], np.float32), np.array([B], np.float32), np.zeros((0, 4), np.float32)]
    return compare(DETECTIONS, SAMPLES, CLASSES, "voc10", proposal_recall(proposals, SAMPLES, CLASSES))


def test_ap_by_hand(result: Evaluation) -> None:
    """Area under the curve: half of the cats at precision 1; the dog at precision 1/2; no cow to be found."""
    assert result.ap.ap == {"cat": pytest.approx(0.5), "dog": pytest.approx(0.5), "cow": None}
    assert result.ap.mean == pytest.approx(0.5)
    eleven = compare(DETECTIONS, SAMPLES, CLASSES, "voc07")
    assert eleven.ap.ap["cat"] == pytest.approx(6 / 11)  # recall 0, .1, ... .5
    assert eleven.recall is None


def test_a_class_without_an_entry_is_left_out_and_one_with_an_empty_entry_is_not() -> None:
    """Labels stay those of the whole list of classes: `dog` alone is still label 2."""
    dogs = compare({"dog": DETECTIONS["dog"]}, SAMPLES, CLASSES, "voc10")
    assert dogs.ap.ap == {"dog": pytest.approx(0.5)}
    nothing = compare({"dog": found(), "cat": DETECTIONS["cat"]}, SAMPLES, CLASSES, "voc10")
    assert nothing.ap.ap == {"cat": pytest.approx(0.5), "dog": 0.0}
    assert nothing.ap.mean == pytest.approx(0.25)


def test_metrics_json_holds_what_the_design_promises(result: Evaluation, tmp_path: Path) -> None:
    write_results(result, tmp_path / "eval" / "test")
    text = (tmp_path / "eval" / "test" / "metrics.json").read_text(encoding="utf-8")
    metrics = json.loads(text)
    assert "NaN" not in text
    assert metrics["mAP"] == pytest.approx(0.5)
    assert metrics["ap"] == {"cat": pytest.approx(0.5), "dog": pytest.approx(0.5), "cow": None}
    assert (metrics["metric"], metrics["images"]) == ("voc10", 3)
    assert metrics["objects"] == {"cat": 2, "dog": 1, "cow": 0}
    # Of the two cats both have a proposal that fits, the dog has none; a third of a box is proposed a picture.
    assert metrics["proposals"]["recall_50"] == {"cat": 1.0, "dog": 0.0, "cow": None}
    assert metrics["proposals"]["recall_70"] == {"cat": 1.0, "dog": 0.0, "cow": None}
    assert metrics["proposals"]["per_image"] == pytest.approx(2 / 3)


def test_without_any_truth_there_is_no_mean_and_no_nan(tmp_path: Path) -> None:
    empty = compare({"cat": DETECTIONS["cat"]}, [sample("000001")], ["cat"], "voc07")
    write_results(empty, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["mAP"] is None
    assert "no class has ground truth" in table(empty)
    assert table(empty).splitlines()[-1] == "classes without AP (no objects, or only difficult ones): cat"


@pytest.mark.parametrize("metric", ["voc07", "voc10"])
def test_what_is_written_reads_back_to_the_same_ap(tmp_path: Path, metric: str) -> None:
    """On random boxes with fractions, where any rounding would swap matches or ranks."""
    rng = np.random.default_rng(0)

    def boxes(n: int) -> np.ndarray:
        corner = rng.uniform(0, 20, (n, 2))
        return np.concatenate((corner, corner + rng.uniform(5, 20, (n, 2))), axis=1).astype(np.float32)

    samples, detections = [], {}
    for i in range(30):
        n = int(rng.integers(0, 5))
        labels, difficult = rng.integers(1, 4, n), rng.random(n) < 0.2
        samples.append(Sample(f"{i:06d}", Path("x"), 50, 50, boxes(n), labels, difficult))
    for label, name in enumerate(CLASSES, 1):
        truth = [(i, box) for i, s in enumerate(samples) for box in s.boxes[s.labels == label]]
        near = np.array([box for _, box in truth]) + rng.normal(0, 2, (len(truth), 4))
        images = np.concatenate(([i for i, _ in truth], rng.integers(0, 30, 40)))
        scores = rng.random(len(images)).astype(np.float32).astype(float)
        found_boxes = np.concatenate((near, boxes(40))).astype(np.float32).astype(float)
        detections[name] = ClassDetections(images, scores, found_boxes)
    before = compare(detections, samples, CLASSES, metric)
    assert 0.1 < before.ap.mean < 0.9
    write_results(before, tmp_path)
    write_comp4(tmp_path, "VOC2007-test", before.detections, [s.image_id for s in samples])
    again = read_comp4(tmp_path, "VOC2007-test", CLASSES, [s.image_id for s in samples])
    after = compare(again, samples, CLASSES, metric)
    assert after.ap.ap == before.ap.ap
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["mAP"] == before.ap.mean


def test_the_table_shows_every_class_and_the_mean(result: Evaluation) -> None:
    lines = [line.split() for line in table(result).splitlines()]
    assert lines[0][:3] == ["class", "objects", "AP"]
    assert lines[1] == ["cat", "2", "0.500", "1.000"]
    assert lines[2] == ["dog", "1", "0.500", "0.000"]
    assert lines[3] == ["mAP", "0.500", "(voc10,", "3", "images)"]
    assert lines[4][-1] == "cow"  # a class without truth is named, and has no AP
    assert len(lines) == 5
    assert "recall" not in table(compare(DETECTIONS, SAMPLES, CLASSES, "voc10"))
