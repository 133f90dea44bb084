"""COCO annotations: a JSON file of images, categories and annotations to Samples.

Boxes in the file are x, y, width, height, zero-based, in pixels and fractions of them; they become (x, y, x + width,
y + height). An image's id here is the file's number as text. Segmentations and keypoints are not looked at.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastrcnn.data.truth import AnnotatedObject, Problem, Problems, Reading
from fastrcnn.errors import UserError
from fastrcnn.structures import Sample

# A list in a JSON file takes about a tenth of the memory of what is made of it. COCO's own files have 450 MB.
MAX_JSON_BYTES = 2_000_000_000


@dataclass(frozen=True)
class CocoImage:
    """An entry of `images`, and the annotations that belong to it."""

    file_name: str
    width: int
    height: int
    annotations: list[tuple[int, dict[str, Any]]]  # with their numbers in the file, from 1
    number: int | str  # its id as it stands in the file


@dataclass(frozen=True)
class CocoFile:
    """A file of annotations; `images` by id."""

    path: Path
    images: dict[str, CocoImage]
    categories: dict[int, str]
    problems: tuple[Problem, ...]  # entries that cannot be used


def read_coco_file(path: Path) -> CocoFile:
    """What a COCO annotation file holds; read once for as long as it does not change.

    Raises UserError, with the line where there is one, for what is no such file, and for images that come twice.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    if stat.st_size > MAX_JSON_BYTES:
        raise UserError(f"{path}: larger than {MAX_JSON_BYTES // 1_000_000_000} GB, which is too much for one file.")
    return _parse(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _parse(path: Path, changed: int, size: int) -> CocoFile:
    content = _json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise UserError(f"{path}: not a COCO annotation file: it lacks the lists `images` and `categories`.")
    problems: list[Problem] = []

    def bad(what: str, annotation: int | None = None) -> None:
        problems.append(Problem("annotation", str(path), what, None, annotation, None, "annotation"))

    categories: dict[int, str] = {}
    for number, entry in enumerate(content["categories"], 1):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not _text(entry.get("name")):
            bad(f"category {number}: has no whole number `id` or no `name`.")
        elif entry["id"] in categories or entry["name"].strip() in categories.values():
            bad(f"category {number}: `{entry['name']}` or its id stands there twice.")
        else:
            categories[entry["id"]] = entry["name"].strip()
    images: dict[str, CocoImage] = {}
    for number, entry in enumerate(content["images"], 1):
        fault = _image_fault(entry)
        if fault:
            bad(f"image {number}: {fault}")
            continue
        if str(entry["id"]) in images:
            raise UserError(f"{path}, image {number}: the id {entry['id']} stands in the file twice. Ids must differ.")
        images[str(entry["id"])] = CocoImage(entry["file_name"], entry["width"], entry["height"], [], entry["id"])
    annotations = content.get("annotations") or []  # test sets have none
    if not isinstance(annotations, list):
        raise UserError(f"{path}: `annotations` should be a list.")
    for number, entry in enumerate(annotations, 1):
        if not isinstance(entry, dict):
            bad("not an object.", number)
        elif str(entry.get("image_id")) not in images:
            bad(f"there is no image {entry.get('image_id')!r} in the file.", number)
        else:
            images[str(entry["image_id"])].annotations.append((number, entry))
    return CocoFile(path, images, categories, tuple(problems))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file (at byte {error.start}).") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists without end
        raise UserError(f"{path}: not the JSON of COCO annotations ({error}).") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _image_fault(entry: Any) -> str:
    """What is wrong with an entry of `images`, or nothing."""
    if not isinstance(entry, dict):
        return "not an object."
    if type(entry.get("id")) not in (int, str) or entry["id"] == "":
        return "has no `id`."
    for key in ("width", "height"):
        if type(entry.get(key)) is not int or not 0 < entry[key] < 1_000_000:
            return f"`{key}` should be a number of pixels, is {entry.get(key)!r}."
    if not _text(entry.get("file_name")):
        return "has no `file_name`."
    name = PurePosixPath(entry["file_name"])
    if name.is_absolute() or ".." in name.parts or "\\" in entry["file_name"] or "\0" in entry["file_name"]:
        return f"`file_name` is '{entry['file_name']}', which leads out of the data set; refused."
    return ""


def find_coco_files(folder: Path) -> list[Path]:
    """JSON files in a folder, in its `annotations` and in folders right below it that look like COCO's."""
    found = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        if not path.is_file():
            continue
        try:
            read_coco_file(path)
        except UserError:  # some other JSON, or a broken one, which is said when somebody names it
            continue
        found.append(path)
    return found


def picture_base(file: CocoFile) -> Path:
    """The folder that the images' `file_name`s are relative to: the first of the usual ones that has the first image.

    Usual are the folder of the file, the one above it, `images` and `JPEGImages` in either, and in each of these
    the part of the file's name after its last underline (instances_train2017.json: train2017).
    """
    here, part = file.path.parent, file.path.stem.rpartition("_")[2]
    roots = [
        here / "images",
        here / "JPEGImages",
        here,
        here.parent / "images",
        here.parent / "JPEGImages",
        here.parent,
    ]
    first = [image.file_name for image in list(file.images.values())[:20]]
    for base in [b for r in roots for b in (r / part, r)]:
        if any((base / name).is_file() for name in first):
            return base
    return here


def coco_classes(path: Path) -> list[str]:
    """Names of the categories that any annotation has, in the order of their ids."""
    file = read_coco_file(path)
    used = [entry.get("category_id") for image in file.images.values() for _, entry in image.annotations]
    numbers = {number for number in used if type(number) is int}
    return [name for number, name in sorted(file.categories.items()) if number in numbers]


def load_coco(
    path: Path,
    image_ids: Sequence[str],
    classes: Sequence[str],
    use_crowds: bool = True,
    skip_bad: bool = False,
    need_pictures: bool = True,
    leave_out_others: bool = False,
) -> tuple[list[Sample], Problems]:
    """Samples of the given images of an annotation file, boxes half-open.

    use_crowds: annotations with `iscrowd` (or `ignore`) are kept and marked difficult, as evaluation wants them;
    else they are left out, as training does. The rest is as for `load_voc`.

    Raises UserError, listing everything that is wrong at once, unless `skip_bad`.
    """
    file = read_coco_file(path)
    reading = Reading(classes, leave_out_others)
    problems = reading.problems
    problems.found += file.problems
    base = picture_base(file)
    for image_id in image_ids:
        image = file.images.get(image_id)
        if image is None:
            problems.add("annotation", path, f"there is no image {image_id} in it.")
            continue
        picture = base / image.file_name
        if need_pictures and not picture.is_file():
            problems.add("missing_picture", picture, f"no such picture; {path} has it as image {image_id}.")
            continue
        if not picture.resolve().is_relative_to(base.resolve()):
            problems.add("link", picture, "a link leads out of the data set; refused. Put the file itself there.")
            continue
        objects = []
        for number, entry in image.annotations:
            difficult = bool(entry.get("iscrowd") or entry.get("ignore"))
            if not difficult or use_crowds:
                objects.append(_annotated(path, number, entry, file.categories, difficult))
        reading.add(image_id, picture, image.width, image.height, objects)
    return reading.result(path, skip_bad)


def _annotated(
    file: Path, number: int, entry: dict[str, Any], categories: dict[int, str], difficult: bool
) -> AnnotatedObject:
    category = entry.get("category_id")
    name = categories.get(category) if type(category) is int else None
    name = f"category {category!r}" if name is None else name
    box = entry.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(type(v) in (int, float) and math.isfinite(v) and abs(v) < 1e7 for v in box)
    ):
        nothing, shown = (0.0, 0.0, 0.0, 0.0), f"{box!r}"[:80]
        return AnnotatedObject(file, number, name, nothing, shown, difficult, "should be four numbers.", "annotation")
    x, y, width, height = (float(v) for v in box)
    fault = "" if width > 0 and height > 0 else "has no area: width and height should be more than 0."
    return AnnotatedObject(file, number, name, (x, y, x + width, y + height), f"{box}", difficult, fault, "annotation")
