"""The JSON file of COCO annotations: where it is, its images, categories and annotations, and which cannot be used.

Ids in such a file are unique in this file alone, and exporters number every split from 1; an image's id in this program
is therefore its path below the data set's folder, as `train/0001.jpg`.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastrcnn.data.truth.problems import Problem
from fastrcnn.data.truth.text_files import leads_out
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError

# A list in a JSON file takes about a tenth of the memory of what is made of it. COCO's own files have 450 MB.
MAX_JSON_BYTES = 2_000_000_000
Id = int | str
OUTSIDE = "which leads out of the data set; refused. Write paths relative to the folder of the images."
TWICE = "an image stands in the file once."


class OtherJsonError(UserError):
    """A JSON file of something else than COCO annotations."""


@dataclass(frozen=True)
class CocoImage:
    """An entry of `images`, and the annotations that belong to it."""

    file_name: str  # with / between folders
    width: int
    height: int
    annotations: list[tuple[int, dict[str, Any]]]  # with their numbers in the file, from 1
    number: Id  # its id as it stands in the file


@dataclass(frozen=True)
class CocoFile:
    """A file of annotations."""

    path: Path
    base: Path  # the folder that the images' `file_name`s are relative to
    images: dict[str, CocoImage]  # by file_name; in the order of the file's ids
    categories: dict[Id, str]  # names by id_key: those that annotations use, and all others of other names
    category_ids: dict[str, Id]  # by name, as they stand in the file
    used: frozenset[Id]  # ids of the categories that annotations use
    annotated: bool  # whether it has annotations, which lists of test images lack
    problems: tuple[Problem, ...]  # entries that cannot be used
    refused: int  # images among them

    def prefix(self, root: Path) -> str:
        """What stands before a `file_name` in an image's id: the folder of the images below `root`, the data set's
        folder or its only file."""
        folder = os.path.relpath(self.base, root.parent if root.is_file() else root)
        parts = [part for part in PurePosixPath(folder).parts if part != ".."]
        return f"{PurePosixPath(*parts)}/" if parts else ""

    @property
    def paths(self) -> frozenset[Path]:
        """The files of the images."""
        return frozenset(self.base / name for name in self.images)

    def ids(self, root: Path) -> list[str]:
        """The images' ids, unique in the data set: paths below its folder."""
        return list(self.numbers(root))

    def numbers(self, root: Path) -> dict[str, Id]:
        """The ids that images have in the file, by their ids."""
        prefix = self.prefix(root)
        return {prefix + name: image.number for name, image in self.images.items()}


# ------------------------------------------------------------------------------------------------ which files


def json_files(folder: Path) -> list[Path]:
    """JSON files in a folder and in folders right below it."""
    return sorted(path for path in [*folder.glob("*.json"), *folder.glob("*/*.json")] if path.is_file())


def find_coco_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The COCO files among the JSON files of a folder and the folders right below it, and what is wrong with those that
    cannot be read, which may be COCO's too. JSON of something else is neither."""
    faults = {path: _fault(path) for path in json_files(folder)}
    return [p for p, fault in faults.items() if fault is None], {p: fault for p, fault in faults.items() if fault}


@read_once(256, fresh=0)
def _fault(path: Path) -> str | None:
    """Why a file cannot be read, nothing for JSON of something else, and None for a COCO file."""
    found = _or_fault(read_coco_file, path)
    return found if isinstance(found, str) else None


@read_once(256, fresh=0)
def coco_images(path: Path) -> frozenset[Path] | str:
    """The images of a COCO file that may not be used otherwise, of which nothing else is kept; or as `_fault`."""
    found = _or_fault(_parse, path)
    return found if isinstance(found, str) else found.paths


def _or_fault(read: Callable[[Path], CocoFile], path: Path) -> CocoFile | str:
    try:
        return read(path)
    except OtherJsonError:
        return ""
    except UserError as error:
        return str(error)


# ------------------------------------------------------------------------------------------------ reading one


@read_once(4, fresh=0)
def read_coco_file(path: Path) -> CocoFile:
    """What a COCO annotation file holds; read once for as long as it does not change.

    Raises UserError, with the line if known, for a file that is not COCO's (OtherJsonError for other JSON) and for ids
    that two images share.
    """
    return _parse(path)


def _parse(path: Path) -> CocoFile:
    content = _json(path)
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        raise OtherJsonError(f"{path}: not a COCO annotation file: it lacks the lists `images` and `categories`.")
    content["annotations"] = content.get("annotations") or []  # test sets have none
    entries: dict[str, list[dict[str, Any]]] = {}
    for name in ("images", "categories", "annotations"):
        if not isinstance(content[name], list):
            raise UserError(f"{path}: `{name}` should be a list.")
        entries[name] = [e if isinstance(e, dict) else {} for e in content[name]]  # what is no object has no fields
    annotations = entries["annotations"]
    of_image = Counter(id_key(a.get("image_id")) for a in annotations)
    images, refused, problems = _images(path, entries["images"], of_image)
    used = frozenset(key for a in annotations if (key := id_key(a.get("category_id"))) is not None)
    categories, faults = _categories(path, entries["categories"], used)
    problems += faults
    smallest = min((min(i.width, i.height) for i in images.values()), default=1)
    boxes: list[list[float]] = [a["bbox"] for a in annotations if is_box(a.get("bbox"))]
    if boxes and smallest > 1 and all(0 <= v <= 1 for box in boxes for v in box):
        what = f"all {len(boxes)} boxes lie between 0 and 1: they look normalised by the images' sizes. "
        problems.append(Problem("normalised", str(path), what + "They are not read."))
    else:
        problems += _share_out(path, annotations, images, refused)
    ordered = sorted(images.values(), key=lambda i: (isinstance(i.number, str), i.number))  # as pycocotools sorts
    numbers: dict[Id | None, Any] = {id_key(c.get("id")): c.get("id") for c in entries["categories"]}
    return CocoFile(
        path,
        _picture_base(path, [i.file_name for i in images.values()]),
        {i.file_name: i for i in ordered},
        categories,
        {name: numbers[key] for key, name in categories.items()},
        used,
        bool(annotations),
        tuple(problems),
        len(entries["images"]) - len(images),
    )


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path}: larger than {MAX_JSON_BYTES // 1_000_000_000} GB, which is too much for a file.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 (at byte {error.start}).") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists without end
        raise UserError(f"{path}: not the JSON of COCO annotations ({error}).") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _images(
    path: Path, entries: list[dict[str, Any]], of_image: Counter[Id | None]
) -> tuple[dict[Id, CocoImage], set[Id], list[Problem]]:
    """The images that can be used by their ids, the ids of the others, and what is wrong with those, once a cause."""
    images: dict[Id, CocoImage] = {}
    names: dict[str, int] = {}
    refused: set[Id] = set()
    causes: dict[str, list[tuple[str, Id | None]]] = {}  # what to say of each image, and its id; by the cause
    for number, entry in enumerate(entries, 1):
        key = id_key(entry.get("id"))
        cause = fault = _image_fault(entry)
        name = "" if fault else str(PurePosixPath(entry["file_name"].replace("\\", "/")))
        if not fault and (key in images or key in refused):
            raise UserError(f"{path}, image {number}: the id {entry['id']} stands in the file twice. Ids must differ.")
        if not fault and leads_out(entry["file_name"]):
            cause, fault = OUTSIDE, f"`file_name` is '{entry['file_name']}', {OUTSIDE}"
        elif not fault and name in names:
            cause, fault = TWICE, f"`file_name` is '{name}', as of image {names[name]}; {TWICE}"
        if fault:
            causes.setdefault(cause, []).append((f"image {number}: {fault}", key))
        if key is not None and fault:
            refused.add(key)
        elif key is not None:
            names[name] = number
            images[key] = CocoImage(name, int(entry["width"]), int(entry["height"]), [], entry["id"])
    problems = []
    for found in causes.values():
        alike = f" The same holds for {len(found)} images; this is the first." if len(found) > 1 else ""
        lost = sum(of_image[key] for key in {key for _, key in found} & refused)
        theirs = f" {lost} annotation(s) of images that cannot be used are not read." if lost else ""
        problems.append(Problem("annotation", str(path), f"{found[0][0]}{alike}{theirs}"))
    return images, refused, problems


def _image_fault(entry: dict[str, Any]) -> str:
    """What is wrong with an entry of `images`, or nothing."""
    if id_key(entry.get("id")) is None:
        return "has no `id`."
    for key in ("width", "height"):
        if not is_number(entry.get(key)) or entry[key] % 1 or not 0 < entry[key] < 1_000_000:
            return f"`{key}` should be a whole number of pixels, is {entry.get(key)!r}."
    return "" if _text(entry.get("file_name")) else "has no `file_name`."


def _categories(path: Path, entries: list[dict[str, Any]], used: frozenset[Id]) -> tuple[dict[Id, str], list[Problem]]:
    """Names by id, and what is wrong with those that annotations use. Others, such as Roboflow's root, take no name."""
    categories: dict[Id, str] = {}
    spare: dict[str, Id] = {}
    faults = []
    for number, entry in enumerate(entries, 1):
        key, name = id_key(entry.get("id")), _text(entry.get("name"))
        if key is not None and key not in used:
            if name and key not in spare.values():
                spare.setdefault(name, key)
        elif key is None or not name:
            faults.append(f"category {number}: has no whole number or text as `id`, or no `name`.")
        elif categories.get(key, name) != name:
            faults.append(f"category {number}: the id {entry['id']!r} stands in the file twice.")
        elif key not in categories and name in categories.values():
            faults.append(f"category {number}: the name '{name}' stands in the file twice.")
        else:
            categories[key] = name
    names = set(categories.values())
    categories |= {key: name for name, key in spare.items() if name not in names}
    return categories, [Problem("annotation", str(path), fault) for fault in faults]


def _share_out(
    path: Path, entries: list[dict[str, Any]], images: dict[Id, CocoImage], refused: set[Id]
) -> list[Problem]:
    """Gives each image its annotations; what is wrong with those that have none."""
    orphans: list[tuple[int, Any]] = []  # annotations without an image, and its id
    for number, entry in enumerate(entries, 1):
        key = id_key(entry.get("image_id"))
        if key in images:
            images[key].annotations.append((number, entry))  # type: ignore[index]
        elif key not in refused:
            orphans.append((number, entry.get("image_id")))
    if not orphans:
        return []
    number, image_id = orphans[0]
    alike = f" {len(orphans)} annotations have no image; this is the first." if len(orphans) > 1 else ""
    return [annotation_problem(path, number, f"there is no image {repr(image_id)[:80]} in the file.{alike}")]


def _picture_base(path: Path, names: Sequence[str]) -> Path:
    """The folder that the images' `file_name`s are relative to: the first of those below that has a first image."""
    part = path.stem.rpartition("_")[2]  # train2017 of instances_train2017.json
    roots = [folder / name for folder in (path.parent, path.parent.parent) for name in ("images", "JPEGImages", ".")]
    for base in [b for root in roots for b in (root / part, root)]:
        if any((base / name).is_file() for name in names[:20]):
            return base
    return path.parent


def annotation_problem(path: Path, number: int, what: str) -> Problem:
    """What is wrong with the annotation of this number in the file, from 1."""
    return Problem("annotation", str(path), what, None, number, None, "annotation")


def id_key(value: Any) -> Id | None:
    """An id as it is compared: a whole number, also where it is written as 5.0 or "5", or another text; else None."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text or None
    return value if type(value) is int else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def is_box(box: Any) -> bool:
    """Whether a value of a JSON file is four numbers."""
    return isinstance(box, list) and len(box) == 4 and all(is_number(v) for v in box)


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file can be a number of pixels."""
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e7
