"""From outputs to detections, by hand and against plain loops."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastrcnn.boxes import clip, decode
from fastrcnn.model.postprocess import best_boxes, class_thresholds, entering_scores
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Detections


def postprocess(scores: Tensor, deltas: Tensor, rois: Tensor, height: int, width: int, **named: object) -> Detections:
    """What the network's outputs make of RoIs."""
    settings = DetectionSettings(**named)  # type: ignore[arg-type]
    return best_boxes(scores, clip(decode(rois, deltas), height, width), settings)


def one_class(boxes: list, scores: list[float], **options: object) -> tuple[list, list]:
    """Boxes and scores that remain of a single class, with deltas 0, in a picture of 100 x 100."""
    probabilities = torch.tensor([[1 - s, s] for s in scores])
    rois = torch.tensor(boxes, dtype=torch.float32)
    found = postprocess(probabilities, torch.zeros(len(boxes), 2, 4), rois, 100, 100, **options)
    assert (found.labels == 1).all()
    return found.boxes.tolist(), found.scores.tolist()


def numpy_detections(
    probabilities: np.ndarray,
    deltas: np.ndarray,
    rois: np.ndarray,
    height: int,
    width: int,
    threshold: float,
    nms: float,
    per_class: int | None,
    per_image: int | None,
) -> list[tuple[float, int, list[float]]]:
    """(score, label, box), best first; one box at a time, in float64."""
    found = []
    for c in range(1, probabilities.shape[1]):
        candidates = []
        best = sorted(range(len(rois)), key=lambda k: -probabilities[k, c])[:per_class]
        for k in best:
            x1, y1, x2, y2 = rois[k]
            w, h = x2 - x1, y2 - y1
            dx, dy, dw, dh = deltas[k, c]
            cx, cy = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
            w, h = w * math.exp(dw), h * math.exp(dh)
            box = [
                min(max(cx - w / 2, 0), width),
                min(max(cy - h / 2, 0), height),
                min(max(cx + w / 2, 0), width),
                min(max(cy + h / 2, 0), height),
            ]
            if probabilities[k, c] >= threshold and box[2] > box[0] and box[3] > box[1]:
                candidates.append((float(probabilities[k, c]), c, box))
        kept: list[tuple[float, int, list[float]]] = []
        for candidate in candidates:
            a = candidate[2]
            for _, _, b in kept:
                w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
                h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
                union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
                if w * h / union >= nms:
                    break
            else:
                kept.append(candidate)
        found += kept
    return sorted(found, key=lambda f: -f[0])[:per_image]


def random_outputs(rois: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(rois, classes + 1, generator=generator)).softmax(dim=1)
    deltas = 0.3 * torch.randn(rois, classes + 1, 4, generator=generator)
    corner = 120 * torch.rand(rois, 2, generator=generator) - 10
    boxes = torch.cat((corner, corner + 10 + 50 * torch.rand(rois, 2, generator=generator)), dim=1)
    return probabilities, deltas, boxes


@pytest.mark.parametrize(
    ("threshold", "nms", "per_class", "per_image"),
    [(0.05, 0.3, None, 100), (0.0, 0.3, 20, None), (0.2, 0.5, 10, 15), (0.0, 0.1, None, 5)],
)
def test_detections_are_those_of_plain_loops(
    threshold: float, nms: float, per_class: int | None, per_image: int | None
) -> None:
    probabilities, deltas, rois = random_outputs(60, 3, seed=4)
    limits = {"score_threshold": threshold, "nms_iou": nms, "max_per_class": per_class, "max_per_image": per_image}
    found = postprocess(probabilities, deltas, rois, 90, 110, **limits)
    arrays = (t.double().numpy() for t in (probabilities, deltas, rois))
    expected = numpy_detections(*arrays, 90, 110, threshold, nms, per_class, per_image)
    assert len(expected) >= 5
    assert found.labels.tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, [box for _, _, box in expected], rtol=1e-4, atol=1e-3)


def test_scores_at_the_threshold_stay() -> None:
    apart = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    _, scores = one_class(apart, [0.5, 0.25, 0.125], score_threshold=0.25)
    assert scores == [0.5, 0.25]


def test_threshold_zero_keeps_all() -> None:
    assert len(one_class([[0, 0, 10, 10], [20, 0, 30, 10]], [0.0, 0.5], score_threshold=0.0)[1]) == 2


def test_suppression_at_the_threshold_and_not_below() -> None:
    """The second box overlaps the first by exactly .5, the third by less."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4]]
    assert one_class(boxes, [0.9, 0.8, 0.7], nms_iou=0.5)[1] == pytest.approx([0.9, 0.7])


def test_classes_do_not_suppress_one_another() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.4]])
    found = postprocess(probabilities, torch.zeros(1, 3, 4), torch.tensor([[0.0, 0, 10, 10]]), 50, 50)
    assert found.labels.tolist() == [1, 2]
    assert found.scores.tolist() == pytest.approx([0.5, 0.4])


def test_each_class_uses_its_own_deltas() -> None:
    """Class 2 moves the RoI right by its width; background's deltas move nothing."""
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 2, 0] = 1.0
    deltas[0, 0, 0] = 5.0
    found = postprocess(torch.tensor([[0.1, 0.5, 0.4]]), deltas, torch.tensor([[10.0, 10, 20, 30]]), 100, 100)
    assert found.boxes.tolist() == [[10, 10, 20, 30], [20, 10, 30, 30]]


def test_best_first_and_no_more_than_asked_for_of_the_image() -> None:
    apart = [[20 * i, 0, 20 * i + 10, 10] for i in range(5)]
    boxes, scores = one_class(apart, [0.3, 0.9, 0.5, 0.7, 0.4], max_per_image=3)
    assert scores == pytest.approx([0.9, 0.7, 0.5])
    assert [b[0] for b in boxes] == [20, 60, 40]


def test_the_limit_of_a_class_counts_boxes_before_suppression() -> None:
    """The two best overlap, so of a limit of two one remains, though a third box lies apart."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]
    assert one_class(boxes, [0.9, 0.8, 0.7], max_per_class=2)[1] == pytest.approx([0.9])
    assert one_class(boxes, [0.9, 0.8, 0.7], max_per_class=3)[1] == pytest.approx([0.9, 0.7])


def test_boxes_are_clipped_to_height_and_width() -> None:
    found = postprocess(
        torch.tensor([[0.1, 0.9]]), torch.zeros(1, 2, 4), torch.tensor([[-5.0, -6, 500, 400]]), height=60, width=80
    )
    assert found.boxes.tolist() == [[0, 0, 80, 60]]


def test_a_box_pushed_out_of_the_image_is_no_detection() -> None:
    deltas = torch.zeros(1, 2, 4)
    deltas[0, 1, 0] = -30.0
    found = postprocess(
        torch.tensor([[0.1, 0.9]]), deltas, torch.tensor([[0.0, 0, 10, 10]]), 60, 80, score_threshold=0.0
    )
    assert len(found) == 0


def test_no_rois_give_no_detections() -> None:
    found = postprocess(torch.zeros(0, 4), torch.zeros(0, 4, 4), torch.zeros(0, 4), 60, 80, max_per_class=5)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)


def heap_threshold(scores: list[np.ndarray], average: int) -> float:
    """The author's way: a heap of the best so many scores, images coming one by one; -inf while it is not full."""
    heap: list[float] = []
    threshold = -np.inf
    for of_image in scores:
        for score in of_image[of_image > threshold]:
            heapq.heappush(heap, float(score))
        if len(heap) > average * len(scores):
            while len(heap) > average * len(scores):
                heapq.heappop(heap)
            threshold = heap[0]
    return threshold


@pytest.mark.parametrize("average", [1, 3, 7, 50])
def test_thresholds_over_a_set_are_those_of_the_authors_heap(average: int) -> None:
    rng = np.random.default_rng(average)
    entered = [torch.from_numpy(np.sort(rng.random((n, 3)), axis=0)[::-1].copy()) for n in (9, 0, 4, 12, 9, 1)]
    found = class_thresholds(entered, average)
    assert found.tolist() == [heap_threshold([e[:, c].numpy() for e in entered], average) for c in range(3)]
    assert bool(torch.isinf(found).all()) == (average >= 7)


def test_scores_that_enter_are_the_best_of_each_class_without_background() -> None:
    probabilities = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7]])
    torch.testing.assert_close(entering_scores(probabilities, 2), torch.tensor([[0.6, 0.7], [0.2, 0.3]]))
    torch.testing.assert_close(entering_scores(probabilities, None)[2], torch.tensor([0.1, 0.3]))
    assert entering_scores(probabilities[:0], 2).shape == (0, 2)
