"""Proposals as text: CSV with a header, and lists of boxes in JSON as COCO's results have them."""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.progress import progress
from fastrcnn.proposals.formats.content import Content, Pair
from fastrcnn.proposals.formats.conventions import CONVENTIONS, HALF_OPEN, Convention

IDS = ("image_id", "image", "id")
CORNERS, SIZED = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h")
SEPARATORS = (",", ";", "\t")
MOST = 10  # mistakes shown
MEGABYTE = 1 << 20
T = TypeVar("T")


class _Rows:
    """Boxes as they are read, by image, with whatever is wrong; eight bytes a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, array[float]] = {}
        self.wrong: list[str] = []  # at most MOST
        self.mistakes = 0
        self.scored: bool | None = None

    def add(self, image_id: str, numbers: list[float], where: str) -> None:
        """numbers: of a box, and its score or not."""
        scored = len(numbers) == 5
        if self.scored is None:
            self.scored = scored
        if self.scored is not scored:
            self.mistake(where, f"has {'a' if scored else 'no'} score, unlike those before it; give all one, or none")
        elif not image_id:
            self.mistake(where, "the image's id is empty")
        else:
            self.numbers.setdefault(image_id, array("d")).extend(numbers)

    def mistake(self, where: str, what: str) -> None:
        self.mistakes += 1
        if len(self.wrong) < MOST:
            self.wrong.append(f"  {where}: {what}")

    def content(self, path: Path, format: str, convention: Convention) -> Content:
        if self.mistakes:
            more = f"\n  and {self.mistakes - MOST} more" if self.mistakes > MOST else ""
            lines = "\n".join(self.wrong)
            raise UserError(f"{path}: {self.mistakes} mistake(s); fix them and try again:\n{lines}{more}")
        ids, columns = list(self.numbers), 5 if self.scored else 4

        def read(index: int) -> Pair:
            rows = np.frombuffer(self.numbers[ids[index]]).reshape(-1, columns)
            return rows[:, :4].copy(), rows[:, 4].copy() if columns == 5 else None

        return Content((path,), format, convention, ids, read)


def csv_columns(line: str) -> tuple[str, dict[str, int]] | None:
    """Separator and places of the known columns, if `line` is the header of a proposal file."""
    for separator in SEPARATORS:
        names = [name.strip().strip('"').lower() for name in line.strip().split(separator)]
        places = {name: names.index(name) for name in (*CORNERS, *SIZED, "score") if name in names}
        own = next((name for name in IDS if name in names), None)
        if own and any({*numbers} <= {*places} for numbers in (CORNERS, SIZED)):
            return separator, {**places, "id": names.index(own)}
    return None


def read_csv(path: Path) -> Content:
    """A line a box. Columns, in any order: image_id (or image, id); x1, y1, x2, y2, half-open, or x, y, w, h; and a
    score or not. Zero-based.

    Raises UserError with the number of every line that is wrong.
    """
    rows = _Rows()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, before = file.readline(), 1
            while header and not header.strip():
                header, before = file.readline(), before + 1
            found = csv_columns(header)
            if found is None:
                raise UserError(f"{path}, line {before}: no header with image_id and x1, y1, x2, y2 or x, y, w, h.")
            separator, places = found
            numbers = CORNERS if {*CORNERS} <= {*places} else SIZED
            wanted = [name for name in (*numbers, "score") if name in places]
            lines = csv.reader(_metered(_measured(file), path.stat().st_size), delimiter=separator)
            for fields in lines:
                if any(fields):
                    _add_line(rows, fields, places, wanted, f"line {lines.line_num + before}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}); export it again.") from None
    convention = HALF_OPEN if numbers == CORNERS else CONVENTIONS["xywh-0"]
    return rows.content(path, f"CSV with {', '.join(numbers)}", convention)


def _add_line(rows: _Rows, fields: list[str], places: dict[str, int], wanted: list[str], where: str) -> None:
    if len(fields) <= max(places[name] for name in (*wanted, "id")):
        rows.mistake(where, f"{len(fields)} field(s), fewer than the header")
        return
    numbers = []
    for name in wanted:
        text = fields[places[name]]
        try:
            numbers.append(float(text))
        except ValueError:
            rows.mistake(where, f"{name} should be a number, is '{text[:40]}'")
            return
    rows.add(fields[places["id"]].strip(), numbers, where)


def read_json(path: Path) -> Content:
    """A list of objects with `image_id`, `bbox` (x y width height, zero-based) and `score` or not: COCO's results.

    The objects are taken one at a time, since as Python's they take ten times the file. Raises UserError with the
    number of every object that is wrong, or the place where the JSON ends to be any.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON in UTF-8 ({error}); export it again.") from None
    rows = _Rows()
    for number, item in enumerate(_metered(_objects(path, text), len(text)), 1):
        _add_object(rows, item, f"object {number}")
    return rows.content(path, "a COCO results list (JSON)", CONVENTIONS["xywh-0"])


def _objects(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Where each object of a JSON list ends in the text, and the object."""
    decode = json.JSONDecoder().raw_decode
    at, number = _skip(text, text.index("[") + 1), 0
    closed = text[at : at + 1] == "]"
    while not closed:
        number += 1
        try:
            item, at = decode(text, at)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            raise UserError(f"{path}, line {line}, object {number}: not JSON, or cut short; export it again.") from None
        yield at, item
        at = _skip(text, at)
        closed = text[at : at + 1] == "]"
        if not closed and text[at : at + 1] != ",":
            line = text.count("\n", 0, at) + 1
            raise UserError(f"{path}, line {line}: not JSON after object {number}, or cut short; export it again.")
        at = at if closed else _skip(text, at + 1)


def _add_object(rows: _Rows, item: Any, where: str) -> None:
    image_id, box, score = (item.get(k) if isinstance(item, dict) else None for k in ("image_id", "bbox", "score"))
    if type(image_id) not in (str, int) or (type(image_id) is int and abs(image_id) >= 1 << 63):
        rows.mistake(where, "`image_id` should be there, text or a whole number")
    elif not isinstance(box, list) or len(box) != 4 or not all(type(n) in (int, float) for n in box):
        rows.mistake(where, "`bbox` should be four numbers, x y width height")
    elif score is not None and type(score) not in (int, float):
        rows.mistake(where, "`score` should be a number")
    else:
        numbers = [n if abs(n) < 1e300 else math.inf for n in (box if score is None else [*box, score])]
        rows.add(str(image_id), numbers, where)


def _skip(text: str, at: int) -> int:
    """The next place that is no white space."""
    while text[at : at + 1] in (" ", "\n", "\t", "\r"):
        at += 1
    return at


def _measured(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    done = 0
    for line in lines:
        done += len(line)
        yield done, line


def _metered(items: Iterable[tuple[int, T]], size: int) -> Iterator[T]:
    """The items of a file of so many bytes, each with the place where it ends, with progress."""
    meter, shown = progress(range(size // MEGABYTE), size // MEGABYTE, "reading", "MB"), 0
    for done, item in items:
        yield item
        while done - shown >= MEGABYTE:
            next(meter, None)
            shown += MEGABYTE
