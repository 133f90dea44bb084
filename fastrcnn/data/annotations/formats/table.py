"""Reader of CSV files with one object per row.

The columns are those of the TensorFlow Object Detection API (`filename,width,height,class,xmin,ymin,xmax,ymax`, in any
order, with common alternative names), or those of Keras-RetinaNet without a header (`path,x1,y1,x2,y2,class`).

Coordinates are in pixels, where 0 is the left or top edge of the image, and boxes are half-open. A data set can have a
file for each split (`train/_annotations.csv`, `test_labels.csv`) or a column `split`. A row without a box stands for an
image without objects.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastrcnn.data.annotations.formats.listing import (
    ListedImage,
    Listing,
    Size,
    folders_of,
    image_id,
    picture_bases,
    resolve,
    split_of,
    tidy,
)
from fastrcnn.data.images import IMAGE_SUFFIXES
from fastrcnn.data.truth.annotated import AnnotatedObject, box_fault, to_float
from fastrcnn.data.truth.problems import Problem
from fastrcnn.data.truth.text_files import read_lines, refuse_link
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError

MAX_BYTES = 500_000_000
# Column names. If a header has several names for a column, the name that comes first here is used.
COLUMNS = {
    "image": ("filename", "file_name", "image_path", "path", "image", "image_name", "img", "image_id", "imageid"),
    "class": ("class", "class_name", "label", "name", "category", "labelname", "class_id"),
    "x1": ("xmin", "x_min", "x1", "left", "bbox_xmin"),
    "y1": ("ymin", "y_min", "y1", "top", "bbox_ymin"),
    "x2": ("xmax", "x_max", "x2", "right", "bbox_xmax"),
    "y2": ("ymax", "y_max", "y2", "bottom", "bbox_ymax"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "split": ("split", "set", "subset", "usage"),
}
NEEDED = ("image", "class", "x1", "y1", "x2", "y2")
WANTED = "filename,width,height,class,xmin,ymin,xmax,ymax"


@dataclass(frozen=True, slots=True)
class _Row:
    number: int  # of the line
    name: str
    corners: tuple[str, ...]  # as written in the file


@dataclass(frozen=True)
class _Image:
    written: str  # path as written in the file
    size: tuple[str, str] | None
    split: str
    rows: list[_Row]


def table_files(folder: Path) -> list[Path]:
    """Find CSV files with boxes in a folder and its direct subfolders.

    Raises UserError if a CSV file cannot be read, or contains a table of boxes with an invalid row.
    """
    found = []
    for file in sorted([*folder.glob("*.csv"), *folder.glob("*/*.csv")]):
        try:
            found += [file] if _read_rows(file) is not None else []
        except UserError:
            refuse_link(file, folder)
            raise
    return found


def read_table(file: Path, folder: Path) -> Listing:
    """Read a CSV file. folder: the data set's folder.

    Raises UserError if the file cannot be read, is not a valid table of boxes, or refers to an image by several paths.
    """
    found = _read_rows(file)
    if found is None:
        raise UserError(
            f"{file}: not a table of boxes. It needs the header {WANTED} (width and height are optional), or only rows "
            "of path,x1,y1,x2,y2,class."
        )
    splits: dict[str, list[str]] = {}
    images: dict[str, ListedImage] = {}
    names: dict[str, None] = {}
    # Folders to search for the images of each split, cached because folders can be large.
    bases: dict[str, list[Path]] = {}
    for image in found.values():
        split = image.split or split_of(file, folder)
        if split not in bases:
            within = [base / name for base in picture_bases(folder) for name in folders_of(split, base)]
            bases[split] = [*picture_bases(file.parent, folder), *within]
        path = resolve(image.written, bases[split]) or tidy(image.written, file.parent)
        own = image_id(path, folder)
        if own in images:
            raise UserError(
                f"{file}, line {image.rows[0].number}: image {own} also occurs with a different path. Use the "
                "same path in all rows of an image."
            )
        size = None if image.size is None else _size(image.size)
        images[own] = ListedImage(path, file, partial(_objects, file, tuple(image.rows)), size)
        splits.setdefault(image.split, []).append(own)
        names.update(dict.fromkeys(row.name for row in image.rows if row.name))
    return Listing("CSV", file, splits, images, sorted(names), "the class column")


def _size(texts: tuple[str, str]) -> Size | None:
    """Convert width and height of an image, as written in the file, to integers. Return None if they are invalid."""
    width, height = (to_float(text) for text in texts)
    return (int(width), int(height)) if 1 <= width < 1e6 and 1 <= height < 1e6 else None


def columns_of(header: Sequence[str]) -> dict[str, int] | None:
    """Return a dictionary from keys of COLUMNS to column indices, or None if a required column is missing."""
    names = [cell.strip().strip("\ufeff").casefold() for cell in header]
    found = {key: names.index(name) for key, alike in COLUMNS.items() for name in alike[::-1] if name in names}
    return found if set(NEEDED) <= found.keys() else None


@read_once(16, fresh=0)
def _read_rows(path: Path) -> dict[str, _Image] | None:
    """Return a dictionary from paths, as written in the file, to images. Return None if it is not a table of boxes."""
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: the file is larger than the limit of {MAX_BYTES // 1_000_000} MB.")
    lines = read_lines(path)
    first = next((line for line in lines if line.strip()), "")
    mark = max(",;\t", key=first.count)
    reader = csv.reader(lines, delimiter=mark)
    rows: list[tuple[int, list[str]]] = []  # with the number of the first line; a quoted cell can span lines
    start = 1
    try:
        for row in reader:
            if any(row):
                rows.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error}).") from None
    if not rows:
        return None
    columns = columns_of(rows[0][1])
    if columns is not None:
        rows = rows[1:]
    elif _is_keras(rows[0][1]):
        columns = {"image": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": 5}
    else:
        return None
    images: dict[str, _Image] = {}
    width = max(columns[key] for key in columns) + 1
    for number, row in rows:
        cells = [cell.strip() for cell in row] + [""] * (width - len(row))
        written = cells[columns["image"]]
        if not written:
            raise UserError(f"{path}, line {number}: the row contains no image path.")
        corners = tuple(cells[columns[key]] for key in ("x1", "y1", "x2", "y2"))
        size = (cells[columns["width"]], cells[columns["height"]]) if {"width", "height"} <= columns.keys() else None
        split = cells[columns["split"]] if "split" in columns else ""
        image = images.setdefault(written, _Image(written, size, split, []))
        if (image.size, image.split) != (size, split):
            raise UserError(
                f"{path}, line {number}: image {written} has a different size or split in line "
                f"{image.rows[0].number}. Correct one of the lines."
            )
        image.rows.append(_Row(number, cells[columns["class"]], corners))
    return images


def _is_keras(row: Sequence[str]) -> bool:
    """Return whether a row is PATH,x1,y1,x2,y2,CLASS, or PATH,,,,, for an image without objects."""
    image = len(row) == 6 and Path(row[0].strip().replace("\\", "/")).suffix.lower() in IMAGE_SUFFIXES
    return image and (not any(cell.strip() for cell in row[1:]) or all(to_float(cell) < 1e7 for cell in row[1:5]))


def _objects(path: Path, rows: Sequence[_Row], size: Size) -> tuple[list[AnnotatedObject], list[Problem]]:
    """Return the objects in the rows of an image, and the errors of the rows. size: width and height of the image."""
    objects, problems = [], []
    for row in rows:
        if not row.name and not any(row.corners):
            if len(rows) > 1:
                what = "the row contains no object, but the image has other rows. Delete this row."
                problems.append(Problem("annotation", str(path), what, line=row.number))
            continue
        values = [to_float(text) for text in row.corners]
        shown = f"({', '.join(row.corners)})"
        if not all(abs(v) < 1e7 for v in values) or not row.name:
            what = f"the row needs a class and four coordinates in pixels, but contains '{row.name}' and {shown}."
            problems.append(Problem("annotation", str(path), what[:300], line=row.number))
            continue
        x1, y1, x2, y2 = values
        if min(size) > 10 and all(0 <= v <= 1 for v in values):
            what = f"the box {shown} looks normalised to 0..1, but must be in pixels. Multiply x by the image's width "
            what += "and y by its height."
            problems.append(Problem("normalised", str(path), what, line=row.number))
            continue
        fault = "is inverted: xmax < xmin or ymax < ymin." if x2 < x1 or y2 < y1 else ""
        fault = fault or box_fault((x1, y1, x2, y2), *size)
        objects.append(AnnotatedObject(path, row.number, row.name, (x1, y1, x2, y2), shown, fault=fault, unit="row"))
    return objects, problems
