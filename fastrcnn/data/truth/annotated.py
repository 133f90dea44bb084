"""Annotations in a format-independent form, and their conversion to Samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrcnn.data.truth.problems import Problem, Problems
from fastrcnn.errors import nearest
from fastrcnn.names import class_fault
from fastrcnn.structures import Sample

Box = tuple[float, float, float, float]
SHOWN = 20  # maximum number of known classes in a message, and of unknown classes for which one is suggested
TRUE, FALSE = ("1", "true", "yes", "t", "y"), ("", "0", "false", "no", "f", "n")


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """An object in an annotation file of any format."""

    file: Path
    number: int  # of the object in the file, from 1
    name: str
    box: Box  # half-open x1 y1 x2 y2 in pixels, not yet clipped to the image
    shown: str  # the box as written in the file, for messages
    difficult: bool = False  # ignored by evaluation
    left_out: str = ""  # COCO flag that excludes it from training, `iscrowd` or `ignore`; empty if none
    fault: str = ""  # predicate that describes the error of the box, such as "has no area."; empty if none
    listed: bool = True  # whether the class number or category is defined
    unit: str = "object"  # the format's term for an object, for messages
    size: tuple[float, float] | None = None  # width and height in pixels, only from a COCO file
    area: float | None = None  # in square pixels, only from a COCO file

    def problem(self, kind: str, what: str, name: str | None = None) -> Problem:
        return Problem(kind, str(self.file), what, None, self.number, name, self.unit)

    def error(self) -> Problem | None:
        """Return the error that makes the object unusable (undefined class or invalid box), or None."""
        if not self.listed:
            of_coco = self.unit == "annotation"
            why = "the list `categories` has no such id." if of_coco else "the list of class names has no such number."
            return self.problem("unknown_class", f"unknown class '{self.name}': {why}")
        return self.problem("box", f"the box {self.shown} {self.fault}", self.name) if self.fault else None

    def flag_note(self, training: bool) -> Problem | None:
        """Return a note if a COCO flag (`iscrowd` or `ignore`) excludes the object from training, otherwise None.

        Without `training`, only `ignore` gives a note, because evaluation does not exclude the object.
        """
        if self.left_out and training:
            return self.problem(
                "crowd", f"`{self.left_out}` is set, so training does not use the annotation.", self.name
            )
        if self.left_out == "ignore":
            what = "`ignore` is set. Training does not use the annotation, but evaluation counts it, as in pycocotools."
            return self.problem("ignored", what, self.name)
        return None

    def trained_on(self, use_difficult: bool) -> bool:
        """Return whether training uses the object."""
        return not self.left_out and (use_difficult or not self.difficult)


@dataclass(frozen=True)
class Annotated:
    """An image with its annotations, in the form that the readers of all formats return."""

    image_id: str
    path: Path  # of the image, even if the file is missing
    annotation: Path  # of the file that contains the annotations
    width: int = 0  # 0 if unknown
    height: int = 0
    objects: tuple[AnnotatedObject, ...] | None = None  # None if the image cannot be used
    problems: tuple[Problem, ...] = ()  # of the file and the image; for boxes and flags, see AnnotatedObject
    truncated: int = 0  # number of objects that are marked as truncated
    number: int | str | None = None  # the image's id in a COCO file
    filename: str = ""  # <filename> of an XML file

    @property
    def size(self) -> tuple[int, int] | None:
        """Return width and height, or None if they are unknown."""
        return (self.width, self.height) if self.width else None


def read_flag(value: object, share: bool = False) -> bool | None:
    """Parse a flag such as 1, "yes" or "False". None and "" are False. Return None if the value is not a flag.

    share: treat fractions between 0 and 1, which KITTI uses, as True.
    """
    text = "" if value is None else str(value).strip().casefold()
    if text in TRUE or text in FALSE:
        return text in TRUE
    number = to_float(text)
    return number > 0 if number in (0, 1) or (share and 0 < number < 1) else None


def to_float(text: str) -> float:
    """Convert text to a float. Return NaN if it is not a number."""
    try:
        return float("nan" if "_" in text else text)
    except ValueError:
        return math.nan


def enclosing(box: Box, shown: str, degrees: float, size: tuple[float, float]) -> tuple[Box, str]:
    """Return the axis-aligned bounding box of a half-open box rotated about its centre, and a message about it.

    shown: the box as written in the file. size: width and height of the image. A result that overlaps the
    image is clipped to it.
    """
    x1, y1, x2, y2 = box
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    across, down = ((x2 - x1) * cos + (y2 - y1) * sin) / 2, ((x2 - x1) * sin + (y2 - y1) * cos) / 2
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    around = (cx - across, cy - down, cx + across, cy + down)
    inside = (max(around[0], 0.0), max(around[1], 0.0), min(around[2], size[0]), min(around[3], size[1]))
    around = inside if inside[0] < inside[2] and inside[1] < inside[3] else around
    what = f"the box {shown} is rotated by {degrees:g} degrees. Its axis-aligned bounding box is used: "
    return around, f"{what}({', '.join(f'{v:g}' for v in around)}), half-open."


def box_fault(box: Box, width: int, height: int) -> str:
    """Return the error of a half-open box in an image of this size, as a predicate ("has no area."), or '' if none."""
    x1, y1, x2, y2 = np.asarray(box, dtype=np.float32).tolist()  # single precision, as in training
    if x2 <= x1 or y2 <= y1:
        return "has no area: its width or height is 0 in single precision."
    if x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1:
        return f"extends beyond the image of {width} x {height} pixels."
    if min(x2, float(width)) <= max(x1, 0.0) or min(y2, float(height)) <= max(y1, 0.0):
        return f"is outside the image of {width} x {height} pixels."
    return ""


def to_samples(
    images: Iterable[Annotated], classes: Sequence[str], training: bool, use_difficult: bool, leave_out_others: bool
) -> tuple[list[Sample], Problems]:
    """Convert images to samples, except those whose `objects` are None. Also return the problems of images and objects.

    classes: label i is classes[i - 1]. training: exclude objects with a COCO flag, and difficult objects unless
    `use_difficult` is set, without checking them. leave_out_others: exclude objects whose class is not in `classes` and
    count them in a note; otherwise they are errors.
    """
    label_of = {name: i for i, name in enumerate(classes, 1)}
    samples, problems = [], Problems()
    unknown: dict[str, list[AnnotatedObject]] = {}  # objects of classes that are not in `classes`, by class
    clipped: list[AnnotatedObject] = []
    at_zero: list[AnnotatedObject] = []
    for image in images:
        problems.images += 1
        problems.found += image.problems
        if image.objects is None:
            continue
        kept = []
        for o in image.objects:
            if note := o.flag_note(training):
                problems.found.append(note)
            if training and not o.trained_on(use_difficult):
                continue
            if o.name not in label_of:
                unknown.setdefault(o.name, []).append(o)
            elif error := o.error():
                problems.found.append(error)
            else:
                kept.append(o)
                for out, group in zip(stands_out(o, image), (clipped, at_zero), strict=True):
                    group += [o] * out
        samples.append(_sample(image, kept, label_of))
    for kind, group, what in (
        ("zero_based", at_zero, "start at 0, but the first pixel is 1 in VOC"),
        ("clipped", clipped, "that extend beyond the image by at most one pixel are clipped"),
    ):
        if group:
            problems.found.append(group[0].problem(kind, f"{len(group)} box(es) {what}. This is the first."))
    problems.found += _unknown(unknown, classes, leave_out_others)
    return samples, problems


def _unknown(
    unknown: dict[str, list[AnnotatedObject]], classes: Sequence[str], leave_out_others: bool
) -> Iterator[Problem]:
    """Yield one note about objects of undefined classes if `leave_out_others` is set, otherwise an error per class."""
    if unknown and leave_out_others:
        most = sorted(unknown.items(), key=lambda item: -len(item[1]))[:10]
        others = ", ".join(f"{name} ({len(objects)})" for name, objects in most)
        what = f"objects of other classes are skipped: {others}. This is the first."
        yield most[0][1][0].problem("other_classes", what)
        return
    texts = unknown_classes(unknown, classes)
    for name, objects in unknown.items():
        more = f" {len(objects) - 1} more object(s) have this class." if len(objects) > 1 else ""
        yield objects[0].problem("unknown_class", texts[name] + more)


def unknown_classes(names: Iterable[str], classes: Sequence[str]) -> dict[str, str]:
    """Return the message about each class in `names`, which are not in `classes`.

    The known class with the most similar name is suggested only for the first SHOWN names, because this compares each
    name with all known ones.
    """
    more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
    known = f"Known classes: {', '.join(classes[:SHOWN]) or 'none'}{more}."
    texts = {}
    for number, name in enumerate(dict.fromkeys(names)):
        fault = class_fault(name, "test")
        why = f" The name {fault}." if fault else nearest(name, classes) if number < SHOWN else ""
        texts[name] = f"unknown class '{name}'.{why} {known}"
    return texts


def stands_out(o: AnnotatedObject, image: Annotated) -> tuple[bool, bool]:
    """Return whether the box of `o` exceeds the image, and whether a box from VOC XML starts before the first pixel."""
    x1, y1, x2, y2 = o.box
    before = x1 < 0 or y1 < 0
    return before or x2 > image.width or y2 > image.height, before and o.unit == "object"


def _sample(image: Annotated, kept: Sequence[AnnotatedObject], label_of: dict[str, int]) -> Sample:
    of_coco = bool(kept) and all(o.size is not None and o.area is not None for o in kept)
    return Sample(
        image_id=image.image_id,
        path=image.path,
        width=image.width,
        height=image.height,
        boxes=np.array([o.box for o in kept], dtype=np.float64).reshape(-1, 4),
        labels=np.array([label_of[o.name] for o in kept], dtype=np.int64),
        difficult=np.array([o.difficult for o in kept], dtype=bool),
        sizes=np.array([o.size for o in kept], dtype=np.float64) if of_coco else None,
        areas=np.array([o.area for o in kept], dtype=np.float64) if of_coco else None,
        number=image.number,
    )
