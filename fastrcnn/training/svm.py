"""One linear SVM a class on the features of fc7, by hard negative mining (section 5.4 of the paper).

After SVMTrainer and SVMClassTrainer in the author's tools/train_svms.py, which takes over R-CNN's method and numbers:
positives of a class are its truth boxes alone, and negatives are gathered in one pass over the pictures from what the
SVM, as it is then, does not yet leave below its margin. Where this differs from the author's is in CONTRIBUTING.md.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.errors import UserError
from fastrcnn.inference.network import at_levels, autocast
from fastrcnn.model.fast_rcnn import FastRCNN, scaled_rois
from fastrcnn.progress import progress
from fastrcnn.settings import DetectionSettings, SvmSettings
from fastrcnn.structures import Batch

log = logging.getLogger(__name__)
# The author's numbers, of which there are no keys.
HARD_SCORE = -1.0001  # a RoI that can be a class's negative is one where its score is above this
EVICT_SCORE = -1.1  # negatives with a lower score are forgotten after a training


@dataclass(frozen=True)
class PictureFeatures:
    """One picture: what the network sees in its RoIs, and its truth. Boxes are half-open pixels of the picture."""

    features: np.ndarray  # (R, D) float32
    rois: Tensor  # (R, 4) float32, the truth boxes first
    boxes: Tensor  # (G, 4) float32, the truth
    labels: np.ndarray  # (G,) int64, 1 .. number of classes


@torch.no_grad()
def picture_features(
    model: FastRCNN,
    pyramids: Iterable[Sequence[Batch]],
    proposals: bool = True,
    rois_per_chunk: int = DetectionSettings.rois_per_chunk,
    dtype: torch.dtype = torch.float32,
) -> Iterator[PictureFeatures]:
    """Features of each image's truth boxes and, where `proposals`, of its proposals, as the network in detection
    computes them. Leaves the model in eval mode, in which there is no dropout.

    Boxes of the same cells each have their row, as with DEDUP_BOXES = 0 in the author's tools/train_svms.py. An image
    without any RoI has (0, D) features. pyramids: see Network.outputs.
    """
    model.eval()
    for pyramid in pyramids:
        for i, (boxes, labels) in enumerate(zip(pyramid[0].boxes, pyramid[0].labels, strict=True)):
            rois = torch.cat((boxes, pyramid[0].proposals[i])) if proposals else boxes
            features = np.zeros((0, model.head.out_features), np.float32)
            if len(rois):
                features = _vectors(model, pyramid, i, rois, rois_per_chunk, dtype).cpu().numpy()
            yield PictureFeatures(features, rois, boxes, labels.numpy())


def _vectors(
    model: FastRCNN, pyramid: Sequence[Batch], i: int, rois: Tensor, rois_per_chunk: int, dtype: torch.dtype
) -> Tensor:
    """Features (R, D) of RoIs (R, 4) of picture number `i`."""
    device = model.delta_mean.device
    scales = torch.stack([level.scales[i] for level in pyramid])  # (L,)

    def at(level: int, some: Tensor) -> tuple[Tensor]:
        images, sizes = (t[i : i + 1].to(device) for t in (pyramid[level].images, pyramid[level].sizes))
        scaled = scaled_rois(some, model.roi_op, scales[level : level + 1]).to(device)
        with autocast(device, dtype):
            maps = model.features(images, sizes)
            return (torch.cat([model.roi_vectors(maps, c).float() for c in scaled.split(rois_per_chunk)]),)

    return at_levels(rois, scales, at)[0]


def mean_length(pictures: Iterable[PictureFeatures]) -> float:
    """Mean Euclidean length of the features of all RoIs; 0 where there is none."""
    total, count = 0.0, 0
    for picture in pictures:
        total += float(np.linalg.norm(picture.features.astype(np.float64), axis=1).sum())
        count += len(picture.features)
    return total / max(count, 1)


def linear_svc() -> type:
    """scikit-learn's LinearSVC, which is liblinear. Raises UserError where scikit-learn is not installed."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError:
        raise UserError("training SVMs needs scikit-learn; install it with `pip install 'fastrcnn[svm]'`.") from None
    return LinearSVC


def objective(
    weight: np.ndarray, bias: float, positives: np.ndarray, negatives: np.ndarray, settings: SvmSettings
) -> float:
    """What training makes smallest, for features (P, D) and (N, D):

    1/2 |weight|^2 + 1/2 (bias / bias_scaling)^2 + c (positive_weight sum of max(0, 1 - score) over the positives
    + sum of max(0, 1 + score) over the negatives).
    """
    losses = settings.positive_weight * np.maximum(0, 1 - positives @ weight - bias).sum()
    losses += np.maximum(0, 1 + negatives @ weight + bias).sum()
    return float(0.5 * weight @ weight + 0.5 * (bias / settings.bias_scaling) ** 2 + settings.c * losses)


def fit(
    features: np.ndarray, positives: int, settings: SvmSettings, name: str = "", seed: int = 0
) -> tuple[np.ndarray, float]:
    """Weights (D,) and bias of the SVM of features (R, D) float64, of which the first `positives` are positive.

    Without an example of one kind the answer is the other for everything: no weights, and a bias of 1 or -1.
    name: of the class, for the warning where liblinear stops short of its tolerance. seed: of the order in which
        liblinear goes through the examples.
    """
    if positives in (0, len(features)):
        return np.zeros(features.shape[1]), 1.0 if positives else -1.0
    svm = linear_svc()(
        C=settings.c,
        class_weight={1: settings.positive_weight, -1: 1.0},
        intercept_scaling=settings.bias_scaling,
        penalty="l2",
        loss="hinge",
        dual=True,
        random_state=seed,
    )
    labels = np.full(len(features), -1)
    labels[:positives] = 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        svm.fit(features, labels)
    if any("converge" in str(w.message) for w in said):
        log.warning("%s: the SVM of %d examples is not at its optimum yet; a smaller c is easier", name, len(features))
    return svm.coef_[0], float(svm.intercept_[0])


class ClassTrainer:
    """The SVM of one class, its positives, and the negatives that it keeps. weight (D,) float32 and bias are for the
    features as the network gives them; training multiplies those by `scale`."""

    def __init__(self, name: str, positives: np.ndarray, scale: float, settings: SvmSettings, seed: int = 0) -> None:
        self.name = name
        self.positives = positives  # (P, D) float32
        self.negatives = positives[:0]  # (N, D) float32
        self.scale = scale
        self.settings = settings
        self.seed = seed
        self.weight = np.zeros(positives.shape[1], np.float32)
        self.bias = 0.0
        self._new: list[np.ndarray] = []

    def add(self, negatives: np.ndarray) -> None:
        """Takes in negatives (N, D), and trains where there are enough new ones."""
        self._new.append(negatives)
        if sum(map(len, self._new)) > self.settings.retrain_after:
            self.train()

    def train(self) -> float:
        """Trains on all that there is, and forgets the negatives that are easy then, unless all are. Returns the
        objective."""
        self.negatives, self._new = np.concatenate([self.negatives, *self._new]), []
        count = len(self.positives)
        features = np.concatenate((self.positives, self.negatives), dtype=np.float64)
        features *= self.scale
        weight, bias = fit(features, count, self.settings, self.name, self.seed)
        reached = objective(weight, bias, features[:count], features[count:], self.settings)
        hard = features[count:] @ weight + bias >= EVICT_SCORE
        log.debug("%s: %d positives, %d negatives, %d hard", self.name, count, len(hard), hard.sum())
        if hard.any():
            self.negatives = self.negatives[hard]
        self.weight, self.bias = (weight * self.scale).astype(np.float32), bias
        return reached


def hard_negatives(
    scores: np.ndarray, rois: Tensor, boxes: Tensor, labels: np.ndarray, settings: SvmSettings
) -> np.ndarray:
    """Which of R RoIs (R, 4) are hard negatives of which of C classes: (R, C) bool.

    scores: (R, C) of the SVMs. boxes (G, 4), labels (G,): the picture's truth; class k is column k - 1.
    """
    hard = scores > HARD_SCORE
    overlaps = box_ops.iou(rois.double(), boxes.double()).numpy()  # (R, G)
    for label in np.unique(labels):
        hard[:, label - 1] &= overlaps[:, labels == label].max(axis=1) < settings.negative_iou
    return hard


def gather_positives(pictures: Iterable[PictureFeatures], classes: int, dimension: int) -> list[np.ndarray]:
    """For each class the features (P, dimension) of its truth boxes, from pictures whose RoIs are those alone."""
    found: list[list[np.ndarray]] = [[np.zeros((0, dimension), np.float32)] for _ in range(classes)]
    for picture in pictures:
        for label in np.unique(picture.labels):
            found[label - 1].append(picture.features[picture.labels == label])
    return [np.concatenate(parts) for parts in found]


def train_svms(
    names: Sequence[str],
    positives: Sequence[np.ndarray],
    pictures: Iterable[PictureFeatures],
    scale: float,
    settings: SvmSettings,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, D) and biases (C,), float32, of SVMs for features as the network gives them.

    positives: of each class (P, D). pictures: all there are, each once, with the features of all RoIs. scale: factor on
    the features in training. A class without positives says -1 to everything.

    Memory: the positives, and of each class the negatives that are hard or new, float32; while a class is trained,
    these once more in float64 and in liblinear's own form, 16 bytes for each number that is not 0.
    """
    trainers = [ClassTrainer(name, p, scale, settings, seed) for name, p in zip(names, positives, strict=True)]
    if empty := [t.name for t in trainers if not len(t.positives)]:
        log.warning("no object to train on, so nothing will be found: %s", ", ".join(empty))
    for picture in pictures:
        if not len(picture.rois):
            continue
        weights, biases = stack(trainers)
        hard = hard_negatives(
            picture.features @ weights.T + biases, picture.rois, picture.boxes, picture.labels, settings
        )
        for trainer, rows in zip(trainers, hard.T, strict=True):
            if rows.any() and len(trainer.positives):
                trainer.add(picture.features[rows])
    for trainer in progress(trainers, len(trainers), "last training", "SVM"):
        reached = trainer.train()
        counts = len(trainer.positives), len(trainer.negatives)
        log.info("%s: %d positives, %d hard negatives, objective %.4f", trainer.name, *counts, reached)
    return stack(trainers)


def stack(trainers: Sequence[ClassTrainer]) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, D) and biases (C,) of all classes as they are."""
    return np.stack([t.weight for t in trainers]), np.array([t.bias for t in trainers], np.float32)


@torch.no_grad()
def put_into(layer: torch.nn.Linear, weights: np.ndarray, biases: np.ndarray) -> None:
    """Makes SVMs the class layer: background's row, the first, is 0, and class k's is row k - 1 of the arrays."""
    layer.weight.copy_(torch.from_numpy(np.concatenate((np.zeros_like(weights[:1]), weights))))
    layer.bias.copy_(torch.from_numpy(np.concatenate((np.zeros_like(biases[:1]), biases))))
