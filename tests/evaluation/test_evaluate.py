"""From detections to metrics.json, comp4 files and a table, and back again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrcnn.evaluation.evaluate import Evaluation, above_thresholds, compare, evaluate, table, write_results
from fastrcnn.evaluation.recall import proposal_recall
from fastrcnn.evaluation.result_files import read_comp4, write_comp4
from fastrcnn.evaluation.voc_ap import ClassDetections
from fastrcnn.inference.detect import DetectionSettings
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.structures import Batch, Detections, Sample

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
    assert "no class has truth" in table(empty)
    assert table(empty).splitlines()[-1] == "without truth in these images: cat"


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


class Copying(torch.nn.Module):
    """Stands in for the network: finds in every proposal a thing of class 1 + (its number modulo 2)."""

    classifier = "softmax"
    roi_op = "roi_align"  # every RoI counts, also where two have the same cells
    strides = (16,)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("delta_mean", torch.zeros(3, 4))
        self.register_buffer("delta_std", torch.ones(3, 4))

    def features(self, images: torch.Tensor, sizes: torch.Tensor) -> list[torch.Tensor]:
        return [images.float()]

    def classify(self, maps: list[torch.Tensor], rois: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.zeros(len(rois), 3)
        logits[torch.arange(len(rois)), 1 + torch.arange(len(rois)) % 2] = 5.0
        return logits, torch.zeros(len(rois), 3, 4)


def test_evaluate_stays_in_the_pictures_own_pixels() -> None:
    """Pictures twice and half as large as their originals; proposals that are the truth: AP 1, recall 1."""
    batches = []
    for s, scale in zip(SAMPLES[:2], (2.0, 0.5), strict=True):
        boxes = torch.from_numpy(s.boxes[:2])
        size = int(40 * scale), int(50 * scale)
        batches.append(
            Batch(
                torch.zeros((1, 3, *size), dtype=torch.uint8),
                torch.tensor([size]),
                torch.tensor([scale]),
                [boxes],
                [boxes],
                [torch.from_numpy(s.labels)],
                [s],
            )
        )
    settings = DetectionSettings(score_threshold=0.5)
    start = time.perf_counter()
    result = evaluate(TorchNetwork(Copying()), [[b] for b in batches], 2, ["cat", "dog"], "voc10", settings)  # type: ignore[arg-type]
    assert [s.image_id for s in result.samples] == ["000001", "000002"]
    assert result.seconds_per_image is not None
    assert 0 < result.seconds_per_image < time.perf_counter() - start
    assert result.ap.ap == {"cat": 1.0, "dog": 1.0}
    np.testing.assert_allclose(result.detections["cat"].boxes, [A, B])
    assert result.detections["cat"].images.tolist() == [0, 1]
    assert result.recall is not None
    assert result.recall.classes["dog"].at_50 == 1.0


def test_only_what_exceeds_its_classs_threshold_over_the_set_is_kept() -> None:
    """One a picture on average, two pictures: of class 1 the second best score is .8, of class 2 it is .3."""
    boxes = torch.tensor([[0.0, 0, 5, 5]])
    first = Detections(
        boxes.repeat(3, 1),
        torch.tensor([0.9, 0.8, 0.3]),
        torch.tensor([1, 1, 2]),
        torch.tensor([[0.9, 0.3], [0.8, 0.2]]),
    )
    second = Detections(boxes, torch.tensor([0.6]), torch.tensor([2]), torch.tensor([[0.1, 0.6], [0.05, 0.1]]))
    kept = above_thresholds([first, second], 1)
    assert [d.scores.tolist() for d in kept] == [[pytest.approx(0.9)], [pytest.approx(0.6)]]
    assert [d.labels.tolist() for d in kept] == [[1], [2]]
    everything = above_thresholds([first, second], 2)
    assert [len(d) for d in everything] == [3, 1]


def test_what_comes_up_when_detection_is_done_leaves_before_anything_is_made_of_it() -> None:
    class Over(Exception):  # noqa: N818 - no error
        pass

    def detected() -> None:
        raise Over

    model = FastRCNN(1, width=0.03, roi_size=2)
    settings = DetectionSettings(average_per_class=3)  # which is made of all pictures, of which there is none here
    with pytest.raises(Over):
        evaluate(TorchNetwork(model), [], 5, ["x"], "voc07", settings, detected=detected)
