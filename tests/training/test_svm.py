"""SVMs: the minimum against the dual solved by scipy, hard negatives and trainings traced by hand, and the network."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fastrcnn.errors import UserError
from fastrcnn.inference.detect import detect_batch
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN, scaled_rois
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Batch, Sample
from fastrcnn.training import svm
from fastrcnn.training.svm import (
    PictureFeatures,
    SvmSettings,
    fit,
    gather_positives,
    hard_negatives,
    mean_length,
    objective,
    picture_features,
    put_into,
    train_svms,
)


def examples(positives: int, negatives: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Features of two clouds that overlap, positives first."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(positives + negatives, dimension))
    features[:positives] += 0.8
    return features


def by_the_dual(x: np.ndarray, positives: int, settings: SvmSettings) -> tuple[np.ndarray, float, float]:
    """Weights, bias and least objective from the dual: a quadratic in a box, one multiplier an example.

    The bias is the weight of one more feature, which is `bias_scaling` everywhere.
    """
    y = np.where(np.arange(len(x)) < positives, 1.0, -1.0)
    wide = np.hstack((x, np.full((len(x), 1), settings.bias_scaling))) * y[:, None]
    most = settings.c * np.where(y > 0, settings.positive_weight, 1.0)
    gram = wide @ wide.T
    found = minimize(
        lambda a: 0.5 * a @ gram @ a - a.sum(),
        np.zeros(len(x)),
        jac=lambda a: gram @ a - 1,
        method="L-BFGS-B",
        bounds=[(0, m) for m in most],
        options={"maxiter": 100_000, "maxfun": 1_000_000, "ftol": 1e-15, "gtol": 1e-10},
    )
    v = found.x @ wide
    return v[:-1], float(v[-1] * settings.bias_scaling), -float(found.fun)


@pytest.mark.parametrize(
    "settings",
    [SvmSettings(), SvmSettings(c=0.02, bias_scaling=1.0, positive_weight=5.0), SvmSettings(c=0.5, bias_scaling=0.3)],
    ids=["the author's numbers", "heavy positives", "a dear bias"],
)
def test_the_weights_are_the_minimum_that_the_dual_gives(settings: SvmSettings) -> None:
    x = examples(30, 90, 6) * (20 if settings.c == 0.001 else 1)
    weight, bias, least = by_the_dual(x, 30, settings)
    found, found_bias = fit(x, 30, settings)
    assert objective(found, found_bias, x[:30], x[30:], settings) == pytest.approx(least, rel=1e-3)
    np.testing.assert_allclose(found, weight, atol=0.01 * np.abs(weight).max())
    assert found_bias == pytest.approx(bias, abs=0.01 * max(abs(bias), np.abs(weight).max()))


def test_the_objective_by_hand() -> None:
    """Scores 2 x + 1: positives at 0 and -1 lose 0 and 2, negatives at -1 and 1 lose 0 and 4."""
    settings = SvmSettings(c=0.1, bias_scaling=2.0, positive_weight=3.0)
    positives, negatives = np.array([[0.0], [-1.0]]), np.array([[-1.0], [1.0]])
    expected = 0.5 * 4 + 0.5 * 0.25 + 0.1 * (3 * 2 + 4)
    assert objective(np.array([2.0]), 1.0, positives, negatives, settings) == pytest.approx(expected)


def test_with_examples_of_one_kind_the_answer_is_always_the_same() -> None:
    for positives, bias in ((0, -1.0), (4, 1.0)):
        weight, found = fit(np.ones((4, 3)), positives, SvmSettings())
        assert (weight.tolist(), found) == ([0, 0, 0], bias)


def test_an_svm_short_of_its_optimum_is_said(caplog: pytest.LogCaptureFixture) -> None:
    fit(examples(30, 30, 3) * 1000, 30, SvmSettings(c=1e6), "cat")
    assert "cat: the SVM did not converge on 60 examples" in caplog.text


def test_hard_negatives_by_hand() -> None:
    """Two truth boxes, of classes 1 and 2, and RoIs that overlap the first by 1, 1/2, .3 and 1/4."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    rois = torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 10], [0, 0, 3, 10], [0, 0, 2.5, 10], [20, 20, 30, 30]])
    high = np.zeros((5, 3))
    hard = hard_negatives(high, rois, boxes, np.array([1, 2]), SvmSettings())
    assert hard[:, 0].tolist() == [False, False, False, True, True]  # .3 is not below .3
    assert hard[:, 1].all()
    assert hard[:, 2].all()  # no truth of this class
    high[:, 1] = [-1.0, -1.00005, -1.0001, -1.0002, 3]
    hard = hard_negatives(high, rois, boxes, np.array([1, 2]), SvmSettings())
    assert hard[:, 1].tolist() == [True, True, False, False, True]
    # A class with two objects: the better overlap counts.
    assert hard_negatives(high, rois, boxes, np.array([2, 2]), SvmSettings())[:, 1].tolist() == [False] * 4 + [True]
    none = hard_negatives(np.zeros((5, 3)), rois, boxes[:0], np.zeros(0, np.int64), SvmSettings(negative_iou=0.1))
    assert none.all()


AWAY, ON = [50.0, 50, 60, 60], [0.0, 0, 10, 10]


def picture(values: list[float], rois: list[list[float]] | None = None, label: int = 1) -> PictureFeatures:
    """RoIs with one feature each; away from the picture's one object, which is of class `label`, unless said."""
    return PictureFeatures(
        np.array(values, np.float32)[:, None],
        torch.tensor(rois or [AWAY] * len(values)).reshape(-1, 4),
        torch.tensor([ON]),
        np.array([label]),
    )


SEPARATING = SvmSettings(c=1000.0, retrain_after=2)  # dear losses: the widest margin


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_mining_traced_by_hand(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One positive, at 1. The SVM is 0 at first, so everything is hard until the third negative comes."""
    seen: list[list[float]] = []

    def fitted(features: np.ndarray, positives: int, settings: SvmSettings, *others: Any) -> Any:
        assert positives == 1
        seen.append(features[:, 0].tolist())
        return fit(features, positives, settings, *others)

    monkeypatch.setattr(svm, "fit", fitted)
    pictures = [
        picture([1 / scale, -1 / scale, -3 / scale], [ON, AWAY, AWAY]),  # two negatives: no training yet
        picture([]),
        picture([-1 / scale]),  # a third: training, w = 1 and b = 0; what is at -3 is forgotten
        picture([-0.9 / scale, -1.5 / scale, -0.5 / scale], [AWAY, AWAY, ON]),  # hard; below the margin; on the object
    ]
    positives = [np.array([[1 / scale]], np.float32)]
    weights, biases = train_svms(["cat"], positives, pictures, scale, SEPARATING)
    # At the end w + b = 1 and -.9 w + b = -1.
    assert seen == [pytest.approx(v) for v in ([1.0, -1, -3, -1], [1.0, -1, -1, -0.9])]
    assert weights.shape == (1, 1)
    assert weights[0, 0] == pytest.approx(2 / 1.9 * scale, rel=0.01)
    assert biases[0] == pytest.approx(1 - 2 / 1.9, abs=0.01)


def test_easy_negatives_are_forgotten_unless_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = svm.ClassTrainer("cat", np.array([[1.0]], np.float32), 1.0, replace(SEPARATING, retrain_after=100))
    for value in (-1.0, -0.9, -3.0):
        trainer.add(np.array([[value]], np.float32))
    assert len(trainer.negatives) == 0
    trainer.train()
    assert trainer.negatives[:, 0].tolist() == [np.float32(-0.9)]  # -1 scores -1.105
    monkeypatch.setattr(svm, "EVICT_SCORE", 0.0)
    loose = svm.ClassTrainer("cat", np.array([[1.0]], np.float32), 1.0, replace(SEPARATING, retrain_after=2))
    loose.add(np.array([[-1.0], [-2.0]], np.float32))
    loose.train()
    assert loose.negatives[:, 0].tolist() == [-1, -2]


def test_each_class_has_its_own_negatives(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object of class 1 is a negative of class 2; nothing is learned of class 3, so that nothing is kept for it."""
    gathered: list[tuple[str, float]] = []
    add = svm.ClassTrainer.add

    def adding(trainer: svm.ClassTrainer, negatives: np.ndarray) -> None:
        gathered.extend((trainer.name, value) for value in negatives[:, 0].tolist())
        add(trainer, negatives)

    monkeypatch.setattr(svm.ClassTrainer, "add", adding)
    positives = [np.array([[1.0]], np.float32), np.array([[-1.0]], np.float32), np.zeros((0, 1), np.float32)]
    pictures = [picture([1.0], [ON], label=1), picture([-1.0], [ON], label=2)]
    weights, biases = train_svms(["a", "b", "c"], positives, pictures, 1.0, replace(SEPARATING, retrain_after=9))
    np.testing.assert_allclose(weights[:, 0], [1, -1, 0], atol=0.01)  # liblinear stops near the optimum
    np.testing.assert_allclose(biases, [0, 0, -1], atol=0.01)
    assert gathered == [("b", 1.0), ("a", -1.0)]
    assert "will not be detected: c" in caplog.text


def test_training_is_the_same_each_time() -> None:
    def run() -> tuple[np.ndarray, np.ndarray]:
        x = examples(20, 200, 8, seed=3).astype(np.float32)
        pictures = [
            PictureFeatures(part, torch.tensor([AWAY] * 50), torch.tensor([ON]), np.array([1]))
            for part in np.split(x[20:], 4)
        ]
        return train_svms(["cat"], [x[:20]], pictures, 1.0, SvmSettings(c=0.1, retrain_after=60))

    first, second = run(), run()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_positives_are_the_truth_boxes_of_each_class() -> None:
    def of(values: list[float], labels: list[int]) -> PictureFeatures:
        boxes = torch.tensor([ON] * len(values)).reshape(-1, 4)
        return PictureFeatures(np.array(values, np.float32).reshape(-1, 1), boxes, boxes, np.array(labels, np.int64))

    found = gather_positives([of([1, 2, 3], [2, 1, 2]), of([], []), of([4], [1])], 3, 1)
    assert [f[:, 0].tolist() for f in found] == [[2, 4], [1, 3], []]
    assert all(f.dtype == np.float32 for f in found)


def test_the_mean_length_is_over_all_rois() -> None:
    one = PictureFeatures(np.array([[3.0, 4], [0, 0]], np.float32), torch.zeros(2, 4), torch.zeros(0, 4), np.zeros(0))
    other = PictureFeatures(np.array([[6.0, 8]], np.float32), torch.zeros(1, 4), torch.zeros(0, 4), np.zeros(0))
    assert mean_length([one, other]) == pytest.approx(5.0)
    assert mean_length([]) == 0.0


# The network -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(3, width=0.05, roi_size=3, dropout=0.5, classifier="svm")


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(12, 2, generator=generator) * 20
    proposals = torch.cat((corner, corner + 4 + torch.rand(12, 2, generator=generator) * 30), dim=1)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Batch(
        images=torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator),
        sizes=torch.tensor([[60, 80], [64, 96]]),
        scales=torch.tensor([1.5, 1.0], dtype=torch.float64),
        proposals=[proposals, torch.zeros(0, 4)],
        boxes=[torch.tensor([[2.0, 3, 20, 30], [10, 10, 40, 35]]), torch.zeros(0, 4)],
        labels=[torch.tensor([3, 1]), torch.zeros(0, dtype=torch.int64)],
        samples=[Sample(str(i), Path(f"{i}.jpg"), 64, 48, *nothing) for i in range(2)],
    )


def test_scores_of_the_network_are_those_of_the_svms(model: FastRCNN) -> None:
    """Features of fc7 times weights, in float64, are what detection makes of the same RoIs; background's score is 0."""
    found = list(picture_features(model.train(), [[batch()]], rois_per_chunk=5))
    assert [f.features.shape for f in found] == [(14, 205), (0, 205)]
    assert found[0].features.dtype == np.float32
    torch.testing.assert_close(found[0].rois[:2], batch().boxes[0])
    assert found[0].labels.tolist() == [3, 1]
    truth = next(picture_features(model, [[batch()]], proposals=False))
    np.testing.assert_allclose(truth.features, found[0].features[:2], atol=1e-5)

    rng = np.random.default_rng(0)
    weights, biases = rng.normal(size=(3, 205)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    put_into(model.cls_score, weights, biases)
    first = batch()
    rois = scaled_rois(torch.cat((torch.zeros(14, 1), found[0].rois), dim=1), model.roi_op, first.scales[:1])
    with torch.no_grad():
        maps = [m[:1] for m in model.features(first.images, first.sizes)]
        scores, _ = TorchNetwork(model).roi_outputs(maps, rois)
    expected = found[0].features.astype(np.float64) @ weights.astype(np.float64).T + biases
    np.testing.assert_allclose(scores[:, 1:], expected, rtol=1e-4, atol=1e-4)
    assert (scores[:, 0] == 0).all()
    assert expected.min() < -1 < 1 < expected.max()


def test_margins_below_zero_are_detections_without_a_threshold(model: FastRCNN) -> None:
    put_into(model.cls_score, np.zeros((3, 205), np.float32), np.array([-2.0, -0.5, -7.0], np.float32))
    everything = DetectionSettings(score_threshold=None, nms_iou=2.0, max_per_image=None)
    network = TorchNetwork(model)
    found = detect_batch(network, [batch()], everything)[0]
    assert len(found) == 3 * 12
    assert found.scores.unique().tolist() == [-7, -2, -0.5]
    assert found.labels[:12].tolist() == [2] * 12
    assert len(detect_batch(network, [batch()], replace(everything, score_threshold=-2.0))[0]) == 24


def test_without_scikit_learn_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'fastrcnn\[svm\]'"):
        svm.linear_svc()
