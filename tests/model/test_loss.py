"""The loss by hand, and with its gradient against a transcription in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastrcnn.model.loss import fast_rcnn_loss
from fastrcnn.structures import RoITargets


def transcription(
    logits: np.ndarray, deltas: np.ndarray, labels: np.ndarray, wanted: np.ndarray, box_weight: float
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Classification, box, and the gradients of their sum by logits and deltas; the paper's equations, in loops."""
    k = len(labels)
    classification = box = 0.0
    grad_logits, grad_deltas = np.zeros_like(logits), np.zeros_like(deltas)
    for i, label in enumerate(labels):
        e = np.exp(logits[i] - logits[i].max())
        p = e / e.sum()
        classification -= math.log(p[label]) / k
        grad_logits[i] = p / k
        grad_logits[i, label] -= 1 / k
        if label == 0:
            continue
        for j in range(4):
            x = deltas[i, label, j] - wanted[i, j]
            box += (0.5 * x * x if abs(x) < 1 else abs(x) - 0.5) / k
            grad_deltas[i, label, j] = box_weight * (x if abs(x) < 1 else math.copysign(1, x)) / k
    return classification, box, grad_logits, grad_deltas


def test_by_hand() -> None:
    """Two RoIs, two classes. Foreground: differences .5, 2, 0, -1 give .125 + 1.5 + 0 + .5, over two RoIs."""
    logits = torch.tensor([[0.0, math.log(2), 0.0], [0.0, 0.0, 0.0]])  # probabilities 1/4, 1/2, 1/4 and thirds
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 1] = torch.tensor([0.5, 2.0, 0.0, -1.0])
    losses = fast_rcnn_loss(logits, deltas, RoITargets(torch.tensor([1, 0]), torch.zeros(2, 4)), box_weight=3.0)
    classification = (math.log(2) + math.log(3)) / 2
    assert losses.classification.item() == pytest.approx(classification)
    assert losses.box.item() == pytest.approx(2.125 / 2)
    assert losses.total.item() == pytest.approx(classification + 3 * 2.125 / 2)


@pytest.mark.parametrize("box_weight", [1.0, 2.5])
def test_values_and_gradients_are_those_of_the_equations(box_weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    deltas = (2 * torch.randn(12, 5, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 0, 2, 2, 1, 4, 0])
    wanted = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    losses = fast_rcnn_loss(logits, deltas, RoITargets(labels, wanted), box_weight)
    losses.total.backward()
    expected = transcription(
        logits.detach().numpy(), deltas.detach().numpy(), labels.numpy(), wanted.numpy(), box_weight
    )
    assert losses.classification.item() == pytest.approx(expected[0], rel=1e-12)
    assert losses.box.item() == pytest.approx(expected[1], rel=1e-12)
    assert losses.total.item() == pytest.approx(expected[0] + box_weight * expected[1], rel=1e-12)
    np.testing.assert_allclose(logits.grad, expected[2], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(deltas.grad, expected[3], rtol=1e-10, atol=1e-14)


def test_background_has_no_box_loss_whatever_its_deltas_are() -> None:
    deltas = torch.full((3, 2, 4), 7.0, requires_grad=True)
    targets = RoITargets(torch.zeros(3, dtype=torch.long), torch.full((3, 4), -5.0))
    losses = fast_rcnn_loss(torch.zeros(3, 2), deltas, targets)
    assert losses.box.item() == 0
    losses.total.backward()
    assert deltas.grad is not None
    assert not deltas.grad.any()


def test_no_rois_give_zero_with_gradients() -> None:
    logits, deltas = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3, 4, requires_grad=True)
    losses = fast_rcnn_loss(logits, deltas, RoITargets(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)))
    assert losses.total.item() == 0
    losses.total.backward()
    assert logits.grad is not None
    assert deltas.grad is not None
