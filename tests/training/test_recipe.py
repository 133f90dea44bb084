"""The recipe written down a second time, in numpy float64 and in the inclusive coordinates of the author's code.

Boxes here are zero-based x1 y1 x2 y2 of the first and the last pixel, widths x2 - x1 + 1, as in overlaps and areas of
the author's repository (his first release leaves the 1 out in the regression code); the application's are half-open.
Both must draw the same RoIs and give the same targets, losses, gradients, steps and detections.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastrcnn.boxes import clip, decode
from fastrcnn.model.loss import fast_rcnn_loss
from fastrcnn.model.postprocess import best_boxes
from fastrcnn.model.sampling import RoISampler, delta_statistics
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import RoITargets
from fastrcnn.training.optim import make_optimizer, set_rate

CLASSES = 3
PICTURE = 375, 500  # height, width


# ------------------------------------------------------------------------------------------ the transcription


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """lib/utils/bbox.pyx"""
    found = np.zeros((len(a), len(b)))
    for i, (ax1, ay1, ax2, ay2) in enumerate(a):
        for j, (bx1, by1, bx2, by2) in enumerate(b):
            w, h = min(ax2, bx2) - max(ax1, bx1) + 1, min(ay2, by2) - max(ay1, by1) + 1
            if w > 0 and h > 0:
                areas = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1)
                found[i, j] = w * h / (areas - w * h)
    return found


def shape(box: np.ndarray) -> np.ndarray:
    """Centre and size."""
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    return np.array([box[0] + w / 2, box[1] + h / 2, w, h])


def target(roi: np.ndarray, truth: np.ndarray) -> np.ndarray:
    (x, y, w, h), (tx, ty, tw, th) = shape(roi), shape(truth)
    return np.array([(tx - x) / w, (ty - y) / h, np.log(tw / w), np.log(th / h)])


def sampled(
    proposals: np.ndarray, truth: np.ndarray, labels: np.ndarray, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """64 RoIs: at most 16 with IoU >= .5, the rest with IoU in [.1, .5); RoIs, labels and targets."""
    rois = np.concatenate((proposals, truth))
    iou = overlaps(rois, truth)
    best, which = iou.max(axis=1), iou.argmax(axis=1)

    def some(rows: np.ndarray, n: int) -> np.ndarray:
        return rows if len(rows) <= n else rows[torch.randperm(len(rows), generator=generator).numpy()[:n]]

    foreground = some(np.flatnonzero(best >= 0.5), 16)
    background = some(np.flatnonzero((best >= 0.1) & (best < 0.5)), 64 - len(foreground))
    targets = [target(rois[r], truth[which[r]]) for r in foreground] + [np.zeros(4)] * len(background)
    kept = np.concatenate((foreground, background))
    return rois[kept], np.concatenate((labels[which[foreground]], 0 * background)), np.array(targets)


def losses(logits: np.ndarray, deltas: np.ndarray, labels: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
    """Cross-entropy and smooth L1, each over all RoIs, and their gradients."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    n = len(labels)
    d_logits, d_deltas, box = p.copy(), np.zeros_like(deltas), 0.0
    d_logits[np.arange(n), labels] -= 1
    for r in np.flatnonzero(labels > 0):
        x = deltas[r, labels[r]] - targets[r]
        box += np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5).sum()
        d_deltas[r, labels[r]] = np.clip(x, -1, 1)
    return -np.log(p[np.arange(n), labels]).mean(), box / n, d_logits / n, d_deltas / n  # type: ignore[return-value]


def detections(rois: np.ndarray, p: np.ndarray, deltas: np.ndarray) -> list[tuple[int, float, tuple[float, ...]]]:
    """Decoded, clipped, the best 100 of each class, greedy suppression at IoU .3; (class, score, box)."""
    height, width = PICTURE
    found = []
    for c in range(1, CLASSES + 1):
        boxes = []
        for roi, (dx, dy, dw, dh) in zip(rois, deltas[:, c], strict=True):
            x, y, w, h = shape(roi)
            cx, cy, w, h = x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)
            x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2 - 1, cy + h / 2 - 1
            # Clipped at the outer edges of the picture's pixels: 0 and width - 1 for coordinates of pixels.
            boxes.append((max(x1, 0), max(y1, 0), min(x2, width - 1), min(y2, height - 1)))
        order = list(np.argsort(-p[:, c], kind="stable")[:100])
        while order:
            first = order.pop(0)
            found.append((c, p[first, c], boxes[first]))
            order = [i for i in order if overlaps(np.array([boxes[first]]), np.array([boxes[i]]))[0, 0] < 0.3]
    return found


# ------------------------------------------------------------------------------------------ against the application


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Proposals about and beside a few objects, in whole inclusive pixels; truth; labels."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, (300, 200), (4, 2))
    truth = np.concatenate((corner, corner + rng.integers(40, 170, (4, 2))), axis=1)
    near = np.repeat(truth, 60, axis=0) + rng.integers(-45, 46, (240, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 5)
    proposals = np.clip(near, 0, (499, 374, 499, 374))
    proposals[:, 2:] = np.maximum(proposals[:, 2:], proposals[:, :2])
    return proposals.astype(float), truth.astype(float), rng.integers(1, CLASSES + 1, 4)


def half_open(boxes: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(boxes + np.array((0, 0, 1, 1))).to(dtype)


@pytest.mark.parametrize("seed", range(8))
def test_the_same_rois_are_drawn_and_have_the_same_targets(seed: int) -> None:
    images = [scene(seed), scene(seed + 100)]
    theirs = [(half_open(p), half_open(t), torch.from_numpy(y)) for p, t, y in images]
    mean, std = delta_statistics(theirs, CLASSES)
    raw: dict[int, list[np.ndarray]] = {c: [] for c in range(1, CLASSES + 1)}
    for proposals, truth, labels in images:
        rois = np.concatenate((proposals, truth))
        iou = overlaps(rois, truth)
        for roi, best, which in zip(rois, iou.max(axis=1), iou.argmax(axis=1), strict=True):
            if best >= 0.5:
                t = target(roi, truth[which])
                raw[labels[which]] += [t, t * (-1, 1, 1, 1)]  # and its mirror image
    for c, values in raw.items():
        if values:
            np.testing.assert_allclose(mean[c], np.mean(values, axis=0), rtol=0, atol=1e-6)
            np.testing.assert_allclose(std[c], np.std(values, axis=0), rtol=0, atol=1e-6)

    sampler = RoISampler(mean, std)
    seeds = [seed, seed + 100]
    ours, targets = sampler(*([x[i] for x in theirs] for i in range(3)), seeds)
    drawn = [sampled(*image, torch.Generator().manual_seed(s)) for image, s in zip(images, seeds, strict=True)]
    np.testing.assert_array_equal(ours[:, 1:], np.concatenate([half_open(r).numpy() for r, _, _ in drawn]))
    np.testing.assert_array_equal(ours[:, 0], np.repeat((0, 1), [len(r) for r, _, _ in drawn]))
    labels = np.concatenate([y for _, y, _ in drawn])
    np.testing.assert_array_equal(targets.labels, labels)
    normalised = (np.concatenate([t for _, _, t in drawn]) - mean.numpy()[labels]) / std.numpy()[labels]
    np.testing.assert_allclose(targets.deltas, np.where(labels[:, None] > 0, normalised, 0), rtol=0, atol=2e-6)
    assert (labels > 0).sum() == 32
    assert len(labels) == 128


@pytest.mark.parametrize("seed", range(4))
def test_losses_gradients_and_a_step_of_the_solver(seed: int) -> None:
    """A linear network in float64 on the RoIs of a scene, two steps at different rates."""
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(64, 10)), rng.integers(0, CLASSES + 1, 64)
    targets = np.where(labels[:, None] > 0, rng.normal(size=(64, 4)), 0)
    layer = nn.Linear(10, 5 * (CLASSES + 1)).double()
    w, b = layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()
    vw, vb = np.zeros_like(w), np.zeros_like(b)
    optimizer = make_optimizer(layer)
    for rate in (0.1, 0.01):
        out = layer(torch.from_numpy(x))
        logits, deltas = out[:, : CLASSES + 1], out[:, CLASSES + 1 :].reshape(64, CLASSES + 1, 4)
        found = fast_rcnn_loss(logits, deltas, RoITargets(torch.from_numpy(labels), torch.from_numpy(targets)))
        plain = x @ w.T + b
        cls, box, d_logits, d_deltas = losses(
            plain[:, : CLASSES + 1], plain[:, CLASSES + 1 :].reshape(64, CLASSES + 1, 4), labels, targets
        )
        assert found.classification.item() == pytest.approx(cls, rel=1e-12)
        assert found.box.item() == pytest.approx(box, rel=1e-12)
        assert found.total.item() == pytest.approx(cls + box, rel=1e-12)
        set_rate(optimizer, rate)
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        slope = np.concatenate((d_logits, np.reshape(d_deltas, (64, -1))), axis=1)
        vw = 0.9 * vw + rate * (slope.T @ x + 0.0005 * w)
        vb = 0.9 * vb + 2 * rate * slope.sum(axis=0)
        w, b = w - vw, b - vb
        np.testing.assert_allclose(layer.weight.detach().numpy(), w, rtol=0, atol=1e-12)
        np.testing.assert_allclose(layer.bias.detach().numpy(), b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_detections_are_the_same_to_the_last_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rois = scene(seed)[0]
    logits = rng.normal(size=(len(rois), CLASSES + 1)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    deltas = rng.normal(size=(len(rois), CLASSES + 1, 4)) * 0.1
    height, width = PICTURE
    boxes = clip(decode(half_open(rois, torch.float64), torch.from_numpy(deltas)), height, width)
    limits = DetectionSettings(score_threshold=0.0, max_per_class=100, max_per_image=None)
    found = best_boxes(torch.from_numpy(p), boxes, limits)
    want = sorted(detections(rois, p, deltas), key=lambda d: -d[1])
    assert len(found) == len(want) > 30
    np.testing.assert_array_equal(found.labels, [c for c, _, _ in want])
    np.testing.assert_allclose(found.scores, [s for _, s, _ in want], rtol=1e-12)
    np.testing.assert_allclose(found.boxes - torch.tensor([0, 0, 1, 1]), [b for _, _, b in want], rtol=0, atol=1e-9)
