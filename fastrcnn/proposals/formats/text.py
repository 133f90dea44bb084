"""Read proposals from text files: CSV with a header, and JSON in the format of COCO results."""

from __future__ import annotations

import csv
import json
import math
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.data.truth.problems import shorten
from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.content import Content, Pair
from fastrcnn.proposals.formats.conventions import CONVENTIONS, HALF_OPEN, Convention

IDS = ("image_id", "image", "id")
CORNERS, SIZED = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h")
SEPARATORS = (",", ";", "\t")
MOST = 10  # maximum number of errors in a message
NO_ID = "`image_id` must be a string or an integer"
TAKEN = object()  # replaces a JSON object whose box was stored


class _Rows:
    """The boxes read so far, as one array of numbers per image (8 bytes per number), and messages on invalid boxes."""

    def __init__(self) -> None:
        self.numbers: dict[str, array[float]] = {}
        self.columns = 0  # 4, or 5 with scores; 0 before the first box
        self.errors: list[str] = []

    def add(self, image_id: str, numbers: list[float]) -> None:
        """Add a box of an image. numbers: the four numbers of the box, and optionally its score.

        Raises ValueError if the id is empty, or if some boxes have a score and others do not.
        """
        self.columns = self.columns or len(numbers)
        if len(numbers) != self.columns:
            has = "the box has a score" if len(numbers) == 5 else "the box has no score"
            raise ValueError(f"{has}, unlike the boxes before it; either all boxes or none must have a score")
        if not image_id:
            raise ValueError("the image id is empty")
        self.numbers.setdefault(image_id, array("d")).extend(numbers)

    def content(self, path: Path, format: str, convention: Convention) -> Content:
        if self.errors:
            lines = shorten(self.errors, MOST)
            raise UserError(f"{path}: the file has {len(self.errors)} error(s). Fix them and try again:\n{lines}")
        ids = list(self.numbers)

        def read(index: int) -> Pair:
            rows = np.frombuffer(self.numbers[ids[index]]).reshape(-1, self.columns)
            return rows[:, :4], rows[:, 4] if self.columns == 5 else None

        return Content((path,), format, convention, ids, read)


def csv_columns(line: str) -> tuple[str, dict[str, int]] | None:
    """Return the separator and a dictionary from column name to column index, or None if `line` is not a header.

    The key `id` is the column of the image id.
    """
    for separator in SEPARATORS:
        names = [name.strip().strip('"').lower() for name in line.strip().split(separator)]
        places = {name: names.index(name) for name in (*CORNERS, *SIZED, "score") if name in names}
        own = next((name for name in IDS if name in names), None)
        if own and any({*numbers} <= {*places} for numbers in (CORNERS, SIZED)):
            return separator, {**places, "id": names.index(own)}
    return None


def read_csv(path: Path) -> Content:
    """Read a CSV file with one box per line. Coordinates are zero-based.

    The columns, in any order, are image_id (or image or id), either x1, y1, x2, y2 (half-open) or x, y, w, h, and
    optionally score. The separator is a comma, semicolon or tab. Raises UserError if the file is not CSV in UTF-8, or
    if lines are invalid; the message lists the first invalid lines by number (at most MOST).
    """
    rows = _Rows()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, before = file.readline(), 1
            while header and not header.strip():
                header, before = file.readline(), before + 1
            found = csv_columns(header)
            if found is None:
                raise UserError(
                    f"{path}, line {before}: this line is not a header with image_id and x1, y1, x2, y2 or x, y, w, h."
                )
            separator, places = found
            numbers = CORNERS if {*CORNERS} <= {*places} else SIZED
            wanted = [name for name in (*numbers, "score") if name in places]
            lines = csv.reader(file, delimiter=separator)
            for fields in lines:
                try:
                    if any(fields):
                        rows.add(*_parse_line(fields, places, wanted))
                except ValueError as error:
                    rows.errors.append(f"line {lines.line_num + before}: {error}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the file is not valid CSV in UTF-8 ({error}). Export it again.") from None
    convention = HALF_OPEN if numbers == CORNERS else CONVENTIONS["xywh-0"]
    return rows.content(path, f"CSV with {', '.join(numbers)}", convention)


def _parse_line(fields: list[str], places: dict[str, int], wanted: list[str]) -> tuple[str, list[float]]:
    """Return the image id and the numbers in the columns `wanted`. Raises ValueError if the line is invalid."""
    if len(fields) <= max(places[name] for name in (*wanted, "id")):
        raise ValueError(f"the line has {len(fields)} field(s), fewer than the header")
    numbers = []
    for name in wanted:
        text = fields[places[name]]
        try:
            numbers.append(float(text))
        except ValueError:
            raise ValueError(f"{name} must be a number, not '{text[:40]}'") from None
    return fields[places["id"]].strip(), numbers


def read_json(path: Path) -> Content:
    """Read COCO results: a list of objects with `image_id`, `bbox` and optionally `score`.

    `bbox` contains x, y, width and height; x and y are zero-based. The box of each object is stored while the file is
    parsed, because Python objects would need ten times the size of the file. Raises UserError for
    invalid objects or a JSON syntax error. The message lists the first invalid objects by position (at most MOST), or
    contains the line of the syntax error.
    """
    rows = _Rows()

    def take(item: dict[str, Any]) -> object:
        try:
            rows.add(*_parse_object(item))
        except ValueError as error:
            return error
        return TAKEN

    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=take)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the file is not valid JSON in UTF-8 ({error}). Export it again.") from None
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{path}{line}: the file is not valid JSON or is truncated ({str(error)[:60]}). Export it again."
        ) from None
    for number, item in enumerate(items, 1):
        if item is not TAKEN:
            rows.errors.append(f"object {number}: {item if isinstance(item, ValueError) else NO_ID}")
    if not rows.errors and sum(map(len, rows.numbers.values())) != len(items) * rows.columns:
        raise UserError(f"{path}: the file has objects with boxes inside other objects. Use a flat list of objects.")
    return rows.content(path, "JSON in COCO results format", CONVENTIONS["xywh-0"])


def _parse_object(item: dict[str, Any]) -> tuple[str, list[float]]:
    """Return the image id as text, and the four numbers of the box followed by its score, if any.

    Raises ValueError if a field is missing or invalid.
    """
    image_id, box, score = (item.get(key) for key in ("image_id", "bbox", "score"))
    if type(image_id) not in (str, int) or (type(image_id) is int and abs(image_id) >= 1 << 63):
        raise ValueError(NO_ID)
    if not isinstance(box, list) or len(box) != 4 or not all(type(n) in (int, float) for n in box):
        raise ValueError("`bbox` must be four numbers: x y width height")
    if score is not None and type(score) not in (int, float):
        raise ValueError("`score` must be a number")
    return str(image_id), [n if abs(n) < 1e300 else math.inf for n in (box if score is None else [*box, score])]
