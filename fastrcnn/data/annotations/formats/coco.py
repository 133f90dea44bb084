"""Convert the COCO annotations of each image to objects. `coco_file.py` reads the file.

Boxes in the file are x, y, width, height in zero-based pixels, which can be fractional. They are converted to half-open
boxes (x, y, x + width, y + height). Segmentations and keypoints are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastrcnn.data.annotations.formats.coco_file import (
    CocoFile,
    CocoImage,
    annotation_problem,
    id_key,
    is_box,
    is_number,
    read_coco_file,
    repeated,
)
from fastrcnn.data.truth.annotated import Annotated, AnnotatedObject, box_fault, enclosing, read_flag
from fastrcnn.data.truth.problems import LEADS_OUT, Problem
from fastrcnn.data.truth.text_files import is_file

FLAGS = ("iscrowd", "ignore")


def coco_classes(path: Path) -> list[str]:
    """Return the names of all categories with annotations in a COCO file, in the order of their ids."""
    file = read_coco_file(path)
    ordered = sorted(file.used & file.categories.keys(), key=lambda key: (isinstance(key, str), key))
    return [file.categories[key] for key in ordered]


def read_coco(path: Path, image_ids: Sequence[str], root: Path, need_pictures: bool = True) -> Iterator[Annotated]:
    """Yield the annotations of each image of a COCO file. Problems of the file itself are in CocoFile.problems.

    Annotations with `iscrowd` are marked difficult, but those with `ignore` are not, as in pycocotools. Training
    excludes both. root: the data set's folder or its only file. need_pictures: whether a missing image is an error.
    """
    file = read_coco_file(path)
    prefix = file.prefix(root)
    for image_id in image_ids:
        image = file.images.get(image_id.removeprefix(prefix))
        if image is None:
            what = f"the file does not list image {image_id}."
            yield Annotated(image_id, path, path, problems=(Problem("annotation", str(path), what),))
            continue
        path_there = file.base / image.file_name
        read = Annotated(image_id, path_there, path, image.width, image.height, number=image.number)
        if need_pictures and not is_file(path_there):
            problem = Problem("missing_image", str(path_there), f"no such image. It is named in {path}.")
            yield replace(read, problems=(problem,))
        elif not path_there.resolve().is_relative_to(file.base.resolve()):
            yield replace(read, problems=(Problem("link", str(path_there), LEADS_OUT),))
        else:
            objects: list[AnnotatedObject] = []
            problems: list[Problem] = []
            for number, entry in image.annotations:
                found, notes = _read_object(file, number, entry, image)
                objects += [found] if found else []
                problems += notes
            yield replace(read, objects=tuple(objects), problems=tuple(problems))


def _read_object(
    file: CocoFile, number: int, entry: dict[str, Any], image: CocoImage
) -> tuple[AnnotatedObject | None, list[Problem]]:
    """Return an annotation's object (None if keys or flags are invalid), and its problems except errors of the box."""
    attributes = entry.get("attributes")
    if fault := repeated(entry) or repeated(attributes if isinstance(attributes, dict) else {}):
        return None, [annotation_problem(file.path, number, fault)]
    flags = {key: read_flag(entry.get(key)) for key in FLAGS}
    if unclear := [key for key, value in flags.items() if value is None]:
        what = f"`{unclear[0]}` must be 0 or 1, but is {repr(entry[unclear[0]])[:80]}."
        return None, [annotation_problem(file.path, number, what)]
    flag = next((key for key, value in flags.items() if value), "")
    key = id_key(entry.get("category_id"))
    category = None if key is None else file.categories.get(key)
    name = f"category {repr(entry.get('category_id'))[:80]}" if category is None else category
    box, area, degrees = entry.get("bbox"), entry.get("area"), _rotation(entry)
    start = AnnotatedObject(
        file.path,
        number,
        name,
        (0.0, 0.0, 0.0, 0.0),
        f"{box!r}"[:100],
        difficult=flag == "iscrowd",
        left_out=flag,
        listed=category is not None,
        unit="annotation",
    )
    if not isinstance(box, list) or not is_box(box):
        return replace(start, fault="is not a list of four numbers below 10,000,000."), []
    x, y, width, height = (float(v) for v in box)
    corners, notes = (x, y, x + width, y + height), []
    fault = "" if width > 0 and height > 0 else "has no area: width and height must be greater than 0."
    area = float(area) if isinstance(area, (int, float)) and 0 <= area < 1e14 else width * height
    if degrees and not fault:  # CVAT stores the box without its rotation
        corners, what = enclosing(corners, start.shown, degrees, (image.width, image.height))
        width, height = corners[2] - corners[0], corners[3] - corners[1]
        notes.append(start.problem("rotated", what, name))
    fault = fault or box_fault(corners, image.width, image.height)
    return replace(start, box=corners, fault=fault, size=(width, height), area=area), notes


def _rotation(entry: dict[str, Any]) -> float:
    """Return an annotation's attribute `rotation` in degrees; 0 if it is missing, invalid, or a multiple of 180."""
    attributes = entry.get("attributes")
    degrees: Any = attributes.get("rotation") if isinstance(attributes, dict) else None
    return float(degrees) if is_number(degrees) and degrees % 180 else 0.0


def where_images_are(path: Path, missing: Path, root: Path) -> str:
    """Return a message that states where a missing image of a COCO file is below `root`, or "" if it was not found."""
    folder = root.parent if root.is_file() else root
    there = next((path for path in folder.rglob("*") if path.name == missing.name), None)
    if there is None:
        return ""
    return (
        f"no such image. It is named in {path}, but was found at {there}. Fix `file_name`, which is relative to the "
        "folder of the annotation file, its parent folder, or `images` or `JPEGImages` in one of them."
    )
