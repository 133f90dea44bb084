"""Average precision as PASCAL VOC defines it, for one class and for many.

The rules are those of py-faster-rcnn's Python evaluator (voc_eval.py), by which later detectors report VOC figures:

- detections are taken by falling score; of equal scores, the one that comes first in the input is first;
- each detection looks at the truth box of its image that it overlaps most (the first of several equal ones) alone;
- where that overlap is not above .5, the detection is false; where the box is difficult, the detection is
  left out, neither right nor wrong; the first detection of any other box is right, every later one false.

Fast R-CNN's own figures come from the VOC devkit in MATLAB (VOCevaldet.m, VOCap.m; Everingham et al., IJCV 2010,
section 4.2), which accepts an overlap of exactly .5, and reaches two of the eleven recalls earlier: see ELEVEN_POINTS.

Boxes are half-open, so that plain differences equal the inclusive "+1" widths of both. All sums are float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from fastrcnn.settings import Metric

if TYPE_CHECKING:  # saved detections are evaluated without loading torch
    from fastrcnn.structures import Detections, Sample

VocMetric = Literal["voc07", "voc10"]  # 11 points of the curve, or the area under it (from VOC2010 on)
VOC_METRICS: tuple[str, ...] = get_args(VocMetric)
METRICS: tuple[str, ...] = get_args(Metric)

# As numpy computes them, here and in py-faster-rcnn (`np.arange(0., 1.1, 0.1)`): .3, .6 and .7 come out one rounding
# step above the decimals, so that a recall of exactly 3/10, 6/10 or 7/10 does not reach its point. MATLAB computes the
# second half of the devkit's 0:0.1:1 backwards from 1, so its .6 and .7 are the decimals; its .3 is 3 * .1 as here.
ELEVEN_POINTS = np.linspace(0.0, 1.0, 11)

COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {  # types of the arrays below, and what follows N in their shapes
    "images": (np.int64, ()),
    "scores": (np.float64, ()),
    "boxes": (np.float64, (4,)),
    "difficult": (np.bool_, ()),
    "sizes": (np.float64, (2,)),
    "areas": (np.float64, ()),
}


class ClassBoxes:
    """What ClassDetections and ClassTruth share: their arrays are converted to COLUMNS, or refused by ValueError."""

    images: np.ndarray
    boxes: np.ndarray
    sizes: np.ndarray

    def __post_init__(self) -> None:
        for column in fields(self):  # type: ignore[arg-type]
            value = getattr(self, column.name)
            if value is None:
                value = box_sizes(self.boxes) if column.name == "sizes" else self.sizes.prod(1)
            dtype, rest = COLUMNS[column.name]
            value = np.asarray(value, dtype)
            if value.shape != (len(self.images), *rest):
                raise ValueError(f"{column.name} must have shape {(len(self.images), *rest)}, not {value.shape}")
            object.__setattr__(self, column.name, value)
        if self.images.min(initial=0) < 0:
            raise ValueError("an image's index is negative")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ClassDetections(ClassBoxes):
    """The detections of one class in all images."""

    images: np.ndarray  # (D,) int64, which image each detection is in: its index in the list of images
    scores: np.ndarray  # (D,) float64
    boxes: np.ndarray  # (D, 4) float64, half-open x1 y1 x2 y2 in pixels
    # (D, 2) float64, width and height as a COCO file has them; None: those of the boxes
    sizes: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.isnan(self.scores).any():
            raise ValueError("a score is NaN")


@dataclass(frozen=True)
class ClassTruth(ClassBoxes):
    """The objects of one class in all images."""

    images: np.ndarray  # (G,) int64, which image each object is in: its index in the list of images
    boxes: np.ndarray  # (G, 4) float64, half-open x1 y1 x2 y2 in pixels
    difficult: np.ndarray  # (G,) bool
    # (G, 2) float64, width and height, and (G,) float64, `area`, as a COCO file has them; None: those of the boxes
    sizes: np.ndarray = None  # type: ignore[assignment]
    areas: np.ndarray = None  # type: ignore[assignment]


@dataclass(frozen=True)
class ClassAP:
    """What became of the detections of one class. C of them count; the others match difficult boxes."""

    ap: float | None  # None where the class has no object that counts
    positives: int  # objects that are not difficult
    order: np.ndarray  # (C,) int64, the detections that count, by falling score
    precision: np.ndarray  # (C,) float64 after each of these
    recall: np.ndarray  # (C,) float64
    scores: np.ndarray  # (C,) float64, the score of each point of the curve
    matches: np.ndarray  # (D,) int64, in the input's order: the truth box overlapped most, or -1 if not enough
    overlaps: np.ndarray  # (D,) float64: IoU with the truth box overlapped most, matched or not; 0 without one
    correct: np.ndarray  # (D,) bool: the first detection of its truth box
    ignored: np.ndarray  # (D,) bool: matches a difficult box, does not count


def best_threshold(classes: Iterable[ClassAP]) -> float | None:
    """The score from which on the detections of all classes together have the best F1; None where none is right.

    Any score down to that of the next detection gives this F1. The result is halfway to it: in other images the
    detections that are right have lower scores too.
    """
    curves = list(classes)
    scores = np.concatenate([np.zeros(0), *(c.scores for c in curves)])
    right = np.concatenate([np.zeros(0), *(np.diff(np.round(c.recall * c.positives), prepend=0.0) for c in curves)])
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))[: len(scores)]  # of those with the same score
    f1 = 2 * right[last] / (last + 1 + sum(c.positives for c in curves))
    if not len(last) or not right[-1]:
        return None
    least, rest = scores[last[f1.argmax()]], scores[last[f1.argmax()] + 1 :]
    return float((least + rest[0]) / 2 if len(rest) else least)


@dataclass(frozen=True)
class MeanAP:
    """AP of every class by one metric, from 0 to 1."""

    mean: float | None  # over the classes that have an object that counts; None where no class has
    ap: dict[str, float | None]  # None: the class has no object that counts
    objects: dict[str, int]  # of each class, those that are not difficult
    figures: dict[str, float | None] = field(default_factory=dict)  # the metric's others by name, such as COCO's AP50
    classes: dict[str, ClassAP] = field(default_factory=dict, repr=False)  # the curves, where a class has just one


def mean_ap(
    detections: Mapping[str, ClassDetections],
    truth: Mapping[str, ClassTruth],
    metric: VocMetric = "voc07",
    min_iou: float = 0.5,
) -> MeanAP:
    """AP of each class of `truth`, and the mean over the classes that have an object which is not difficult.

    A class without detections has AP 0; evaluate.average_precision has all such definitions.
    """
    nothing = ClassDetections(np.zeros(0), np.zeros(0), np.zeros((0, 4)))
    classes = {name: class_ap(detections.get(name, nothing), t, metric, min_iou) for name, t in truth.items()}
    ap = {name: result.ap for name, result in classes.items()}
    known = [value for value in ap.values() if value is not None]
    objects = {name: result.positives for name, result in classes.items()}
    return MeanAP(float(np.mean(known)) if known else None, ap, objects, classes=classes)


def class_ap(
    detections: ClassDetections, truth: ClassTruth, metric: VocMetric = "voc07", min_iou: float = 0.5
) -> ClassAP:
    """AP of one class; a match needs an IoU above `min_iou`. Takes O(D) memory beside the input."""
    if metric not in VOC_METRICS:
        raise ValueError(f"metric must be one of {', '.join(VOC_METRICS)}, not {metric!r}")
    best, overlaps = most_overlapped(detections.images, detections.boxes, truth.images, truth.boxes)
    matches = np.where(overlaps > min_iou, best, -1)
    ignored = (matches >= 0) & np.append(truth.difficult, False)[matches]  # the appended one answers for -1

    order = np.argsort(-detections.scores, kind="stable")
    order = order[~ignored[order]]
    candidates = order[matches[order] >= 0]
    correct = np.zeros(len(detections), bool)
    correct[candidates[np.unique(matches[candidates], return_index=True)[1]]] = True  # the first of each truth

    positives = int(np.count_nonzero(~truth.difficult))
    found = np.cumsum(correct[order])
    precision = found / np.arange(1, len(order) + 1)
    recall = found / max(positives, 1)
    return ClassAP(
        ap=area(precision, recall, metric) if positives else None,
        positives=positives,
        order=order,
        precision=precision,
        recall=recall,
        scores=detections.scores[order],
        matches=matches,
        overlaps=overlaps,
        correct=correct,
        ignored=ignored,
    )


def most_overlapped(
    images: np.ndarray, boxes: np.ndarray, truth_images: np.ndarray, truth_boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The truth box of its image that each detection (D,) overlaps most, 0 where it overlaps none, and the IoU.

    Round k compares every detection with the k-th truth box of its image, so the work is the number of pairs
    and the memory that of a few arrays of length D.
    """
    by_image = np.argsort(truth_images, kind="stable")
    number = 1 + max(truth_images.max(initial=-1), images.max(initial=-1))
    ends = np.cumsum(np.bincount(truth_images, minlength=number))  # of each image's run in `by_image`
    last = ends[images]
    first = np.append(0, ends)[images]
    best = np.zeros(len(images), np.int64)
    best_iou = np.zeros(len(images))
    left = np.flatnonzero(first < last)  # detections that have a k-th truth box
    k = 0
    while len(left):
        candidates = by_image[first[left] + k]
        iou = _iou(boxes[left], truth_boxes[candidates])
        better = iou > best_iou[left]
        best[left[better]] = candidates[better]
        best_iou[left[better]] = iou[better]
        k += 1
        left = left[first[left] + k < last[left]]
    return best, best_iou


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (R,) of each box of `a` (R, 4) with the box of `b` (R, 4) beside it; 0 for empty boxes."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    meet = (width > 0) & (height > 0)
    intersection = width * height
    areas = [(c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b)]
    union = areas[0] + areas[1] - intersection
    return np.divide(intersection, union, out=np.zeros(len(a)), where=meet)


def area(precision: np.ndarray, recall: np.ndarray, metric: VocMetric) -> float:
    """AP of a curve: precision and recall (C,) after each detection that counts, by falling score.

    voc07: the mean over the recalls 0, .1, ..., 1 of the best precision at that recall or a higher one.
    """
    best = envelope(precision)
    if metric == "voc07":
        return float(np.append(best, 0.0)[np.searchsorted(recall, ELEVEN_POINTS, "left")].mean())
    return float((np.diff(recall, prepend=0.0) * best).sum())


def ranked_ap(correct: np.ndarray, positives: int, metric: VocMetric) -> float:
    """AP of detections (C,) by falling score, each correct or false, where `positives` objects (>= 1) count."""
    hits = np.cumsum(correct)
    return area(hits / np.arange(1, len(hits) + 1), hits / positives, metric)


def envelope(precision: np.ndarray) -> np.ndarray:
    """The best precision (..., C) at a recall or a higher one; recall rises along the last axis."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def box_sizes(boxes: np.ndarray) -> np.ndarray:
    """Widths and heights (N, 2) of boxes (N, 4)."""
    boxes = np.asarray(boxes, np.float64)
    return boxes[..., 2:] - boxes[..., :2]


def truth_by_class(samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, ClassTruth]:
    """The objects of `samples`, class by class: label k is classes[k - 1], an image's index is its place."""
    columns = {
        "images": [np.full(len(s.labels), i) for i, s in enumerate(samples)],
        "boxes": [s.boxes for s in samples],
        "difficult": [s.difficult for s in samples],
        "sizes": [box_sizes(s.boxes) if s.sizes is None else s.sizes for s in samples],
        "areas": [box_sizes(s.boxes).prod(1) if s.areas is None else s.areas for s in samples],
    }
    rows = _by_class([s.labels for s in samples], columns, classes)
    return {name: ClassTruth(**arrays) for name, arrays in rows.items()}


def detections_by_class(detections: Sequence[Detections], classes: Sequence[str]) -> dict[str, ClassDetections]:
    """The detections of each image, class by class; labels and images are counted as in truth_by_class."""
    columns = {
        "images": [np.full(len(d), i) for i, d in enumerate(detections)],
        "scores": [d.scores.float().cpu().numpy() for d in detections],
        "boxes": [d.boxes.float().cpu().numpy() for d in detections],
    }
    rows = _by_class([d.labels.cpu().numpy() for d in detections], columns, classes)
    return {name: ClassDetections(**arrays) for name, arrays in rows.items()}


def _by_class(
    labels: list[np.ndarray], columns: dict[str, list[np.ndarray]], classes: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """The rows of each label 1, 2, ..., in their order; labels and columns are lists of arrays, one an image."""
    label = np.concatenate([np.zeros(0, np.int64), *labels])
    order = np.argsort(label, kind="stable")
    ends = np.searchsorted(label[order], np.arange(1, len(classes) + 2))
    arrays = {name: np.concatenate([np.zeros((0, *COLUMNS[name][1])), *parts]) for name, parts in columns.items()}
    return {
        name: {column: array[order[start:end]] for column, array in arrays.items()}
        for name, (start, end) in zip(classes, pairwise(ends.tolist()), strict=True)
    }
