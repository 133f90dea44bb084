"""How many objects the proposals find, the ceiling of a detector that uses them; and objects by the sizes of COCO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fastrcnn import boxes
from fastrcnn.evaluation.voc_ap import ClassAP, ClassDetections, ClassTruth, VocMetric, box_sizes, ranked_ap
from fastrcnn.structures import Sample

SIZES = {  # areas in square pixels, from and below
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, np.inf),
}


@dataclass(frozen=True)
class Recall:
    """Recall of some objects; None where there are none."""

    objects: int  # that are not difficult
    at_50: float | None  # share of objects that a proposal overlaps with IoU >= .5
    at_70: float | None
    best_overlap: float | None  # mean over the objects of the IoU with the best proposal (ABO)


@dataclass(frozen=True)
class ProposalRecall:
    """What the proposals of a data set find, in all, by class and by size."""

    all: Recall
    classes: dict[str, Recall]
    sizes: dict[str, Recall]  # by SIZES
    images: int
    proposals: float  # mean number per image
    fewest: int
    most: int
    overlaps: np.ndarray = field(repr=False, compare=False)  # (G,) IoU of each object with its best proposal


def proposal_recall(
    proposals: Iterable[np.ndarray], samples: Iterable[Sample], classes: Sequence[str]
) -> ProposalRecall:
    """Recall of the `proposals`, arrays (P_i, 4) one for each of the `samples`, in the images' own pixels.

    Label k is classes[k - 1]. Difficult objects are left out, as in evaluation; `overlaps` has the others in the order
    of the samples. Both inputs are read once and one image at a time. Raises ValueError where one is longer than the
    other.
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
        classes={name: recall(overlap[label == k]) for k, name in enumerate(classes, 1)},
        sizes={name: recall(overlap[of_size]) for name, of_size in by_size(area).items()},
        images=len(counts),
        proposals=float(np.mean(counts)) if counts else 0.0,
        fewest=min(counts, default=0),
        most=max(counts, default=0),
        overlaps=overlap,
    )


def recall(overlap: np.ndarray) -> Recall:
    """Recall from the IoU (G,) of each object with its best proposal."""
    if not len(overlap):
        return Recall(0, None, None, None)
    return Recall(len(overlap), float((overlap >= 0.5).mean()), float((overlap >= 0.7).mean()), float(overlap.mean()))


def by_size(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Of each size, which of the areas (N,) are of it (N,)."""
    return {name: (areas >= low) & (areas < high) for name, (low, high) in SIZES.items()}


def size_ap(
    detections: ClassDetections, truth: ClassTruth, curve: ClassAP, metric: VocMetric
) -> dict[str, float | None]:
    """AP of a class for the objects of each of SIZES; None where it has none. curve: what class_ap says at IoU .5.

    As in COCO's evaluation an object of another size is like a difficult one: a detection of it does not count, and
    nor does one that fits no object and is itself of another size.
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
