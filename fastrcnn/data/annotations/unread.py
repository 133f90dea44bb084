"""Formats of annotations that are not read: how they are recognised, and how to convert them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fastrcnn.data.annotations.formats.listing import images_below
from fastrcnn.data.truth.annotated import to_float
from fastrcnn.data.truth.text_files import read_lines
from fastrcnn.errors import UserError

MAX_BYTES = 20_000_000  # of a JSON file that is looked into
MOST = 50  # files of a kind that are looked into
FIFTYONE = "`fiftyone convert` writes VOC, COCO and YOLO"


def unread(folder: Path) -> str:
    """A sentence that names a format in a folder that is not read, and what to do; or that there are images alone;
    empty if there is nothing to say."""
    for name, file, advice in _found(folder):
        return f" There is {name}, such as {file.relative_to(folder)}, which is not read: {advice}."
    if images := images_below(folder):
        return (
            f" There are {len(images)} images, such as {images[0].relative_to(folder)}, and no annotations: draw boxes "
            "with a tool such as CVAT, Label Studio or LabelImg, and export them."
        )
    return ""


def _found(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """What is recognised: its name, the first file of it, and how to convert it."""
    for pattern in ("*.tfrecord", "*.record", "*.tfrecord-*"):
        for file in _files(folder, pattern):
            yield "a TFRecord", file, f"export the data set as VOC, COCO or YOLO, or convert it: {FIFTYONE}"
    for file in _files(folder, "*.json"):
        if found := _json_format(file):
            yield found[0], file, found[1]
    for file in _files(folder, "*.csv"):
        if "region_shape_attributes" in _first_line(file):
            yield "a VIA table", file, "in VIA, Annotation, Export Annotations (COCO format)"
    for file in _files(folder, "*.txt"):
        words = _first_line(file).split()
        if len(words) in (15, 16) and to_float(words[0]) != to_float(words[0]) and to_float(words[4]) >= 0:
            yield "KITTI's label file", file, f"convert it: {FIFTYONE}"
    for file in _files(folder, "*.mat"):
        yield "a MATLAB file", file, "write its boxes as a CSV file: filename,width,height,class,xmin,ymin,xmax,ymax"


def _json_format(file: Path) -> tuple[str, str] | None:
    """The name of the format of a JSON file that is not read, and how to convert it."""
    try:
        content: Any = None
        if file.stat().st_size <= MAX_BYTES:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return None
    if {"shapes", "imagePath"} <= first.keys():
        return (
            "a file of LabelMe",
            "its script labelme2voc.py writes VOC's XML, the program labelme2coco COCO's",
        )
    if "_via_img_metadata" in first or any(isinstance(v, dict) and "regions" in v for v in first.values()):
        return "a project of VIA", "in VIA, Annotation, Export Annotations (COCO format)"
    if isinstance(first.get("annotations"), list) and ("image" in first or "imagefilename" in first):
        return "a CreateML file", "export the data set as VOC, COCO or YOLO instead"
    if {"objects", "size"} <= first.keys():
        return "a file of Supervisely", "its apps export the project as COCO, VOC or YOLO"
    return None


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(islice((p for p in folder.rglob(pattern) if p.is_file()), MOST))


def _first_line(file: Path) -> str:
    try:
        return next((line for line in read_lines(file) if line.strip()), "") if file.stat().st_size < MAX_BYTES else ""
    except (OSError, UserError):
        return ""
