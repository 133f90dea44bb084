"""Select the most confident false detections and the largest missed objects, and crop the images around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from fastrcnn.data.frames import read_sample
from fastrcnn.errors import UserError
from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth, box_sizes
from fastrcnn.names import file_of
from fastrcnn.report.diagnosis import CONFUSION, DUPLICATE, FALSE_KINDS, LOCALISATION, MISSED_KINDS, RIGHT, Diagnosis
from fastrcnn.structures import Sample

MOST_FALSE, MOST_MISSED = 60, 30
SIDE = 320  # maximum longer side of a crop, in pixels
QUALITY = 75  # JPEG quality of a crop
MARGIN = 0.25  # margin around the boxes, as a share of the longer side of the area that they cover

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Case:
    """An error to show. Boxes are half-open x1 y1 x2 y2 in pixels of the image or, after `cut_out`, of the crop."""

    missed: bool  # whether the error is a missed object, not a false detection
    kind: str  # a key of FALSE_KINDS or MISSED_KINDS
    name: str  # class of the detection or of the missed object
    other: str  # the class that it was confused with, or empty
    image: int  # index of the sample
    score: float | None
    overlap: float  # IoU with the object that explains a false detection; 0 if there is none
    boxes: tuple[tuple[str, Box], ...]  # pairs of a role (detection, object, other object, better detection) and a box
    image_id: str = ""
    file: str = ""  # image_id with the suffix of the file
    width: float = 0.0  # of the crop, in pixels
    height: float = 0.0
    jpeg: bytes | None = None
    problem: str = ""  # the error message if the image could not be read

    @property
    def shown_kind(self) -> str:
        """Return the name of the error kind in the page's filter."""
        return f"missed: {self.kind}" if self.missed else self.kind

    @property
    def why(self) -> str:
        """Return the caption: the kind of error and, if known, the class that it was confused with and the IoU."""
        other = f" ({self.other})" if self.other else ""
        return self.kind + other + (f", IoU {self.overlap:.2f}" if self.overlap and not self.missed else "")


@dataclass(frozen=True)
class Mistakes:
    """The detections, ground truth and diagnoses of all classes, by class name."""

    detections: Mapping[str, ClassDetections]
    truth: Mapping[str, ClassTruth]
    diagnoses: Mapping[str, Diagnosis]

    def false(self, name: str, row: int) -> Case:
        """Return a Case for the false detection `row` of class `name`, with the boxes that explain the error."""
        own, d = self.detections[name], self.diagnoses[name]
        kind, other, boxes = int(d.kinds[row]), "", [("detection", own.boxes[row])]
        if d.others[row] >= 0:
            other = list(self.truth)[d.others[row]]
            boxes.append(("other object", self.truth[other].boxes[d.other_objects[row]]))
        elif kind in (DUPLICATE, LOCALISATION):
            boxes.append(("object", self.truth[name].boxes[d.objects[row]]))
            if kind == DUPLICATE:
                (better,) = np.flatnonzero((d.kinds == RIGHT) & (d.objects == d.objects[row]))
                boxes.append(("better detection", own.boxes[better]))
        score, overlap = float(own.scores[row]), float(d.overlaps[row])
        return Case(False, list(FALSE_KINDS)[kind], name, other, int(own.images[row]), score, overlap, _plain(boxes))

    def missed(self, name: str, row: int) -> Case:
        """Return a Case for the missed object `row` of class `name`.

        The case also contains the best detection of the object that is misplaced or has the wrong class, if any.
        """
        d, k = self.diagnoses[name], list(self.truth).index(name)
        near = [(name, i) for i in np.flatnonzero((d.kinds == LOCALISATION) & (d.objects == row))]
        for other, e in self.diagnoses.items():
            hits = np.flatnonzero((e.kinds == CONFUSION) & (e.others == k) & (e.other_objects == row))
            near += [(other, i) for i in hits]
        boxes, taken_for = [("object", self.truth[name].boxes[row])], ""
        if near:
            by, i = max(near, key=lambda entry: self.detections[entry[0]].scores[entry[1]])
            taken_for = "" if by == name else by
            boxes.append(("detection", self.detections[by].boxes[i]))
        kind, image = list(MISSED_KINDS)[d.missed[row]], int(self.truth[name].images[row])
        return Case(True, kind, name, taken_for, image, None, 0.0, _plain(boxes))


def choose(
    detections: Mapping[str, ClassDetections], truth: Mapping[str, ClassTruth], diagnoses: Mapping[str, Diagnosis]
) -> list[Case]:
    """Select up to MOST_FALSE false detections and up to MOST_MISSED missed objects.

    The false detection with the highest score of each class and kind is selected first, then the second of each, and so
    on. Missed objects are selected in the same way by area.
    """
    mistakes, names = Mistakes(detections, truth, diagnoses), list(diagnoses)
    false, missed = [], []
    for k, (name, d) in enumerate(diagnoses.items()):
        rows = np.flatnonzero(d.kinds >= 0)
        false.append((np.full(len(rows), k), d.kinds[rows], rows, detections[name].scores[rows]))
        rows = np.flatnonzero(d.missed >= 0)
        areas = box_sizes(truth[name].boxes[rows]).prod(axis=1)
        missed.append((np.full(len(rows), k), d.missed[rows], rows, areas))
    cases = [mistakes.false(names[k], row) for k, row in _in_turn(false, MOST_FALSE)]
    return cases + [mistakes.missed(names[k], row) for k, row in _in_turn(missed, MOST_MISSED)]


def _in_turn(parts: Sequence[tuple[np.ndarray, ...]], most: int) -> list[tuple[int, int]]:
    """Return the class index and the row of `most` cases: the first of each class and kind, then the second, and so on.

    parts: for each class, the columns class index, kind, row and weight. Cases with larger weights come first.
    """
    if not parts:
        return []
    owner, kind, row, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-weight, kind, owner))
    owner, kind, row, weight = owner[order], kind[order], row[order], weight[order]
    starts = np.flatnonzero(np.append(True, (owner[1:] != owner[:-1]) | (kind[1:] != kind[:-1]))[: len(owner)])
    rank = np.arange(len(owner)) - np.repeat(starts, np.diff(np.append(starts, len(owner))))
    first = np.lexsort((-weight, rank))[:most]
    return list(zip(owner[first].tolist(), row[first].tolist(), strict=True))


def cut_out(
    cases: Sequence[Case], samples: Sequence[Sample], read: Callable[[Sample], np.ndarray] = read_sample
) -> list[Case]:
    """Return the cases with crops of their images. If an image cannot be read, `problem` contains the error message."""
    result = list(cases)
    for image in dict.fromkeys(case.image for case in cases):
        pixels, problem = None, ""
        try:
            pixels = read(samples[image])
        except UserError as error:
            problem = str(error)
        for i, case in enumerate(cases):
            if case.image == image:
                result[i] = _cut(case, samples[image], pixels, problem)
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
    boxes = _plain([(part, (np.array(box) - (x1, y1, x1, y1)) * scale) for part, box in case.boxes])
    file = file_of(sample.image_id, sample.path)
    return replace(
        case,
        image_id=sample.image_id,
        file=file,
        boxes=boxes,
        width=width,
        height=height,
        jpeg=jpeg,
        problem=problem,
    )


def _plain(boxes: Sequence[tuple[str, np.ndarray]]) -> tuple[tuple[str, Box], ...]:
    """Convert the boxes from arrays to tuples of Python numbers."""
    return tuple((part, tuple(box.tolist())) for part, box in boxes)
