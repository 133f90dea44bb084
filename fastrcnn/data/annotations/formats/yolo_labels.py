"""Reader of a YOLO label file, which contains one object per line.

A line contains the class number and then the box (centre x, centre y, width, height), or the x and y of the corners of
a polygon. Coordinates are fractions of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrcnn.data.annotations.formats.listing import Size, box_around
from fastrcnn.data.truth.annotated import AnnotatedObject, Box, box_fault, to_float
from fastrcnn.data.truth.problems import Problem
from fastrcnn.data.truth.text_files import read_lines
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError

OUT = 0.001  # fraction of the image's side by which a box with rounded coordinates can exceed the image
PIXELS = 1.5  # larger numbers cannot be fractions of the image
ADVICE = "Write the numbers as fractions of the image's width and height, or export the labels again."


@dataclass(frozen=True, slots=True)
class _Row:
    number: int  # of the line
    label: int
    values: tuple[float, ...]


@read_once(20_000)
def parse_labels(path: Path) -> tuple[tuple[_Row, ...], tuple[Problem, ...]]:
    """Return the valid lines of a label file, and the errors of the file and of other lines."""
    rows, problems = [], []
    try:
        lines = read_lines(path)
    except UserError as error:
        return (), (Problem("annotation", str(path), str(error).removeprefix(f"{path}: ")),)
    for number, line in enumerate(lines, 1):
        if not (texts := line.split()):
            continue
        numbers = [to_float(text) for text in texts]
        label = numbers[0]
        if not all(abs(v) < 1e7 for v in numbers) or label != label // 1 or label < 0:
            what = f"'{line.strip()[:80]}' is not a class number followed by fractions of the image."
            problems.append(Problem("annotation", str(path), what, line=number))
        else:
            rows.append(_Row(number, int(label), tuple(numbers[1:])))
    return tuple(rows), tuple(problems)


def objects_in(
    path: Path, names: Sequence[str], keypoints: bool, size: Size
) -> tuple[list[AnnotatedObject], list[Problem]]:
    """Return the objects in an image's label file, and a list of errors (invalid lines) and notes (polygons, scores).

    names: class names, in the order of the class numbers. keypoints: whether keypoints follow the box in each line.
    size: width and height of the image in pixels. A missing file contains no objects.
    """
    rows, faults = parse_labels(path) if path.is_file() else ((), ())
    objects, problems = [], list(faults)
    scored = outlines = 0
    for row in rows:
        known = row.label < len(names)
        name = names[row.label] if known else f"{row.label}"
        values = row.values[:4] if keypoints else row.values
        if max(values, default=0) > PIXELS:
            what = f"{max(values):g} is not a fraction of the image. {ADVICE}"
            problems.append(Problem("annotation", str(path), what, line=row.number, name=name))
            continue
        if len(values) == 5:
            scored += 1
            values = values[:4]
        if len(values) == 4:
            cx, cy, width, height = values
            box, fault = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), ""
            fault = "" if width > 0 and height > 0 else "has no area: width and height must be greater than 0."
        elif len(values) >= 6 and len(values) % 2 == 0:
            box, fault = box_around(list(zip(values[::2], values[1::2], strict=True))), ""
            outlines += 1
        else:
            what = (
                f"found {len(values)} number(s) after the class. A box needs 4, and a polygon at least 6 (3 corners)."
            )
            problems.append(Problem("annotation", str(path), what, line=row.number, name=name))
            continue
        shown = f"({', '.join(f'{v:g}' for v in values[:4])}{', ...' if len(values) > 4 else ''})"
        pixels = _in_pixels(box, size)
        fault = fault or box_fault(pixels, *size)
        objects.append(AnnotatedObject(path, row.number, name, pixels, shown, fault=fault, listed=known, unit="line"))
    if outlines:
        what = f"only the axis-aligned bounding box of each of {outlines} polygon(s) is used."
        problems.append(Problem("polygons", str(path), what))
    if scored:
        problems.append(Problem("scores", str(path), f"{scored} line(s) contain a score, which is not used."))
    return objects, problems


def _in_pixels(box: Box, size: Size) -> Box:
    """Convert a box from fractions of the image to pixels.

    Coordinates that are outside the image by at most 0.1 % (OUT) are clipped to its border. Others are not clipped.
    """
    x1, y1, x2, y2 = (1.0 if 1 < v <= 1 + OUT else 0.0 if -OUT <= v < 0 else v for v in box)
    return x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1]
