"""COCO annotations to Samples.

Boxes in the file are x, y, width, height, zero-based, in pixels and fractions of them; they become (x, y, x + width,
y + height). Segmentations and keypoints are not read.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastrcnn.data.annotations.coco_file import (
    CocoFile,
    Id,
    annotation_problem,
    id_key,
    is_box,
    is_number,
    read_coco_file,
)
from fastrcnn.data.annotations.truth import FEW, NEARLY_ALL, AnnotatedObject, Problem, Problems, Reading, enclosing
from fastrcnn.structures import Sample

FLAGS = {"0": False, "false": False, "no": False, "": False, "1": True, "true": True, "yes": True}


def coco_classes(path: Path) -> list[str]:
    """Names of the categories that any annotation has, in the order of their ids."""
    file = read_coco_file(path)
    ordered = sorted(file.used & file.categories.keys(), key=lambda key: (isinstance(key, str), key))
    return [file.categories[key] for key in ordered]


def load_coco(
    path: Path,
    image_ids: Sequence[str],
    classes: Sequence[str],
    use_crowds: bool = True,
    skip_bad: bool = False,
    need_pictures: bool = True,
    leave_out_others: bool = False,
    *,
    root: Path,
) -> tuple[list[Sample], Problems]:
    """Samples of the given images of an annotation file, boxes half-open.

    use_crowds: annotations with `iscrowd` are kept and marked difficult, and those with `ignore` are kept, as
    pycocotools evaluates; else both are left out, as training does, and each is noted. root: the data set's folder, see
    CocoFile.ids. The rest is as for `load_voc`.

    Raises UserError, listing everything that is wrong at once, unless `skip_bad`.
    """
    file = read_coco_file(path)
    prefix = file.prefix(root)
    reading = Reading(classes, leave_out_others)
    problems = reading.problems
    problems.found += file.problems
    problems.images = len(image_ids)
    for image_id in image_ids:
        image = file.images.get(image_id.removeprefix(prefix))
        if image is None:
            problems.add("annotation", path, f"there is no image {image_id} in it.")
            continue
        picture = file.base / image.file_name
        if need_pictures and not picture.is_file():
            problems.add("missing_picture", picture, f"no such image, which {path} names.")
            continue
        if not picture.resolve().is_relative_to(file.base.resolve()):
            problems.add("link", picture, "a link leads out of the data set; refused. Put the file itself there.")
            continue
        objects = []
        for number, entry in image.annotations:
            flags = {key: _flag(entry.get(key)) for key in ("iscrowd", "ignore")}
            if unclear := [key for key, value in flags.items() if value is None]:
                what = f"`{unclear[0]}` should be 0 or 1, is {entry[unclear[0]]!r}."
                problems.found.append(annotation_problem(path, number, what))
                continue
            found = _annotated(path, number, entry, file.categories, bool(flags["iscrowd"]))
            if not found.fault and (degrees := _rotation(entry)):  # CVAT gives the box before its rotation
                around, what = enclosing(found.box, found.shown, degrees, (image.width, image.height))
                x1, y1, x2, y2 = around
                found = replace(found, box=around, size=(x2 - x1, y2 - y1))
                problems.notes.append(found.problem("rotated", what, found.name))
            if any(flags.values()) and not use_crowds:
                key = "iscrowd" if flags["iscrowd"] else "ignore"
                what = f"has `{key}`: the annotation is not trained on."
                problems.notes.append(found.problem("crowd", what, found.name))
                continue
            if flags["ignore"] and not flags["iscrowd"]:
                what = "has `ignore`: evaluation counts it, as pycocotools does, though it is not trained on."
                problems.notes.append(found.problem("ignored", what, found.name))
            objects.append(found)
        reading.add(image_id, picture, image.width, image.height, objects, image.number)
    problems.found = explain_missing(problems.found, file, root, len(image_ids))
    return reading.result(path, skip_bad)


def explain_missing(problems: Sequence[Problem], file: CocoFile, root: Path, images: int) -> list[Problem]:
    """The problems; if nearly all images are missing, they say where below `root` the first one is."""
    missing = [p for p in problems if p.kind == "missing_picture"]
    if not images or len(missing) < max(FEW, NEARLY_ALL * images):
        return list(problems)
    name = glob.escape(Path(missing[0].file).name)
    there = next((root.parent if root.is_file() else root).rglob(name), None)
    if there is None:
        return list(problems)
    what = (
        f"no such image, which {file.path} names. There is {there}: correct `file_name`, which is looked up in the "
        "folder of the annotation file, the one above it, and `images` in either."
    )
    return [replace(p, what=what) if p.kind == "missing_picture" else p for p in problems]


def _flag(value: Any) -> bool | None:
    """A flag that is 0 or 1, in the ways in which tools write it; None where it is neither."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, (int, float)):
        return bool(value) if value in (0, 1) else None
    return FLAGS.get(value.strip().lower()) if isinstance(value, str) else None


def _rotation(entry: dict[str, Any]) -> float:
    """Degrees in the attribute `rotation`, as far as they matter to a box; 0 if there is none."""
    attributes = entry.get("attributes")
    degrees: Any = attributes.get("rotation") if isinstance(attributes, dict) else None
    return float(degrees) if is_number(degrees) and degrees % 180 else 0.0


def _annotated(
    file: Path, number: int, entry: dict[str, Any], categories: dict[Id, str], difficult: bool
) -> AnnotatedObject:
    category = entry.get("category_id")
    key = id_key(category)
    name = categories.get(key) if key is not None else None
    name = f"category {category!r}" if name is None else name
    box, area = entry.get("bbox"), entry.get("area")
    if not isinstance(box, list) or not is_box(box):
        nothing, shown = (0.0, 0.0, 0.0, 0.0), f"{box!r}"[:80]
        return AnnotatedObject(file, number, name, nothing, shown, difficult, "should be four numbers.", "annotation")
    x, y, width, height = (float(v) for v in box)
    area = float(area) if isinstance(area, (int, float)) and 0 <= area < 1e14 else width * height
    fault = "" if width > 0 and height > 0 else "has no area: width and height should be more than 0."
    corners = (x, y, x + width, y + height)
    return AnnotatedObject(file, number, name, corners, f"{box}", difficult, fault, "annotation", (width, height), area)
