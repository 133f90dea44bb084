"""Proposals as text: CSV with a header, and lists of boxes in JSON as COCO's results have them."""

from __future__ import annotations

import csv
import json
import math
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.content import Content, as_boxes
from fastrcnn.proposals.formats.conventions import CONVENTIONS, HALF_OPEN, Convention

IDS = ("image_id", "image", "id")
CORNERS, SIZED = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h")
SEPARATORS = (",", ";", "\t")
MOST = 10  # mistakes shown
NO_ID = "`image_id` should be there, text or a whole number"
TAKEN = (None,)


class _Rows:
    """Boxes as they are read, by image, with whatever is wrong; eight bytes a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, array[float]] = {}
        self.wrong: list[str] = []  # at most MOST
        self.mistakes = 0
        self.scored: bool | None = None

    def add(self, image_id: str, numbers: list[float]) -> str | None:
        """numbers: of a box, and its score or not. Returns what is wrong, if anything."""
        scored = len(numbers) == 5
        self.scored = scored if self.scored is None else self.scored
        if self.scored is not scored:
            return f"has {'a' if scored else 'no'} score, unlike those before it; give all one, or none"
        if not image_id:
            return "the image's id is empty"
        self.numbers.setdefault(image_id, array("d")).extend(numbers)
        return None

    def note(self, where: str, mistake: str | None) -> None:
        """Keeps a mistake, if it is one."""
        if mistake is not None:
            self.mistakes += 1
            if len(self.wrong) < MOST:
                self.wrong.append(f"  {where}: {mistake}")

    def content(self, path: Path, format: str, convention: Convention) -> Content:
        if self.mistakes:
            more = f"\n  and {self.mistakes - MOST} more" if self.mistakes > MOST else ""
            lines = "\n".join(self.wrong)
            raise UserError(f"{path}: {self.mistakes} mistake(s); fix them and try again:\n{lines}{more}")
        ids, columns = list(self.numbers), 5 if self.scored else 4
        return Content(
            (path,),
            format,
            convention,
            ids,
            lambda i: as_boxes(np.frombuffer(self.numbers[ids[i]]).reshape(-1, columns), str(path), (columns,)),
        )


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
            lines = csv.reader(file, delimiter=separator)
            for fields in lines:
                if any(fields):
                    rows.note(f"line {lines.line_num + before}", _add_line(rows, fields, places, wanted))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}); export it again.") from None
    convention = HALF_OPEN if numbers == CORNERS else CONVENTIONS["xywh-0"]
    return rows.content(path, f"CSV with {', '.join(numbers)}", convention)


def _add_line(rows: _Rows, fields: list[str], places: dict[str, int], wanted: list[str]) -> str | None:
    if len(fields) <= max(places[name] for name in (*wanted, "id")):
        return f"{len(fields)} field(s), fewer than the header"
    numbers = []
    for name in wanted:
        text = fields[places[name]]
        try:
            numbers.append(float(text))
        except ValueError:
            return f"{name} should be a number, is '{text[:40]}'"
    return rows.add(fields[places["id"]].strip(), numbers)


def read_json(path: Path) -> Content:
    """A list of objects with `image_id`, `bbox` (x y width height, zero-based) and `score` or not: COCO's results.

    Each object is taken as it is parsed, since as Python's they take ten times the file. Raises UserError with the
    number of every object that is wrong, or the place where the JSON ends to be any.
    """
    rows = _Rows()
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=lambda item: _add_object(rows, item))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON in UTF-8 ({error}); export it again.") from None
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: not JSON, or cut short ({str(error)[:60]}); export it again.") from None
    for number, item in enumerate(items, 1):
        rows.note(f"object {number}", item[0] if isinstance(item, tuple) else NO_ID)
    if not rows.mistakes and sum(map(len, rows.numbers.values())) != len(items) * (5 if rows.scored else 4):
        raise UserError(f"{path}: has objects with boxes within objects; give a list of them.")
    return rows.content(path, "a COCO results list (JSON)", CONVENTIONS["xywh-0"])


def _add_object(rows: _Rows, item: dict[str, Any]) -> tuple[str | None]:
    """What is wrong with an object, or None if it was taken; in a tuple, which JSON has not."""
    image_id, box, score = (item.get(key) for key in ("image_id", "bbox", "score"))
    if type(image_id) not in (str, int) or (type(image_id) is int and abs(image_id) >= 1 << 63):
        return (NO_ID,)
    if not isinstance(box, list) or len(box) != 4 or not all(type(n) in (int, float) for n in box):
        return ("`bbox` should be four numbers, x y width height",)
    if score is not None and type(score) not in (int, float):
        return ("`score` should be a number",)
    numbers = [n if abs(n) < 1e300 else math.inf for n in (box if score is None else [*box, score])]
    mistake = rows.add(str(image_id), numbers)
    return TAKEN if mistake is None else (mistake,)
