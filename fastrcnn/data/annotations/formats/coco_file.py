"""Find and read COCO annotation files: images, categories, annotations, and their errors.

The ids in COCO files are unique only within a file, because exporters number the images of each split from 1. In this
package, the id of an image is therefore its path relative to the data set's folder, such as `train/0001.jpg`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastrcnn.data.truth.problems import Problem
from fastrcnn.data.truth.text_files import LONE, is_file, leads_out
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError

# Parsed JSON takes about ten times the size of the file in memory. COCO's own files are 450 MB large.
MAX_JSON_BYTES = 2_000_000_000
Id = int | str
OUTSIDE = "which points outside the folder of the data set. Paths must be relative to the folder of the images."
TWICE = "Each image can have only one entry."


class OtherJsonError(UserError):
    """The error for a JSON file that does not contain COCO annotations."""


@dataclass(frozen=True)
class CocoImage:
    """An entry of the list `images` in a COCO file, and its annotations."""

    file_name: str  # with / as the separator
    width: int
    height: int
    annotations: list[tuple[int, dict[str, Any]]]  # each with its position in the list `annotations`, from 1
    number: Id  # its id in the file


@dataclass(frozen=True)
class CocoFile:
    """A COCO annotation file."""

    path: Path
    base: Path  # folder that every `file_name` is relative to
    images: dict[str, CocoImage]  # by file_name, sorted by id in the file
    categories: dict[Id, str]  # names by normalised id (see id_key), without unused categories that repeat a name
    category_ids: dict[str, Id]  # ids as in the file, by name
    used: frozenset[Id]  # normalised ids of the categories with annotations
    annotated: bool  # whether the file has annotations; files of test images have none
    problems: tuple[Problem, ...]  # errors of entries that are not used
    refused: int  # number of unusable images

    def prefix(self, root: Path) -> str:
        """Return the part of image ids before the `file_name`: the images' folder relative to `root`, such as `train/`.

        root: the data set's folder or its only file. If it is the folder of the images, the result is empty.
        """
        folder = os.path.relpath(self.base, root.parent if root.is_file() else root)
        parts = [part for part in PurePosixPath(folder).parts if part != ".."]
        return f"{PurePosixPath(*parts)}/" if parts else ""

    @property
    def paths(self) -> frozenset[Path]:
        """Return the paths of the images."""
        return frozenset(self.base / name for name in self.images)

    def ids(self, root: Path) -> list[str]:
        """Return the image ids: paths relative to the data set's folder `root`, which are unique in the data set."""
        return list(self.numbers(root))

    def numbers(self, root: Path) -> dict[str, Id]:
        """Map each image id (the path relative to the data set's folder `root`) to the id of the image in the file."""
        prefix = self.prefix(root)
        return {prefix + name: image.number for name, image in self.images.items()}


# ------------------------------------------------------------------------------------------------ which files


def json_files(folder: Path) -> list[Path]:
    """Find JSON files in a folder and its direct subfolders."""
    return sorted(path for path in [*folder.glob("*.json"), *folder.glob("*/*.json")] if path.is_file())


def find_coco_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return the COCO files in a folder and its direct subfolders, and the error messages of unreadable JSON files.

    Neither result contains valid JSON files with other content.
    """
    faults = {path: _fault(path) for path in json_files(folder)}
    return [p for p, fault in faults.items() if fault is None], {p: fault for p, fault in faults.items() if fault}


@read_once(256, fresh=0)
def _fault(path: Path) -> str | None:
    """Return None for a COCO file, an error message for an unreadable file, or "" for JSON with other content."""
    found = _or_fault(read_coco_file, path)
    return found if isinstance(found, str) else None


@read_once(256, fresh=0)
def coco_images(path: Path) -> frozenset[Path] | str:
    """Return the image paths of a COCO file, an error message for an unreadable file, or "" for other JSON."""
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
    """Read a COCO annotation file. The result is cached until the file changes.

    Raises UserError if the file cannot be read, an entry that must be a list is not one, or two images share an id.
    Raises OtherJsonError if the JSON has other content.
    """
    return _parse(path)


def _parse(path: Path) -> CocoFile:
    content = _json(path)
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        raise OtherJsonError(
            f"{path}: not a COCO annotation file, because the list `images` or `categories` is missing."
        )
    if None in content:
        raise UserError(f"{path}: {repeated(content)} Merge the lists or remove one of them.")
    content["annotations"] = content.get("annotations") or []  # test sets have none
    entries: dict[str, list[dict[str, Any]]] = {}
    for name in ("images", "categories", "annotations"):
        if not isinstance(content[name], list):
            raise UserError(f"{path}: `{name}` must be a list.")
        entries[name] = [e if isinstance(e, dict) else {} for e in content[name]]  # other types count as empty entries
    annotations = entries["annotations"]
    of_image = Counter(id_key(a.get("image_id")) for a in annotations)
    images, refused, problems = _images(path, entries["images"], of_image)
    used = frozenset(key for a in annotations if (key := id_key(a.get("category_id"))) is not None)
    categories, faults = _categories(path, entries["categories"], used)
    problems += faults
    smallest = min((min(i.width, i.height) for i in images.values()), default=1)
    boxes: list[list[float]] = [a["bbox"] for a in annotations if is_box(a.get("bbox"))]
    if boxes and smallest > 1 and all(0 <= v <= 1 for box in boxes for v in box):
        what = f"all coordinates of the {len(boxes)} box(es) are between 0 and 1, so they look normalised. "
        problems.append(Problem("normalised", str(path), what + "The boxes are not read."))
    else:
        problems += _share_out(path, annotations, images, refused)
    ordered = sorted(images.values(), key=lambda i: (isinstance(i.number, str), i.number))  # the order of pycocotools
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
            raise UserError(f"{path}: the file is larger than the limit of {MAX_JSON_BYTES // 1_000_000_000} GB.")
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 (at byte {error.start}).") from None
    except RecursionError:
        raise UserError(f"{path}: the JSON cannot be read, because its lists are nested too deeply.") from None
    except ValueError:  # see sys.set_int_max_str_digits
        raise UserError(f"{path}: the JSON cannot be read, because a number has more than 4,300 digits.") from None
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str | None, Any]:
    """Convert a JSON object to a dict. If a key occurs more than once, it is the value of the additional key None."""
    found: dict[str | None, Any] = dict(pairs)
    if len(found) < len(pairs):
        found[None] = Counter(key for key, _ in pairs).most_common(1)[0][0]
    return found


def repeated(entry: dict[Any, Any]) -> str:
    """Return the error message about a key that occurs more than once in a JSON object, or "" if there is none."""
    return f"the key `{entry[None][:80]}` occurs more than once." if None in entry else ""


def _images(
    path: Path, entries: list[dict[str, Any]], of_image: Counter[Id | None]
) -> tuple[dict[Id, CocoImage], set[Id], list[Problem]]:
    """Return the usable images by id, the ids of unusable images, and one problem per cause of unusable images."""
    images: dict[Id, CocoImage] = {}
    names: dict[str, int] = {}
    refused: set[Id] = set()
    causes: dict[str, list[tuple[str, Id | None]]] = {}  # message and id of each image, by cause
    for number, entry in enumerate(entries, 1):
        key = id_key(entry.get("id"))
        cause = fault = _image_fault(entry)
        name = "" if fault else str(PurePosixPath(entry["file_name"].replace("\\", "/")))
        if not fault and (key in images or key in refused):
            raise UserError(
                f"{path}, image {number}: the id {str(entry['id'])[:80]} is used twice. Ids must be unique."
            )
        if not fault and leads_out(entry["file_name"]):
            cause, fault = OUTSIDE, f"`file_name` is '{entry['file_name']}', {OUTSIDE}"
        elif not fault and name in names:
            cause, fault = TWICE, f"`file_name` '{name}' is the same as in image {names[name]}. {TWICE}"
        if fault:
            causes.setdefault(cause, []).append((f"image {number}: {fault}", key))
        if key is not None and fault:
            refused.add(key)
        elif key is not None:
            names[name] = number
            images[key] = CocoImage(name, int(entry["width"]), int(entry["height"]), [], entry["id"])
    problems = []
    for found in causes.values():
        alike = f" The same problem occurs in {len(found)} images. This is the first." if len(found) > 1 else ""
        lost = sum(of_image[key] for key in {key for _, key in found} & refused)
        theirs = f" {lost} annotation(s) of unusable images are not read." if lost else ""
        problems.append(Problem("annotation", str(path), f"{found[0][0]}{alike}{theirs}"))
    return images, refused, problems


def _image_fault(entry: dict[str, Any]) -> str:
    """Return the error of an entry of the list `images`, or an empty string if the entry is valid."""
    if fault := repeated(entry):
        return fault
    if id_key(entry.get("id")) is None:
        return "`id` is missing, or is not an integer or text."
    for key in ("width", "height"):
        if not is_number(entry.get(key)) or entry[key] % 1 or not 0 < entry[key] < 1_000_000:
            return f"`{key}` must be an integer from 1 to 999,999 (pixels), but is {repr(entry.get(key))[:80]}."
    if not (name := _text(entry.get("file_name"))):
        return "`file_name` is missing, or is not text."
    lone = LONE.search(name)
    return f"`file_name` contains the character {lone[0]!a}, which no file name can contain." if lone else ""


def _categories(path: Path, entries: list[dict[str, Any]], used: frozenset[Id]) -> tuple[dict[Id, str], list[Problem]]:
    """Return category names by id, and the errors of categories that have annotations or no valid id.

    Categories without annotations, such as Roboflow's root, are dropped if another category has the same name.
    """
    categories: dict[Id, str] = {}
    names, seen = set[str](), set[Id]()  # of the categories with annotations, and the ids of the others
    spare: dict[str, Id] = {}
    faults = []
    for number, entry in enumerate(entries, 1):
        key, name = id_key(entry.get("id")), _text(entry.get("name"))
        if fault := repeated(entry):
            faults.append(f"category {number}: {fault}")
        elif key is not None and key not in used:
            if name and key not in seen and name not in spare:
                spare[name] = key
                seen.add(key)
        elif key is None or not name:
            faults.append(f"category {number}: `id` or `name` is missing, or has the wrong type.")
        elif categories.get(key, name) != name:
            faults.append(f"category {number}: the id {repr(entry['id'])[:80]} is used twice.")
        elif key not in categories and name in names:
            faults.append(f"category {number}: the name '{name}' is used twice.")
        else:
            categories[key] = name
            names.add(name)
    categories |= {key: name for name, key in spare.items() if name not in names}
    return categories, [Problem("annotation", str(path), fault) for fault in faults]


def _share_out(
    path: Path, entries: list[dict[str, Any]], images: dict[Id, CocoImage], refused: set[Id]
) -> list[Problem]:
    """Add each annotation to its image. Return at most one problem, about annotations of images that do not exist."""
    orphans: list[tuple[int, Any]] = []  # number and image id of annotations without an image
    for number, entry in enumerate(entries, 1):
        key = id_key(entry.get("image_id"))
        if key in images:
            images[key].annotations.append((number, entry))  # type: ignore[index]
        elif key not in refused:
            orphans.append((number, entry.get("image_id")))
    if not orphans:
        return []
    number, image_id = orphans[0]
    alike = f" {len(orphans)} annotations have no image. This is the first." if len(orphans) > 1 else ""
    return [annotation_problem(path, number, f"the file has no image with the id {repr(image_id)[:80]}.{alike}")]


def _picture_base(path: Path, names: Sequence[str]) -> Path:
    """Return the folder of the images: the first candidate that contains any of the first 20 files in `names`."""
    part = path.stem.rpartition("_")[2]  # train2017 in instances_train2017.json
    roots = [folder / name for folder in (path.parent, path.parent.parent) for name in ("images", "JPEGImages", ".")]
    for base in [b for root in roots for b in (root / part, root)]:
        if any(is_file(base / name) for name in names[:20]):
            return base
    return path.parent


def annotation_problem(path: Path, number: int, what: str) -> Problem:
    """Create a problem of an annotation. number: its position in the list `annotations`, from 1. what: the message."""
    return Problem("annotation", str(path), what, None, number, None, "annotation")


def id_key(value: Any) -> Id | None:
    """Normalise an id for comparison: 5.0 and "5" become 5, other text is stripped. Return None for other values."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text or None
    return value if type(value) is int else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def is_box(box: Any) -> bool:
    """Return whether a JSON value is a list of four numbers."""
    return isinstance(box, list) and len(box) == 4 and all(is_number(v) for v in box)


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number that can be a coordinate in pixels (between -1e7 and 1e7)."""
    return type(value) in (int, float) and abs(value) < 1e7  # False for NaN and infinity
