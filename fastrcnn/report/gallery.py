"""The most confident mistakes and the worst misses: which they are, and a cut of the picture around each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from fastrcnn.data.frames import read_sample
from fastrcnn.errors import UserError
from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth
from fastrcnn.report.diagnosis import CONFUSION, DUPLICATE, FALSE_KINDS, LOCALISATION, MISSED_KINDS, RIGHT, Diagnosis
from fastrcnn.structures import Sample

MOST_FALSE, MOST_MISSED = 60, 30
SIDE = 320  # the longer side of a cut, in pixels, at most
QUALITY = 75  # of its JPEG
MARGIN = 0.25  # of the longer side of what is shown, around it

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Case:
    """A mistake to look at. Boxes are half-open x1 y1 x2 y2 in pixels of the picture, later of the cut."""

    missed: bool
    kind: str  # of FALSE_KINDS or MISSED_KINDS
    name: str  # class of the detection or the missed object
    other: str  # class of the object behind a confusion, else empty
    image: int  # index of the sample
    score: float | None
    overlap: float  # with the object that explains a false detection
    boxes: tuple[tuple[str, Box], ...]  # each with its part: detection, object, other object, better detection
    image_id: str = ""
    width: float = 0.0  # of the cut
    height: float = 0.0
    jpeg: bytes | None = None
    problem: str = ""  # why there is no image

    @property
    def shown_kind(self) -> str:
        """The kind as the page's filter names it."""
        return f"missed: {self.kind}" if self.missed else self.kind

    @property
    def why(self) -> str:
        """The kind, the other class, and the overlap."""
        other = f" ({self.other})" if self.other else ""
        return self.kind + other + (f", IoU {self.overlap:.2f}" if self.overlap and not self.missed else "")


def choose(
    detections: Mapping[str, ClassDetections], truth: Mapping[str, ClassTruth], diagnoses: Mapping[str, Diagnosis]
) -> list[Case]:
    """False detections by falling score, then missed objects by falling area, every class and kind in turn: the first
    of each, then the second of each, as far as the gallery's size goes."""
    names = list(diagnoses)
    false, missed = [], []
    for k, name in enumerate(names):
        d = diagnoses[name]
        rows = np.flatnonzero(d.kinds >= 0)
        false.append((np.full(len(rows), k), d.kinds[rows], rows, detections[name].scores[rows]))
        rows = np.flatnonzero(d.missed >= 0)
        boxes = truth[name].boxes[rows]
        missed.append((np.full(len(rows), k), d.missed[rows], rows, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)))
    cases = [_false(names[k], row, detections, truth, diagnoses) for k, row in _in_turn(false, MOST_FALSE)]
    return cases + [_missed(names[k], row, detections, truth, diagnoses) for k, row in _in_turn(missed, MOST_MISSED)]


def _in_turn(parts: Sequence[tuple[np.ndarray, ...]], most: int) -> list[tuple[int, int]]:
    """(class, row) of the first `most`, from columns class, kind, row and weight."""
    if not parts:
        return []
    owner, kind, row, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-weight, kind, owner))
    owner, kind, row, weight = owner[order], kind[order], row[order], weight[order]
    starts = np.flatnonzero(np.append(True, (owner[1:] != owner[:-1]) | (kind[1:] != kind[:-1]))[: len(owner)])
    rank = np.arange(len(owner)) - np.repeat(starts, np.diff(np.append(starts, len(owner))))
    first = np.lexsort((-weight, rank))[:most]
    return list(zip(owner[first].tolist(), row[first].tolist(), strict=True))


def _false(
    name: str,
    row: int,
    detections: Mapping[str, ClassDetections],
    truth: Mapping[str, ClassTruth],
    diagnoses: Mapping[str, Diagnosis],
) -> Case:
    own, d = detections[name], diagnoses[name]
    kind, boxes, other = int(d.kinds[row]), [("detection", _box(own.boxes[row]))], ""
    if d.others[row] >= 0:
        other = list(truth)[d.others[row]]
        boxes.append(("other object", _box(truth[other].boxes[d.other_objects[row]])))
    elif kind in (DUPLICATE, LOCALISATION):
        boxes.append(("object", _box(truth[name].boxes[d.objects[row]])))
        if kind == DUPLICATE:
            (better,) = np.flatnonzero((d.kinds == RIGHT) & (d.objects == d.objects[row]))
            boxes.append(("better detection", _box(own.boxes[better])))
    return Case(
        False,
        list(FALSE_KINDS)[kind],
        name,
        other,
        int(own.images[row]),
        float(own.scores[row]),
        float(d.overlaps[row]),
        tuple(boxes),
    )


def _missed(
    name: str,
    row: int,
    detections: Mapping[str, ClassDetections],
    truth: Mapping[str, ClassTruth],
    diagnoses: Mapping[str, Diagnosis],
) -> Case:
    """A missed object, with the detection of highest score that is misplaced at it or takes it for another."""
    d, k = diagnoses[name], list(truth).index(name)
    near = [
        (float(detections[name].scores[i]), name, i)
        for i in np.flatnonzero((d.kinds == LOCALISATION) & (d.objects == row))
    ]
    for other, e in diagnoses.items():
        hits = np.flatnonzero((e.kinds == CONFUSION) & (e.others == k) & (e.other_objects == row))
        near += [(float(detections[other].scores[i]), other, i) for i in hits]
    boxes = [("object", _box(truth[name].boxes[row]))]
    taken_for = ""
    if near:
        _, by, i = max(near, key=lambda entry: entry[0])
        taken_for = "" if by == name else by
        boxes.append(("detection", _box(detections[by].boxes[i])))
    kind = list(MISSED_KINDS)[d.missed[row]]
    return Case(True, kind, name, taken_for, int(truth[name].images[row]), None, 0.0, tuple(boxes))


def cut_out(
    cases: Sequence[Case], samples: Sequence[Sample], read: Callable[[Sample], np.ndarray] = read_sample
) -> list[Case]:
    """The cases with a cut of their picture each. One that cannot be read is said to be so, and its boxes are kept."""
    result: list[Case] = list(cases)
    by_image: dict[int, list[int]] = {}
    for i, case in enumerate(cases):
        by_image.setdefault(case.image, []).append(i)
    for image, members in by_image.items():
        sample, pixels, problem = samples[image], None, ""
        try:
            pixels = read(sample)
        except UserError as error:
            problem = str(error)
        for i in members:
            result[i] = _cut(cases[i], sample, pixels, problem)
    return result


def _cut(case: Case, sample: Sample, pixels: np.ndarray | None, problem: str) -> Case:
    corners = np.array([box for _, box in case.boxes])
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    margin = max(8.0, MARGIN * float((high - low).max()))
    limit = np.array([sample.width, sample.height])
    x1, y1 = (int(v) for v in np.clip(np.floor(low - margin), 0, limit - 1))
    x2, y2 = (int(v) for v in np.clip(np.ceil(high + margin), (x1 + 1, y1 + 1), limit))
    factor = min(1.0, SIDE / max(x2 - x1, y2 - y1))
    width, height = max(1, round((x2 - x1) * factor)), max(1, round((y2 - y1) * factor))
    jpeg = None
    if pixels is not None:
        cut = cv2.cvtColor(np.ascontiguousarray(pixels[y1:y2, x1:x2]), cv2.COLOR_RGB2BGR)
        small = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()
    scale = np.array([width / (x2 - x1), height / (y2 - y1)] * 2)
    boxes = tuple((part, _box((np.array(b) - (x1, y1, x1, y1)) * scale)) for part, b in case.boxes)
    return replace(case, image_id=sample.image_id, boxes=boxes, width=width, height=height, jpeg=jpeg, problem=problem)


def _box(box: np.ndarray) -> Box:
    x1, y1, x2, y2 = (float(v) for v in box)
    return x1, y1, x2, y2
