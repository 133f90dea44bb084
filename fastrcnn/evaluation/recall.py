"""Compute AP by object size, and the recall of proposals, which usually limits the recall of a detector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fastrcnn import boxes
from fastrcnn.evaluation.voc_ap import ClassAP, ClassDetections, ClassTruth, VocMetric, box_sizes, ranked_ap
from fastrcnn.structures import Sample

SIZES = {  # ranges of areas in square pixels: lower bound included, upper bound excluded
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, np.inf),
}


@dataclass(frozen=True)
class Recall:
    """The recall of proposals on a set of objects, without difficult ones. All fractions are None if it is empty."""

    objects: int  # number of objects in the set
    at_50: float | None  # fraction of objects for which a proposal has an IoU of at least 0.5
    at_70: float | None
    best_overlap: float | None  # average best overlap (ABO): mean IoU of an object and its best proposal


@dataclass(frozen=True)
class ProposalRecall:
    """Recall of the proposals of a data set: of all objects, by class and by size. Difficult objects are ignored."""

    all: Recall
    classes: dict[str, Recall]
    sizes: dict[str, Recall]  # keys: the names in SIZES
    images: int  # number of images
    proposals: float  # mean number of proposals per image
    fewest: int  # smallest number of proposals per image
    most: int  # largest number of proposals per image
    overlaps: np.ndarray = field(repr=False, compare=False)  # (G,) IoU of each object and its best proposal


def proposal_recall(
    proposals: Iterable[np.ndarray], samples: Iterable[Sample], classes: Sequence[str]
) -> ProposalRecall:
    """Compute the recall of proposals on the objects of `samples`, excluding difficult objects.

    proposals: for each sample, boxes (P, 4), half-open x1 y1 x2 y2 in pixels of the original image.
    classes: class names. Label k is classes[k - 1].

    The field `overlaps` of the result (the IoU of each object and its best proposal) has the order of `samples`.
    `proposals` and `samples` are iterated once, one image at a time. Raises ValueError if their lengths differ.
    """
    counts, best, labels, areas = [], [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for found, sample in zip(proposals, samples, strict=True):
        counts.append(len(found))
        counted = ~sample.difficult
        truth = torch.from_numpy(np.asarray(sample.boxes[counted], np.float64).reshape(-1, 4))
        overlaps = boxes.iou(truth, torch.from_numpy(np.asarray(found, np.float64).reshape(-1, 4)))
        best.append(overlaps.numpy().max(axis=1, initial=0.0))
        labels.append(sample.labels[counted])
        areas.append(boxes.area(truth).numpy())
    overlap, label, area = np.concatenate(best), np.concatenate(labels), np.concatenate(areas)
    return ProposalRecall(
        all=recall(overlap),
        classes=class_recalls(overlap, label, classes),
        sizes={name: recall(overlap[of_size]) for name, of_size in by_size(area).items()},
        images=len(counts),
        proposals=float(np.mean(counts)) if counts else 0.0,
        fewest=min(counts, default=0),
        most=max(counts, default=0),
        overlaps=overlap,
    )


def recall(overlap: np.ndarray) -> Recall:
    """Compute the recall of proposals from the IoU (G,) of each object and its best proposal."""
    if not len(overlap):
        return Recall(0, None, None, None)
    return Recall(len(overlap), float((overlap >= 0.5).mean()), float((overlap >= 0.7).mean()), float(overlap.mean()))


def class_recalls(overlap: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Recall]:
    """Compute the recall of each class from the IoU (G,), see `recall`, and the label (G,) from 1 of each object."""
    order = np.argsort(labels, kind="stable")
    begins = np.searchsorted(labels[order], np.arange(1, len(classes) + 2))
    return {name: recall(own) for name, own in zip(classes, np.split(overlap[order], begins)[1:-1], strict=True)}


def by_size(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Return, for each size in SIZES, a mask (N,) of the areas (N,) in its range. areas: in square pixels."""
    return {name: (areas >= low) & (areas < high) for name, (low, high) in SIZES.items()}


def size_ap(
    detections: ClassDetections, truth: ClassTruth, curve: ClassAP, metric: VocMetric
) -> dict[str, float | None]:
    """Compute the AP of a class for each size in SIZES, by the areas of the boxes.

    The AP is None if the class has no objects of this size, or only difficult ones. As in COCO's evaluation, objects of
    other sizes are treated like difficult objects: detections that match them are ignored. Detections of other sizes
    that match no object are also ignored. curve: the result of `class_ap` at IoU 0.5.
    """
    matches, correct = curve.matches[curve.order], curve.correct[curve.order]
    areas = box_sizes(detections.boxes[curve.order]).prod(axis=1)
    object_areas = box_sizes(truth.boxes).prod(axis=1)
    areas[matches >= 0] = object_areas[matches[matches >= 0]]
    ranked = by_size(areas)
    found: dict[str, float | None] = {}
    for name, objects in by_size(object_areas).items():
        positives = int(np.count_nonzero(~truth.difficult & objects))
        found[name] = ranked_ap(correct[ranked[name]], positives, metric) if positives else None
    return found
