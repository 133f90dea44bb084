"""Reader of Label Studio's exports "JSON" and "JSON-MIN": a list of tasks, each with an image and its regions.

Coordinates are percentages of the width and height of the upright image. For a rotated rectangle, the file contains the
rectangle without rotation, and the angle of rotation about its first corner. Polygons and ellipses are replaced by
their axis-aligned bounding boxes. If a task has several annotations, the newest is used.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fastrcnn.data.annotations.formats.listing import (
    ListedImage,
    Listing,
    Size,
    box_around,
    image_id,
    picture_bases,
    resolve,
)
from fastrcnn.data.images import IMAGE_SUFFIXES
from fastrcnn.data.truth.annotated import AnnotatedObject, Box, box_fault
from fastrcnn.data.truth.problems import Problem
from fastrcnn.data.truth.text_files import LONE
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError

MAX_BYTES = 500_000_000
SHAPES = ("rectangle", "polygon", "ellipse", "rectanglelabels", "polygonlabels", "ellipselabels")  # `type` of results
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # prefix that Label Studio adds to the names of uploaded files
Task = dict[str, Any]


def label_studio_files(folder: Path) -> list[Path]:
    """Find Label Studio files in a folder and its direct subfolders."""
    return [p for p in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]) if _read_tasks(p) is not None]


def read_label_studio(path: Path, folder: Path) -> Listing:
    """Read a Label Studio file. folder: the data set's folder.

    Raises UserError if the file has another format, an annotated task names no image, or two tasks have the same image.
    """
    tasks = _read_tasks(path)
    if tasks is None:
        raise UserError(
            f"{path}: the file contains neither COCO annotations nor Label Studio tasks (JSON or JSON-MIN)."
        )
    images: dict[str, ListedImage] = {}
    newest: dict[str, str] = {}
    names: dict[str, None] = {}
    problems: list[Problem] = []
    left_out: list[Any] = []
    several: list[Any] = []
    finder = _Finder(folder)
    for number, task in enumerate(tasks, 1):
        which = task.get("id", number)
        regions, annotations = _regions(task)
        if regions is None:
            left_out.append(which)
            continue
        place = finder.image_of(task)
        if place is None:
            raise UserError(f"{path}, task {which}: no value of the task is a path or URL of an image.")
        own, date = image_id(place, folder), str(task.get("updated_at") or "")
        if own in images and "data" in task:
            raise UserError(f"{path}, task {which}: another task also has the image {own}. Remove one of the tasks.")
        if annotations > 1 or own in images:
            several.append(which)
        if date < newest.get(own, ""):  # JSON-MIN has one entry for each annotation
            continue
        newest[own] = date
        names |= dict.fromkeys(name for region in regions for name in _labels(region))
        images[own] = ListedImage(place, path, partial(_objects, path, which, tuple(regions)), _size(regions))
    if left_out:
        what = f"{len(left_out)} task(s) without an annotation, such as task {left_out[0]}, are not used."
        problems.append(Problem("lone", str(path), what))
    if several:
        what = f"{len(several)} task(s), such as task {several[0]}, have several annotations. The newest is used."
        problems.append(Problem("several", str(path), what))
    return Listing("Label Studio", path, {"": list(images)}, images, sorted(names), path.name, tuple(problems))


def is_json_list(path: Path) -> bool:
    """Return whether a JSON file contains a list, judging by its first character. (COCO files contain an object.)"""
    try:
        with path.open("rb") as file:
            return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    except OSError:
        return False


@read_once(4, fresh=0)
def _read_tasks(path: Path) -> list[Task] | None:
    """Return the tasks of a file, or None if it cannot be read, is larger than MAX_BYTES, or has another format."""
    try:
        if path.stat().st_size > MAX_BYTES or not is_json_list(path):
            return None
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, list) or not content or not all(isinstance(task, dict) for task in content):
        return None
    whole = all(isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list) for task in content)
    return content if whole or all("annotation_id" in task and "id" in task for task in content) else None


def _regions(task: Task) -> tuple[list[dict[str, Any]] | None, int]:
    """Return the regions of a task's newest annotation (None if none exists), and the number of its annotations."""
    if "data" not in task:  # JSON-MIN: the labelling interface defines the key of the list of regions
        if task.get("annotation_id") is None:
            return None, 0
        lists = [value for value in task.values() if isinstance(value, list)]
        return _drawn([r for value in lists for r in value if isinstance(r, dict)]), 1
    done = [a for a in task["annotations"] if isinstance(a, dict) and not a.get("was_cancelled")]
    if not done:
        return None, 0
    newest = max(done, key=lambda a: str(a.get("updated_at") or a.get("created_at") or ""))
    results = newest.get("result")
    results = [r for r in results if isinstance(r, dict)] if isinstance(results, list) else []
    return _drawn([{**r, **r["value"]} for r in results if isinstance(r.get("value"), dict)]), len(done)


def _drawn(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of an annotation that define regions, one for each region.

    Results such as text and choices repeat the coordinates of their region. If the shape and the label of a region are
    separate results, both contain the coordinates.
    """
    labelled = {r.get("id") for r in results if any(map(_is_shape, r))}
    alone = [r for r in results if r.get("type") in SHAPES and r.get("id") not in labelled]
    return [r for r in results if any(map(_is_shape, r)) or any(r is other for other in alone)]


def _is_shape(key: str) -> bool:
    return key.endswith("labels")


def _shape(region: dict[str, Any]) -> str:
    """Return the shape of a region: rectangle, polygon or ellipse, or an empty string for other shapes."""
    if "rle" in region or "sequence" in region:
        return ""
    if isinstance(region.get("points"), list):
        return "polygon"
    return "ellipse" if "radiusX" in region else "rectangle" if {"x", "y", "width", "height"} <= region.keys() else ""


def _labels(region: dict[str, Any]) -> list[str]:
    """Return the labels (class names) of a region."""
    found = [value for key, value in region.items() if _is_shape(key) and isinstance(value, list)]
    return [name for names in found for name in names if isinstance(name, str) and name]


@dataclass
class _Finder:
    """Find the images of tasks below a data set's folder."""

    folder: Path
    stored: dict[str, Path] | None = None  # images by `_stored_name`; None until they are first needed

    def image_of(self, task: Task) -> Path | None:
        """Return the path of a task's image, even if the file does not exist, or None if the task names no image."""
        data = task["data"] if isinstance(task.get("data"), dict) else task
        texts = [data.get("image"), data.get("img"), *data.values()]
        named = [text for text in texts if isinstance(text, str) and _suffix(text) in IMAGE_SUFFIXES]
        if not named:
            return None
        path = PurePosixPath(_local(named[0]))
        uploaded, plain = task.get("file_upload"), UPLOADED.sub("", path.name)
        for name in (str(path), *([uploaded] if isinstance(uploaded, str) else []), plain):
            if there := resolve(name, picture_bases(self.folder)):
                return there
        if self.stored is None:
            files = [p for base in picture_bases(self.folder) if base.is_dir() for p in sorted(base.iterdir())]
            self.stored = {_stored_name(p.name): p for p in files[::-1] if p.suffix.lower() in IMAGE_SUFFIXES}
        return self.stored.get(plain, self.folder / "images" / path.name)


def _stored_name(name: str) -> str:
    """Return the name under which Label Studio stores a file: without spaces and special characters."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _local(text: str) -> str:
    """Return the file path that a URL contains, such as a/b.jpg for `/data/local-files/?d=a/b.jpg`."""
    address = urlsplit(text.replace("\\", "/"))
    return LONE.sub("\ufffd", parse_qs(address.query).get("d", [unquote(address.path)])[0])


def _suffix(text: str) -> str:
    return PurePosixPath(_local(text)).suffix.lower()


def _size(regions: Sequence[dict[str, Any]]) -> Size | None:
    """Return width and height of the image in pixels as stated in its regions, or None if no region states them."""
    for region in regions:
        size = region.get("original_width"), region.get("original_height")
        if all(type(v) is int and 0 < v < 1_000_000 for v in size):
            return size  # type: ignore[return-value]
    return None


def _objects(
    path: Path, task: Any, regions: Sequence[dict[str, Any]], size: Size
) -> tuple[list[AnnotatedObject], list[Problem]]:
    """Return the objects of a task, and a list of errors (invalid regions) and notes (ignored or converted regions)."""
    objects, problems = [], []
    around = unread = 0
    for number, region in enumerate(regions, 1):
        shape, names = _shape(region), _labels(region)
        if not shape:
            unread += 1
            continue
        if len(names) != 1:
            box, fault = None, f"the region has {len(names)} labels. Give it exactly one."
        elif region.get("image_rotation"):
            turn = region["image_rotation"]
            box, fault = None, f"the image is rotated by {turn} degrees in Label Studio. Rotate the image file instead."
        else:
            box, shown, fault = _box(shape, region, size)
        if box is None:
            what = f"task {task}: {fault}"
            problems.append(Problem("annotation", str(path), what, object=number, name=names[0] if names else None))
            continue
        around += shape != "rectangle"
        if shape == "rectangle" and _number(region.get("rotation", 0)) % 90:
            x1, y1, x2, y2 = box
            inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1]))
            box = inside if inside[0] < inside[2] and inside[1] < inside[3] else box
            what = f"task {task}: the box {shown} is rotated. Its axis-aligned bounding box is used."
            problems.append(Problem("rotated", str(path), what, object=number, name=names[0]))
        fault = "has no area." if box[0] >= box[2] or box[1] >= box[3] else box_fault(box, *size)
        shown = f"{shown} of task {task}"
        objects.append(AnnotatedObject(path, number, names[0], box, shown, fault=fault, unit="region"))
    if around:
        what = f"task {task}: only the axis-aligned bounding box of each of {around} polygon(s) or ellipse(s) is used."
        problems.append(Problem("polygons", str(path), what))
    if unread:
        what = f"task {task}: {unread} region(s) other than rectangles, polygons and ellipses are ignored."
        problems.append(Problem("elements", str(path), what))
    return objects, problems


def _number(value: Any) -> float:
    """Convert a JSON number below 1e7 to a float. Return NaN for other values."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e7 else math.nan


def _box(shape: str, region: dict[str, Any], size: Size) -> tuple[Box | None, str, str]:
    """Return a region's bounding box in pixels, its coordinates as they are in the file (text), and an error message.

    If the coordinates are invalid, the box is None; otherwise the message is empty. size: image width and height.
    """
    if shape == "polygon":
        points = region.get("points")
        pairs = [p for p in points if isinstance(p, list) and len(p) == 2] if isinstance(points, list) else []
        corners = [(_number(x), _number(y)) for x, y in pairs]
        shown = f"({repr(points)[:60]})"
        if len(corners) < 2 or not all(math.isfinite(v) for corner in corners for v in corner):
            return None, shown, f"the points {shown} must be at least two pairs of numbers."
    else:
        keys = ("x", "y", "width", "height") if shape == "rectangle" else ("x", "y", "radiusX", "radiusY")
        x, y, w, h = values = [_number(region.get(key)) for key in keys]
        shown = f"({', '.join(f'{v:g}' for v in values)})"
        turn = _number(region.get("rotation", 0))
        if not all(map(math.isfinite, (*values, turn))):
            return None, shown, f"the numbers {shown} and the rotation {region.get('rotation', 0)!r} must be finite."
        offsets = [(0.0, 0.0), (w, 0.0), (w, h), (0.0, h)] if shape == "rectangle" else [(-w, -h), (w, h)]
        # Rotate in pixels, because percentages of width and of height have different scales.
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        ratio = size[1] / size[0]
        if shape == "ellipse" and turn % 180:
            across, down = math.hypot(w * cos, h * ratio * sin), math.hypot(w / ratio * sin, h * cos)
            offsets = [(-across, -down), (across, down)]
        elif shape == "rectangle" and turn % 360:
            offsets = [(dx * cos - dy * ratio * sin, dx / ratio * sin + dy * cos) for dx, dy in offsets]
        corners = [(x + dx, y + dy) for dx, dy in offsets]
    x1, y1, x2, y2 = box_around(corners)
    return (x1 * size[0] / 100, y1 * size[1] / 100, x2 * size[0] / 100, y2 * size[1] / 100), shown, ""
