"""Train one linear SVM per class on the features of fc7 with hard negative mining (paper, section 5.4).

This follows SVMTrainer and SVMClassTrainer in the author's tools/train_svms.py, which use the method and the constants
of R-CNN. The positives of a class are its ground-truth boxes only. The negatives are collected in one pass over the
images. They are the RoIs whose IoU with every object of the class is small, but to which the current SVM gives a score
above HARD_SCORE. docs/paper.md lists the differences from the author's code.
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
# The author's constants, which are not configurable.
HARD_SCORE = -1.0001  # possible negatives with a higher score are hard negatives
EVICT_SCORE = -1.1  # negatives with a lower score are dropped after training


@dataclass(frozen=True)
class PictureFeatures:
    """The fc7 features of an image's RoIs, and its ground truth. Boxes are half-open, in pixels of the image."""

    features: np.ndarray  # (R, D) float32
    rois: Tensor  # (R, 4) float32, ground-truth boxes first
    boxes: Tensor  # (G, 4) float32, ground truth
    labels: np.ndarray  # (G,) int64, 1 .. number of classes


@torch.no_grad()
def picture_features(
    model: FastRCNN,
    pyramids: Iterable[Sequence[Batch]],
    proposals: bool = True,
    rois_per_chunk: int = DetectionSettings.rois_per_chunk,
    dtype: torch.dtype = torch.float32,
) -> Iterator[PictureFeatures]:
    """Yield the fc7 features of each image's ground-truth boxes and, if `proposals` is set, of its proposals.

    The model is set to eval mode, which disables dropout. RoIs that pool the same cells are not merged, as with
    DEDUP_BOXES = 0 in the author's tools/train_svms.py. An image without RoIs has features of shape (0, D).
    pyramids: the images at one or more scales, as in Network.outputs. dtype: dtype of the forward pass.
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
    """Compute the fc7 features (R, D) float32 of RoIs (R, 4) of the image with index `i` in the batch."""
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
    """Return the mean Euclidean norm of the features over the RoIs of all images, or 0 if there are no RoIs."""
    total, count = 0.0, 0
    for picture in pictures:
        total += float(np.linalg.norm(picture.features.astype(np.float64), axis=1).sum())
        count += len(picture.features)
    return total / max(count, 1)


def linear_svc() -> type:
    """Return scikit-learn's class LinearSVC, which uses liblinear. Raises UserError if it cannot be imported."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError:
        raise UserError("Training SVMs needs scikit-learn. Install it with `pip install 'fastrcnn[svm]'`.") from None
    return LinearSVC


def objective(
    weight: np.ndarray, bias: float, positives: np.ndarray, negatives: np.ndarray, settings: SvmSettings
) -> float:
    """Compute the objective that SVM training minimises, for features of positives (P, D) and of negatives (N, D).

    It is 1/2 |weight|^2 + 1/2 (bias / bias_scaling)^2 + c (positive_weight x sum of max(0, 1 - score) over the
    positives + sum of max(0, 1 + score) over the negatives), where score = features @ weight + bias.
    """
    losses = settings.positive_weight * np.maximum(0, 1 - positives @ weight - bias).sum()
    losses += np.maximum(0, 1 + negatives @ weight + bias).sum()
    return float(0.5 * weight @ weight + 0.5 * (bias / settings.bias_scaling) ** 2 + settings.c * losses)


def fit(
    features: np.ndarray, positives: int, settings: SvmSettings, name: str = "", seed: int = 0
) -> tuple[np.ndarray, float]:
    """Train an SVM on features (R, D) float64; return its weights (D,) and its bias.

    The first `positives` rows are positive examples; all other rows are negative. Without positives, the weights are 0
    and the bias is -1. Without negatives, the weights are 0 and the bias is 1. name: the class, for the warning if
    liblinear does not converge. seed: determines the order in which liblinear processes the examples.
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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        svm.fit(features, labels)
    if any("converge" in str(w.message) for w in caught):
        log.warning("Class %s: the SVM did not converge on %d examples. Set a smaller c", name, len(features))
    return svm.coef_[0], float(svm.intercept_[0])


class ClassTrainer:
    """Trains the SVM of one class and keeps its positives and hard negatives.

    `weight` (D,) float32 and `bias` apply to the unscaled features. Training multiplies the features by `scale`.
    """

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
        """Add negatives (N, D), and train if there are more than `retrain_after` new ones."""
        self._new.append(negatives)
        if sum(map(len, self._new)) > self.settings.retrain_after:
            self.train()

    def train(self) -> float:
        """Train on all examples, drop the negatives below EVICT_SCORE (unless all are), and return the objective."""
        self.negatives, self._new = np.concatenate([self.negatives, *self._new]), []
        count = len(self.positives)
        features = np.concatenate((self.positives, self.negatives), dtype=np.float64)
        features *= self.scale
        weight, bias = fit(features, count, self.settings, self.name, self.seed)
        reached = objective(weight, bias, features[:count], features[count:], self.settings)
        hard = features[count:] @ weight + bias >= EVICT_SCORE
        log.debug("%s: %d positives, %d negatives, %d hard negatives", self.name, count, len(hard), hard.sum())
        if hard.any():
            self.negatives = self.negatives[hard]
        self.weight, self.bias = (weight * self.scale).astype(np.float32), bias
        return reached


def hard_negatives(
    scores: np.ndarray, rois: Tensor, boxes: Tensor, labels: np.ndarray, settings: SvmSettings
) -> np.ndarray:
    """Return a mask (R, C) that is True for the RoIs (R, 4) that are hard negatives of a class.

    These have a score above HARD_SCORE, and an IoU below negative_iou with every object of the class. scores: (R, C),
    from the SVMs. boxes (G, 4), labels (G,): the ground truth of the image. Column k - 1 belongs to label k.
    """
    hard = scores > HARD_SCORE
    overlaps = box_ops.iou(rois.double(), boxes.double()).numpy()  # (R, G)
    for label in np.unique(labels):
        hard[:, label - 1] &= overlaps[:, labels == label].max(axis=1) < settings.negative_iou
    return hard


def gather_positives(pictures: Iterable[PictureFeatures], classes: int, dimension: int) -> list[np.ndarray]:
    """Return, for each class, the features (P, dimension) of its ground-truth boxes.

    pictures: features of ground-truth boxes only.
    """
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
    """Train one SVM per class; return weights (C, D) and biases (C,), float32, for the unscaled features.

    names: class names. positives: features (P, D) of the positives of each class. pictures: the features of all RoIs of
    each image; each image occurs once. scale: factor by which the features are multiplied during training. The SVM of a
    class without positives gives every RoI the score -1.

    The positives and the hard and new negatives of all classes are kept in memory in float32. While a class is trained,
    its examples are also in memory in float64, and in liblinear's format, which needs 16 bytes per non-zero number.
    """
    trainers = [ClassTrainer(name, p, scale, settings, seed) for name, p in zip(names, positives, strict=True)]
    if empty := [t.name for t in trainers if not len(t.positives)]:
        log.warning("These classes have no training objects and will not be detected: %s", ", ".join(empty))
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
    for trainer in progress(trainers, len(trainers), "final training", "SVM"):
        reached = trainer.train()
        counts = len(trainer.positives), len(trainer.negatives)
        log.info("%s: %d positives, %d hard negatives, objective %.4f", trainer.name, *counts, reached)
    return stack(trainers)


def stack(trainers: Sequence[ClassTrainer]) -> tuple[np.ndarray, np.ndarray]:
    """Return the current weights (C, D) and biases (C,) of all classes."""
    return np.stack([t.weight for t in trainers]), np.array([t.bias for t in trainers], np.float32)


@torch.no_grad()
def put_into(layer: torch.nn.Linear, weights: np.ndarray, biases: np.ndarray) -> None:
    """Copy SVMs into a class layer. Row 0 (background) is set to 0, and row k is set to row k - 1 of the arrays."""
    layer.weight.copy_(torch.from_numpy(np.concatenate((np.zeros_like(weights[:1]), weights))))
    layer.bias.copy_(torch.from_numpy(np.concatenate((np.zeros_like(biases[:1]), biases))))
