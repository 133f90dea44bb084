"""A network over a data set: boxes in the images' own pixels, and thresholds over the set."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrcnn.inference.evaluate import above_thresholds, evaluate
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Batch, Detections, Sample

A, B = (0, 0, 10, 10), (20, 20, 40, 30)


def sample(image_id: str, *objects: tuple[int, tuple]) -> Sample:
    boxes, labels = np.array([box for _, box in objects], np.float32), np.array([label for label, _ in objects])
    return Sample(image_id, Path(f"{image_id}.jpg"), 50, 40, boxes, labels, np.zeros(len(objects), bool))


SAMPLES = [sample("000001", (1, A), (2, B)), sample("000002", (1, B))]


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


def test_evaluate_stays_in_the_images_own_pixels() -> None:
    """Images twice and half as large as their originals; proposals that are the truth: AP 1, recall 1."""
    batches = []
    for s, scale in zip(SAMPLES, (2.0, 0.5), strict=True):
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
    network = TorchNetwork(Copying())  # type: ignore[arg-type]
    result = evaluate(network, [[b] for b in batches], 2, ["cat", "dog"], "voc10", settings)
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
