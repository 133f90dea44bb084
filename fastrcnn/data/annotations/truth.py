"""Annotated objects to Samples, whatever file they come from: checks of boxes and classes, all complaints collected."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fastrcnn.errors import UserError, nearest
from fastrcnn.structures import Sample

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set, or worth knowing; reads `FILE, line 3, object 2 (cat): WHAT`.

    kind: a word for problems of one kind; check_problems.py knows them all and how to mend them.
    object: its number in the file, from 1; unit: what the file calls it; name: of the object's class.
    """

    kind: str
    file: str
    what: str
    line: int | None = None
    object: int | None = None
    name: str | None = None
    unit: str = "object"

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line else ""
        name = f" ({self.name})" if self.name else ""
        return f"{self.file}{line}{f', {self.unit} {self.object}{name}' if self.object else ''}: {self.what}"


class ProblemError(UserError):
    """A file that cannot be used, for the problems that it has."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass
class Problems:
    """What is wrong with a data set, collected so that everything can be said at once.

    found: what training refuses. notes: what was read in another way than it stands in the file, or is not used;
    training continues, and reports it.
    """

    found: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    clipped: int = 0  # boxes that stood out of their image by at most one pixel
    at_zero: int = 0  # boxes that begin before the first pixel, as those of a zero-based set read as one-based do
    other_classes: Counter[str] = field(default_factory=Counter)  # objects that were left out for their class
    images: int = 0  # images that were asked for; 0 where nobody counted

    @property
    def lines(self) -> list[str]:
        return [str(problem) for problem in by_cause(self.found, self.images)]

    def add(self, kind: str, file: Path, what: str) -> None:
        self.found.append(Problem(kind, str(file), what))

    def text(self) -> str:
        return shortened(self.lines)


ONCE = ("normalised",)  # kinds that a data set has as a whole
FEW, NEARLY_ALL = 5, 0.9  # images, and share of them, from which on one cause is one problem


def by_cause(problems: Sequence[Problem], images: int) -> list[Problem]:
    """The problems; those that nearly all images have for the same cause become one, and come first."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.what), []).append(problem)
    one, rest = [], []
    for (kind, what), group in groups.items():
        alike = len(group) if group[0].unit == "annotation" else len({problem.file for problem in group})
        if (kind in ONCE and len(group) > 1) or (images and alike >= max(FEW, NEARLY_ALL * images)):
            files = len({problem.file for problem in group})
            objects = f"{len(group)} {group[0].unit}s in " if group[0].object else ""
            where = f"{objects}{files} file{'s' if files > 1 else ''}"
            one.append(replace(group[0], what=f"{what} The same holds for {where}; this is the first."))
        else:
            rest += group
    kept = {id(problem) for problem in rest}
    return one + [problem for problem in problems if id(problem) in kept]


def shortened(lines: Sequence[str], most: int = 20) -> str:
    """The lines, indented; of more than `most` the number."""
    more = len(lines) - most
    return "\n".join(f"  {line}" for line in lines[:most]) + (f"\n  and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class AnnotatedObject:
    """An object of an annotation."""

    file: Path
    number: int  # in the file, from 1
    name: str
    box: Box  # half-open and zero-based, not yet clipped
    shown: str  # the box as it stands in the file
    difficult: bool
    fault: str = ""  # what is wrong with the box, as far as its own numbers tell
    unit: str = "object"  # what the file calls it
    size: tuple[float, float] | None = None  # width and height as a COCO file has them
    area: float | None = None  # as a COCO file has it

    def problem(self, kind: str, what: str, name: str | None = None) -> Problem:
        return Problem(kind, str(self.file), what, None, self.number, name, self.unit)


def enclosing(box: Box, shown: str, degrees: float, size: tuple[float, float]) -> tuple[Box, str]:
    """The upright box around a box that is rotated about its centre, and a note that says so.

    shown: the box as it stands in the file. size: width and height of the image, which the box is cut off at.
    """
    x1, y1, x2, y2 = box
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    across, down = ((x2 - x1) * cos + (y2 - y1) * sin) / 2, ((x2 - x1) * sin + (y2 - y1) * cos) / 2
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    around = (cx - across, cy - down, cx + across, cy + down)
    inside = (max(around[0], 0.0), max(around[1], 0.0), min(around[2], size[0]), min(around[3], size[1]))
    around = inside if inside[0] < inside[2] and inside[1] < inside[3] else around
    what = f"the box {shown}, rotated by {degrees:g} degrees, becomes the upright box around it, "
    return around, f"{what}({', '.join(f'{v:g}' for v in around)}) half-open."


class Reading:
    """Turns annotated objects into Samples and collects what is wrong with them.

    classes: label i is number i - 1 of them. leave_out_others: objects of other classes are left out and counted;
    else they are problems.
    """

    def __init__(self, classes: Sequence[str], leave_out_others: bool) -> None:
        self.classes = classes
        self.leave_out_others = leave_out_others
        self.label_of = {name: i for i, name in enumerate(classes, 1)}
        self.problems = Problems()
        self.unknown: dict[str, list[AnnotatedObject]] = {}  # the objects of each class that is not in the list
        self.samples: list[Sample] = []

    def add(
        self,
        image_id: str,
        path: Path,
        width: int,
        height: int,
        objects: Sequence[AnnotatedObject],
        number: int | str | None = None,
    ) -> None:
        """An image and its objects. number: the image's id in a COCO file."""
        kept: list[AnnotatedObject] = []
        for o in objects:
            if o.name not in self.label_of:
                if self.leave_out_others:
                    self.problems.other_classes[o.name] += 1
                else:
                    self.unknown.setdefault(o.name, []).append(o)
                continue
            if fault := _fault(o, width, height):
                self.problems.found.append(o.problem("box", f"the box {o.shown} {fault}", o.name))
                continue
            x1, y1, x2, y2 = o.box
            self.problems.clipped += x1 < 0 or y1 < 0 or x2 > width or y2 > height
            self.problems.at_zero += x1 < 0 or y1 < 0
            kept.append(o)
        of_file = bool(kept) and all(o.size is not None and o.area is not None for o in kept)
        self.samples.append(
            Sample(
                image_id=image_id,
                path=path,
                width=width,
                height=height,
                boxes=np.array([o.box for o in kept], dtype=np.float64).reshape(-1, 4),
                labels=np.array([self.label_of[o.name] for o in kept], dtype=np.int64),
                difficult=np.array([o.difficult for o in kept], dtype=bool),
                sizes=np.array([o.size for o in kept], dtype=np.float64) if of_file else None,
                areas=np.array([o.area for o in kept], dtype=np.float64) if of_file else None,
                number=number,
            )
        )

    def result(self, source: Path, skip_bad: bool) -> tuple[list[Sample], Problems]:
        """All samples and problems. Raises UserError with all that is wrong, unless `skip_bad`."""
        for name, objects in self.unknown.items():  # one line a class, not one an object: there may be thousands
            more = f" {len(objects) - 1} more object(s) of it." if len(objects) > 1 else ""
            known = f"{nearest(name, self.classes)} Known: {', '.join(self.classes)}."
            what = f"unknown class '{name}'.{known}{more}"
            self.problems.found.append(objects[0].problem("unknown_class", what))
        if self.problems.found and not skip_bad:
            others = (
                " Objects of classes that are not wanted can be left out by data.other_classes=leave_out."
                if self.unknown
                else ""
            )
            raise UserError(
                f"{len(self.problems.found)} problem(s) in the data set {source}:\n{self.problems.text()}\n"
                f"Mend the files, or leave out what is wrong with data.skip_bad=true.{others}"
            )
        return self.samples, self.problems


def _fault(o: AnnotatedObject, width: int, height: int) -> str:
    """What is wrong with the object's box in an image of this size, or nothing."""
    if o.fault:
        return o.fault
    x1, y1, x2, y2 = np.asarray(o.box, dtype=np.float32).tolist()  # as training has them
    if x2 <= x1 or y2 <= y1:
        return "has no area: it is thinner than single precision can tell."
    if x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1:
        return f"stands out of the image of {width} x {height} pixels."
    if min(x2, float(width)) <= max(x1, 0.0) or min(y2, float(height)) <= max(y1, 0.0):
        return f"lies beside the image of {width} x {height} pixels."
    return ""
