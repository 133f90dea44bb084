"""Recognise unsupported annotation formats, and explain how to convert them."""

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

MAX_BYTES = 20_000_000  # maximum size of a file to inspect
MOST = 50  # maximum number of files to inspect for each pattern
FIFTYONE = "convert it to VOC, COCO or YOLO with `fiftyone convert`"


def unread(folder: Path) -> str:
    """Return advice about a file in an unsupported format, or about images without annotations, in a folder.

    The text starts with a space. It is empty if no unsupported format is recognised and there are no images.
    """
    for name, file, advice in _found(folder):
        return f" Found {name}, {file.relative_to(folder)}, which is not supported: {advice}."
    if images := images_below(folder):
        return (
            f" Found {len(images)} image(s), such as {images[0].relative_to(folder)}, but no annotations. Draw boxes "
            "with a tool such as CVAT, Label Studio or LabelImg, and export them."
        )
    return ""


def _found(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield, for each file in an unsupported format, the format's name, the path, and advice on how to convert it."""
    for pattern in ("*.tfrecord", "*.record", "*.tfrecord-*"):
        for file in _files(folder, pattern):
            yield "a TFRecord", file, f"export the data set in another format, or {FIFTYONE}"
    for file in _files(folder, "*.json"):
        if found := _json_format(file):
            yield found[0], file, found[1]
    for file in _files(folder, "*.csv"):
        if "region_shape_attributes" in _first_line(file):
            yield "a VIA table", file, "in VIA, use Annotation > Export Annotations (COCO format)"
    for file in _files(folder, "*.txt"):
        words = _first_line(file).split()
        if len(words) in (15, 16) and to_float(words[0]) != to_float(words[0]) and to_float(words[4]) >= 0:
            yield "a KITTI label file", file, FIFTYONE
    for file in _files(folder, "*.mat"):
        yield (
            "a MATLAB file",
            file,
            "save its boxes in a CSV file with the columns filename,width,height,class,xmin,ymin,xmax,ymax",
        )


def _json_format(file: Path) -> tuple[str, str] | None:
    """Return the name of a JSON file's unsupported format and advice on how to convert it, or None if unrecognised."""
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
            "a LabelMe file",
            "convert it to VOC with LabelMe's script labelme2voc.py, or to COCO with labelme2coco",
        )
    if "_via_img_metadata" in first or any(isinstance(v, dict) and "regions" in v for v in first.values()):
        return "a VIA project", "in VIA, use Annotation > Export Annotations (COCO format)"
    if isinstance(first.get("annotations"), list) and ("image" in first or "imagefilename" in first):
        return "a CreateML file", "export the data set as VOC, COCO or YOLO instead"
    if {"objects", "size"} <= first.keys():
        return "a Supervisely file", "export the project as COCO, VOC or YOLO with a Supervisely app"
    return None


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(islice((p for p in folder.rglob(pattern) if p.is_file()), MOST))


def _first_line(file: Path) -> str:
    try:
        return next((line for line in read_lines(file) if line.strip()), "") if file.stat().st_size < MAX_BYTES else ""
    except (OSError, UserError):
        return ""
