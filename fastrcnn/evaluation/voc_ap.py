"""Average precision as defined by PASCAL VOC, for one class and for several classes.

The rules are those of py-faster-rcnn's Python evaluator (voc_eval.py), which later detectors use for VOC results:

- Detections are processed by descending score. Detections with equal scores keep their input order.
- Each detection is compared only with the ground-truth box of its class and image that has the largest IoU (the first
  one if several are equal).
- If this IoU is not above 0.5, the detection is false. Otherwise, the detection is ignored if the box is difficult. The
  first detection that is matched to any other box is correct, and every later one is false.

The results in the Fast R-CNN paper were computed with the VOC devkit in MATLAB (VOCevaldet.m, VOCap.m; Everingham et
al., IJCV 2010, section 4.2). The devkit also accepts an IoU of exactly 0.5, and it differs for two of the eleven recall
levels (see ELEVEN_POINTS).

Boxes are half-open, so x2 - x1 is the width that both programs compute as x2 - x1 + 1 from inclusive boxes. All
computations use float64.
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

# The same values as in py-faster-rcnn (`np.arange(0., 1.1, 0.1)`). In numpy, 0.3, 0.6 and 0.7 are one rounding step
# above the nearest float64, so a recall of exactly 3/10, 6/10 or 7/10 does not reach its point. MATLAB computes the
# second half of the devkit's 0:0.1:1 backwards from 1, so its 0.6 and 0.7 are the nearest float64. Its 0.3 is 3 * 0.1,
# as in numpy.
ELEVEN_POINTS = np.linspace(0.0, 1.0, 11)

COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {  # dtype of each array below, and its shape without the first axis
    "images": (np.int64, ()),
    "scores": (np.float64, ()),
    "boxes": (np.float64, (4,)),
    "difficult": (np.bool_, ()),
    "sizes": (np.float64, (2,)),
    "areas": (np.float64, ()),
}


class ClassBoxes:
    """Base class of ClassDetections and ClassTruth. Converts the arrays to the dtypes of the fields.

    Raises ValueError if an array has a wrong shape, or if an image index is negative.
    """

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
            raise ValueError("an image index is negative")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ClassDetections(ClassBoxes):
    """The detections of a class in all images. Raises ValueError for wrong shapes, negative indices and NaN scores."""

    images: np.ndarray  # (D,) int64, index of the image of each detection
    scores: np.ndarray  # (D,) float64
    boxes: np.ndarray  # (D, 4) float64, half-open x1 y1 x2 y2 in pixels
    # (D, 2) float64, width and height from a COCO file. If None, they are computed from the boxes.
    sizes: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.isnan(self.scores).any():
            raise ValueError("a score is NaN")


@dataclass(frozen=True)
class ClassTruth(ClassBoxes):
    """The ground-truth objects of one class in all images."""

    images: np.ndarray  # (G,) int64, index of the image of each object
    boxes: np.ndarray  # (G, 4) float64, half-open x1 y1 x2 y2 in pixels
    difficult: np.ndarray  # (G,) bool
    # (G, 2) float64 width and height, and (G,) float64 `area`, from a COCO file. If None, computed from the boxes.
    sizes: np.ndarray = None  # type: ignore[assignment]
    areas: np.ndarray = None  # type: ignore[assignment]


@dataclass(frozen=True)
class ClassAP:
    """The result of evaluating one class. C of the D detections count; those that match difficult boxes are ignored."""

    ap: float | None  # None if the class has no object that is not difficult
    positives: int  # number of objects that are not difficult
    order: np.ndarray  # (C,) int64, the detections that count, by descending score
    precision: np.ndarray  # (C,) float64, after each of these detections
    recall: np.ndarray  # (C,) float64, after each of these detections
    scores: np.ndarray  # (C,) float64, the score of each point of the curve
    matches: np.ndarray  # (D,) int64, in input order: index of the box with the largest IoU, or -1 without a match
    overlaps: np.ndarray  # (D,) float64: the largest IoU with a ground-truth box, matched or not; 0 if there is none
    correct: np.ndarray  # (D,) bool: the first detection of its ground-truth box
    ignored: np.ndarray  # (D,) bool: matches a difficult box and does not count


def best_threshold(classes: Iterable[ClassAP]) -> float | None:
    """Return the score threshold with the best F1 over all classes, or None if no detection is correct.

    All thresholds between the lowest accepted score and the next lower score have the same F1. The midpoint of the two
    scores is returned, so that correct detections with slightly lower scores in other images are accepted too. If there
    is no lower score, the lowest accepted score is returned.
    """
    curves = list(classes)
    scores = np.concatenate([np.zeros(0), *(c.scores for c in curves)])
    right = np.concatenate([np.zeros(0), *(np.diff(np.round(c.recall * c.positives), prepend=0.0) for c in curves)])
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))[: len(scores)]  # last detection of each score
    f1 = 2 * right[last] / (last + 1 + sum(c.positives for c in curves))
    if not len(last) or not right[-1]:
        return None
    least, rest = scores[last[f1.argmax()]], scores[last[f1.argmax()] + 1 :]
    return float((least + rest[0]) / 2 if len(rest) else least)


@dataclass(frozen=True)
class MeanAP:
    """AP of every class by one metric, from 0 to 1. Difficult objects do not count."""

    mean: float | None  # over the classes that have an object that counts; None if there is no such class
    ap: dict[str, float | None]  # by class name; None if the class has no object that counts
    objects: dict[str, int]  # number of objects of each class that are not difficult
    figures: dict[str, float | None] = field(default_factory=dict)  # other values of the metric, such as COCO's AP50
    classes: dict[str, ClassAP] = field(default_factory=dict, repr=False)  # curves; empty for coco


def mean_ap(
    detections: Mapping[str, ClassDetections],
    truth: Mapping[str, ClassTruth],
    metric: VocMetric = "voc07",
    min_iou: float = 0.5,
) -> MeanAP:
    """Compute the AP of each class of `truth`, and the mean AP.

    The mean is over the classes that have at least one object that is not difficult. A match needs an IoU above
    `min_iou`. See `evaluate.average_precision` for special cases, such as empty classes.
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
    """Evaluate the D detections of one class. A match needs an IoU above `min_iou`.

    Needs O(D) memory in addition to the input. Raises ValueError if the metric is not voc07 or voc10.
    """
    if metric not in VOC_METRICS:
        raise ValueError(f"metric must be one of {', '.join(VOC_METRICS)}, not {metric!r}")
    best, overlaps = most_overlapped(detections.images, detections.boxes, truth.images, truth.boxes)
    matches = np.where(overlaps > min_iou, best, -1)
    ignored = (matches >= 0) & np.append(truth.difficult, False)[matches]  # the appended value is for -1

    order = np.argsort(-detections.scores, kind="stable")
    order = order[~ignored[order]]
    candidates = order[matches[order] >= 0]
    correct = np.zeros(len(detections), bool)
    correct[candidates[np.unique(matches[candidates], return_index=True)[1]]] = True  # first of each box

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
    """Find the ground-truth box with the largest IoU in the image of each detection.

    images, truth_images: image index of each box. Returns the indices (D,) of the ground-truth boxes and the IoUs (D,).
    If a detection overlaps no box, both are 0. Round k compares every detection with the k-th ground-truth box of its
    image, so the time is proportional to the number of pairs and the memory is a few arrays of length D.
    """
    by_image = np.argsort(truth_images, kind="stable")
    number = 1 + max(truth_images.max(initial=-1), images.max(initial=-1))
    ends = np.cumsum(np.bincount(truth_images, minlength=number))  # end of each image's range in `by_image`
    last = ends[images]
    first = np.append(0, ends)[images]
    best = np.zeros(len(images), np.int64)
    best_iou = np.zeros(len(images))
    left = np.flatnonzero(first < last)  # detections with a k-th ground-truth box
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
    """Return the IoU (R,) of box a[i] with box b[i]. a, b: (R, 4). The IoU of empty boxes is 0."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    meet = (width > 0) & (height > 0)
    intersection = width * height
    areas = [(c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b)]
    union = areas[0] + areas[1] - intersection
    return np.divide(intersection, union, out=np.zeros(len(a)), where=meet)


def area(precision: np.ndarray, recall: np.ndarray, metric: VocMetric) -> float:
    """Compute the AP of a precision-recall curve.

    precision, recall: (C,), the values after each of the C detections in order of descending score.
    metric: voc07 is the mean, over the recall levels 0, 0.1, ..., 1, of the highest precision at a recall of at least
    the level. voc10 is the area under the curve.
    """
    best = envelope(precision)
    if metric == "voc07":
        return float(np.append(best, 0.0)[np.searchsorted(recall, ELEVEN_POINTS, "left")].mean())
    return float((np.diff(recall, prepend=0.0) * best).sum())


def ranked_ap(correct: np.ndarray, positives: int, metric: VocMetric) -> float:
    """Compute the AP of C detections.

    correct: (C,) bool, in order of descending score. positives: number of objects, at least 1.
    """
    hits = np.cumsum(correct)
    return area(hits / np.arange(1, len(hits) + 1), hits / positives, metric)


def envelope(precision: np.ndarray) -> np.ndarray:
    """Return, for each point of the curve, the highest precision (..., C) at this point or at a higher recall.

    Recall increases along the last axis.
    """
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def box_sizes(boxes: np.ndarray) -> np.ndarray:
    """Return the widths and heights (N, 2) float64 of half-open boxes (N, 4)."""
    boxes = np.asarray(boxes, np.float64)
    return boxes[..., 2:] - boxes[..., :2]


def truth_by_class(samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, ClassTruth]:
    """Return the objects of `samples` by class. Label k is classes[k - 1]. Image indices are positions in `samples`."""
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
    """Return detections by class, given one entry per image. Label k is classes[k - 1]; image index i is entry i."""
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
    """Return, for each class, the rows of `columns` with its label, in input order. Lists have one array per image."""
    label = np.concatenate([np.zeros(0, np.int64), *labels])
    order = np.argsort(label, kind="stable")
    ends = np.searchsorted(label[order], np.arange(1, len(classes) + 2))
    arrays = {name: np.concatenate([np.zeros((0, *COLUMNS[name][1])), *parts]) for name, parts in columns.items()}
    return {
        name: {column: array[order[start:end]] for column, array in arrays.items()}
        for name, (start, end) in zip(classes, pairwise(ends.tolist()), strict=True)
    }
