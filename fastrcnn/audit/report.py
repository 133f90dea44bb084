"""The report of a data set: counts, sizes, proposal recall and problems, computed from the records of `check.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fastrcnn.audit.check import Record
from fastrcnn.data.transforms import scale_for
from fastrcnn.data.truth.annotated import stands_out
from fastrcnn.data.truth.problems import Problem
from fastrcnn.evaluation.recall import Recall, by_size, class_recalls, recall

CELL = 16  # pixels of the scaled image per conv5_3 cell


@dataclass(frozen=True)
class Range:
    """The minimum, median and maximum of a set of numbers. All are None if the set is empty."""

    min: float | None
    median: float | None
    max: float | None


@dataclass(frozen=True)
class ClassCount:
    objects: int
    difficult: int
    images: int  # number of images with at least one object of the class


@dataclass(frozen=True)
class Split:
    """The counts of one split. Unusable boxes and objects of unknown classes are not counted."""

    name: str
    role: str  # train, val or test
    images: int
    unreadable: int  # images whose file or annotation cannot be used
    negatives: int  # usable images without an object
    objects: int
    difficult: int
    truncated: int  # number of objects marked as truncated, usable or not
    classes: dict[str, ClassCount]


@dataclass(frozen=True)
class Sizes:
    width: Range  # pixels of the original images
    height: Range
    aspect: Range  # width / height


@dataclass(frozen=True)
class Images(Sizes):
    colours: dict[str, int]  # stored format (RGB, gray, palette, CMYK, RGBA, 16-bit) -> number of images
    turned: int  # images with an EXIF rotation, applied or not


@dataclass(frozen=True)
class Boxes(Sizes):
    sizes: dict[str, int]  # number of small, medium and large boxes; the limits are 32 x 32 and 96 x 96 pixels
    below_cell: dict[str, int]  # short side of the scaled image -> number of boxes with a side below CELL pixels
    clipped: int  # number of boxes that extend beyond the image


@dataclass(frozen=True)
class ProposalStatistics:
    """The number of proposals and their recall, over all images with proposals."""

    stores: list[str]
    images: int
    fewest: int  # smallest, mean and largest number of proposals per image
    mean: float
    most: int
    all: Recall  # over all objects; the next fields: by split, class and size
    splits: dict[str, Recall]
    classes: dict[str, Recall]
    sizes: dict[str, Recall]
    untouched: int  # number of objects that no proposal overlaps


@dataclass(frozen=True)
class Sampling:
    """The RoIs that a training step can sample from the images of the training splits."""

    images: int
    rois_per_image: int
    fg_quota: int  # maximum number of foreground RoIs per image
    foreground: float  # mean number of available foreground RoIs, including ground-truth boxes
    background: float  # mean number of available background RoIs
    few_foreground: float  # share of images with fewer foreground RoIs than fg_quota
    few_background: float  # share of images with too few background RoIs to reach rois_per_image
    drawn: float  # mean number of RoIs that can be sampled


@dataclass(frozen=True)
class Report:
    """The complete report of a data set. `to_json` converts it to the contents of report.json."""

    name: str
    root: str
    classes: list[str]
    splits: list[Split]
    images: Images
    boxes: Boxes
    proposals: ProposalStatistics | None
    sampling: Sampling | None
    errors: list[Problem]
    notes: list[Problem]


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain containers for JSON.

    The keys are the names of the fields of Report and its dataclasses. In addition, the first key `ok` is true if there
    are no errors, and each entry of `errors` and `notes` has the keys `title` and `advice`. Lengths are in pixels of
    the original images. Shares and recalls are between 0 and 1, or null if there is nothing to count.
    """
    plain = {"ok": not report.errors, **asdict(report)}
    for key, problems in (("errors", report.errors), ("notes", report.notes)):
        plain[key] = [{**asdict(p), "title": p.title, "advice": p.advice} for p in problems]
    return plain


def known_only(record: Record, classes: Collection[str]) -> Record:
    """Return the record without objects whose class is not in `classes`, because training does not use them."""
    kept = [o.name in classes for o in record.objects]
    objects = [o for o in record.objects if o.name in classes]
    return replace(record, objects=objects, best=record.best if record.proposals is None else record.best[kept])


def split(records: Sequence[Record], classes: Sequence[str]) -> Split:
    """Return the counts of one split. All records must belong to this split."""
    usable = [r for r in records if r.usable]
    objects = Counter(o.name for r in usable for o in r.objects)
    difficult = Counter(o.name for r in usable for o in r.objects if o.difficult)
    images = Counter(name for r in usable for name in set(r.names))
    return Split(
        name=records[0].task.split,
        role=records[0].task.role,
        images=len(records),
        unreadable=len(records) - len(usable),
        negatives=sum(not r.objects for r in usable),
        objects=objects.total(),
        difficult=difficult.total(),
        truncated=sum(r.image.truncated for r in usable),
        classes={name: ClassCount(objects[name], difficult[name], images[name]) for name in classes},
    )


def images(records: Sequence[Record]) -> Images:
    """Return the sizes and colour formats of all readable images."""
    read = [r for r in records if r.size]
    width, height = np.array([r.size for r in read], dtype=float).reshape(-1, 2).T
    return Images(
        *_ranges(width, height),
        colours=dict(sorted(Counter(r.colour for r in read).items())),
        turned=sum(r.stored is not None and r.stored.orientation != 1 for r in read),
    )


def boxes(records: Sequence[Record], short_sides: Iterable[int], long_side: int) -> Boxes:
    """Return statistics of the sizes of all boxes, in the original images and at the training scales."""
    width, height = _sides(records)
    below = {}
    for side in short_sides:
        scales = [scale_for(*r.image.size, side, long_side) for r in records if r.image.size]
        factor = np.repeat(scales, [len(r.objects) for r in records if r.image.size])
        below[str(side)] = int((np.minimum(width, height) * factor < CELL).sum())
    return Boxes(
        *_ranges(width, height),
        sizes={name: int(which.sum()) for name, which in by_size(width * height).items()},
        below_cell=below,
        clipped=sum(stands_out(o, r.image)[0] for r in records for o in r.objects),
    )


def proposals(records: Sequence[Record], classes: Sequence[str], stores: Sequence[str]) -> ProposalStatistics | None:
    """Return statistics of the proposals, or None if no image has proposals. stores: paths of the proposal files."""
    having = [r for r in records if r.proposals is not None]
    if not having:
        return None
    counts = [r.proposals or 0 for r in having]
    best = np.concatenate([r.best for r in having])
    counted = ~np.concatenate([r.difficult for r in having])
    label_of = {name: label for label, name in enumerate(classes, 1)}
    labels = np.array([label_of.get(n, 0) for r in having for n in r.names], dtype=np.int64)
    places = np.array([r.task.split for r in having for _ in r.objects], dtype=object)
    width, height = _sides(having)
    return ProposalStatistics(
        stores=list(stores),
        images=len(having),
        fewest=min(counts),
        mean=float(np.mean(counts)),
        most=max(counts),
        all=recall(best[counted]),
        splits={s: recall(best[counted & (places == s)]) for s in dict.fromkeys(r.task.split for r in having)},
        classes=class_recalls(best[counted], labels[counted], classes),
        sizes={name: recall(best[counted & which]) for name, which in by_size(width * height).items()},
        untouched=int((best == 0).sum()),
    )


def sampling(records: Sequence[Record], rois_per_image: int, fg_fraction: float) -> Sampling | None:
    """Return statistics of the RoIs that `RoISampler` can sample, or None if no training image has proposals."""
    having = [r for r in records if r.task.role == "train" and r.proposals is not None]
    if not having:
        return None
    quota = round(fg_fraction * rois_per_image)
    foreground = np.array([r.foreground for r in having])
    background = np.array([r.background for r in having])
    left = rois_per_image - np.minimum(foreground, quota)
    return Sampling(
        images=len(having),
        rois_per_image=rois_per_image,
        fg_quota=quota,
        foreground=float(foreground.mean()),
        background=float(background.mean()),
        few_foreground=float((foreground < quota).mean()),
        few_background=float((background < left).mean()),
        drawn=float((np.minimum(foreground, quota) + np.minimum(background, left)).mean()),
    )


def _sides(records: Sequence[Record]) -> np.ndarray:
    """Return the widths and heights of all boxes as (2, G) float64."""
    found = np.concatenate([np.zeros((0, 4)), *(r.boxes for r in records)])
    return (found[:, 2:] - found[:, :2]).T


def _ranges(width: np.ndarray, height: np.ndarray) -> tuple[Range, Range, Range]:
    return _range(width), _range(height), _range(width / height)


def _range(values: np.ndarray) -> Range:
    if not len(values):
        return Range(None, None, None)
    return Range(float(values.min()), float(np.median(values)), float(values.max()))
