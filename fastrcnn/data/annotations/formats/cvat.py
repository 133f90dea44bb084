"""Reader of CVAT's XML format "CVAT for images 1.1": one file `annotations.xml` with all images and their shapes.

Coordinates (xtl, ytl, xbr, ybr) are in pixels and can be fractional; 0 is the left or top edge of the image. For a
rotated box, the file contains the box without rotation, and the angle of rotation about its centre. Polygons, ellipses
and masks are replaced by their axis-aligned bounding boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from fastrcnn.data.annotations.formats.listing import (
    ListedImage,
    Listing,
    Size,
    box_around,
    image_id,
    picture_bases,
    resolve,
)
from fastrcnn.data.truth.annotated import AnnotatedObject, Box, box_fault, enclosing, read_flag, to_float
from fastrcnn.data.truth.problems import Problem
from fastrcnn.data.truth.text_files import leads_out
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError

MAX_BYTES = 500_000_000
FEW = 20  # maximum number of XML files in a folder with CVAT files
UNREAD = ("polyline", "points", "cuboid", "skeleton", "tag")


@dataclass(frozen=True)
class _Shape:
    tag: str
    number: int  # in the image, from 1
    values: dict[str, str]  # XML attributes
    difficult: str  # value of the CVAT attribute `difficult`


@dataclass(frozen=True)
class _Image:
    name: str
    size: Size
    split: str
    shapes: list[_Shape] = field(default_factory=list)


def cvat_files(folder: Path) -> list[Path]:
    """Find CVAT files in a folder and its direct subfolders.

    Folders with more than FEW (20) XML files are skipped without reading the files, because CVAT writes only a few.
    """
    found = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    few = [files for place in found if 0 < len(files := list(islice(place.glob("*.xml"), FEW + 1))) <= FEW]
    return [file for files in few for file in sorted(files) if _is_cvat(file)]


def read_cvat(file: Path, folder: Path) -> Listing:
    """Read a CVAT file. folder: the data set's folder.

    Raises UserError if the file cannot be read, is not a CVAT file, contains tracks, or contains an invalid or
    duplicate image entry.
    """
    splits: dict[str, list[str]] = {}
    images: dict[str, ListedImage] = {}
    labels, found = _read_file(file)
    if not _is_cvat(file):
        raise UserError(
            f"{file}: not a CVAT file, because its root element is not <annotations>. To use annotations in Pascal "
            "VOC's format, set data.root to the folder that contains the annotations and the images."
        )
    for image in found:
        if leads_out(image.name):
            raise UserError(
                f"{file}: the path '{image.name}' of an image points outside the folder of the data set. Fix the path."
            )
        bases = picture_bases(file.parent, folder)
        within = [base / image.split for base in bases] if image.split else []  # for example images/Train/a.jpg
        path = resolve(image.name, [*within, *bases]) or file.parent / "images" / image.name
        own = image_id(path, folder)
        if own in images:
            raise UserError(f"{file}: image {own} appears twice. Remove one of the entries.")
        objects = partial(_objects, file, image.name, tuple(image.shapes))
        images[own] = ListedImage(path, file, objects, image.size)
        splits.setdefault(image.split, []).append(own)
    return Listing("CVAT", file, splits, images, labels, file.name)


@read_once(1000)
def _is_cvat(path: Path) -> bool:
    """Return whether a file is XML with the root element <annotations>, as CVAT files are."""
    try:
        with path.open("rb") as file:
            return next(iterparse(file, events=("start",), forbid_dtd=True))[1].tag == "annotations"
    except (OSError, ParseError, DefusedXmlException, StopIteration, ValueError, LookupError):
        return False


@read_once(4, fresh=0)
def _read_file(path: Path) -> tuple[list[str], list[_Image]]:
    """Return the label names and the images of a CVAT file. For the errors raised, see `read_cvat`."""
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: the file is larger than the limit of {MAX_BYTES // 1_000_000} MB.")
    labels: list[str] = []
    images: list[_Image] = []
    try:
        with path.open("rb") as file:
            for _, element in iterparse(file, events=("end",), forbid_dtd=True):
                if element.tag == "label" and element.find("name") is not None:
                    labels.append((element.findtext("name") or "").strip())
                elif element.tag == "track":
                    raise UserError(
                        f"{path}: the file contains tracks (video annotations), which are not supported. Export the "
                        "task, including its images, as 'CVAT for images', 'COCO' or 'Pascal VOC'."
                    )
                elif element.tag == "image":
                    images.append(_read_image(path, element, len(images) + 1))
                    element.clear()
    except ParseError as error:
        line, column = error.position
        raise UserError(f"{path}, line {line}, column {column}: not well-formed XML ({error.msg}).") from None
    except DefusedXmlException:
        raise UserError(f"{path}: a DOCTYPE declaration is not allowed. Remove it.") from None
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None
    except (ValueError, LookupError) as error:
        raise UserError(f"{path}: the text cannot be decoded ({error}).") from None
    used = {shape.values.get("label", "") for image in images for shape in image.shapes}
    return list(dict.fromkeys([*filter(None, labels), *sorted(used - {""})])), images


def _read_image(path: Path, element: Element, number: int) -> _Image:
    name = (element.get("name") or "").replace("\\", "/").strip()
    width, height = (to_float(element.get(key) or "") for key in ("width", "height"))
    if not name or not (1 <= width < 1e6 and 1 <= height < 1e6):
        raise UserError(f"{path}, image {number} ('{name}'): name, width or height (in pixels) is missing or invalid.")
    image = _Image(name, (int(width), int(height)), (element.get("subset") or "").strip())
    for count, child in enumerate(element, 1):
        flags = [a.text or "" for a in child.findall("attribute") if (a.get("name") or "").casefold() == "difficult"]
        image.shapes.append(_Shape(str(child.tag), count, dict(child.attrib), "".join(flags).strip()))
    return image


def _objects(
    path: Path, image: str, shapes: Sequence[_Shape], size: Size
) -> tuple[list[AnnotatedObject], list[Problem]]:
    """Return the objects of an image, and a list of errors (invalid shapes) and notes (ignored or converted shapes)."""
    objects, problems = [], []
    around, unread = dict[str, int](), dict[str, int]()
    for shape in shapes:
        name = shape.values.get("label", "").strip()
        if shape.tag in UNREAD:
            unread[shape.tag] = unread.get(shape.tag, 0) + 1
            continue
        box, shown = _box(shape)
        difficult = read_flag(shape.difficult)
        if box is None or not name or difficult is None:
            what = f"{image}: label, coordinates '{shown}' or `difficult` of <{shape.tag}> is missing or invalid."
            problems.append(Problem("annotation", str(path), what, object=shape.number, name=name or None))
            continue
        fault = "" if box[0] < box[2] and box[1] < box[3] else "has no area."
        degrees = to_float(shape.values.get("rotation", "0"))
        if shape.tag != "box":
            around[shape.tag] = around.get(shape.tag, 0) + 1
        if degrees % 180 and not fault and shape.tag == "box":
            box, what = enclosing(box, shown, degrees, size)
            note = Problem("rotated", str(path), f"{image}: {what}", object=shape.number, name=name)
            problems.append(note)
        fault = fault or box_fault(box, *size)
        shown = f"{shown} in {image}"
        objects.append(AnnotatedObject(path, shape.number, name, box, shown, difficult, fault=fault, unit="shape"))
    if around:
        kinds = ", ".join(f"{number} <{tag}>" for tag, number in around.items())
        what = f"{image}: only the axis-aligned bounding box of each of these shapes is used: {kinds}."
        problems.append(Problem("polygons", str(path), what))
    if unread:
        kinds = ", ".join(f"{number} <{tag}>" for tag, number in unread.items())
        problems.append(Problem("elements", str(path), f"{image}: these elements are ignored: {kinds}."))
    return objects, problems


def _box(shape: _Shape) -> tuple[Box | None, str]:
    """Return the bounding box of a shape in pixels (None if invalid), and its coordinates as text for messages.

    The rotation of an ellipse is applied, but not the rotation of a box.
    """
    keys = {"box": ("xtl", "ytl", "xbr", "ybr"), "ellipse": ("cx", "cy", "rx", "ry")}
    keys["mask"] = ("left", "top", "width", "height")
    if shape.tag == "polygon":
        text = shape.values.get("points", "")
        points = [tuple(to_float(v) for v in point.split(",")) for point in text.split(";") if point.strip()]
        if len(points) < 2 or not all(len(p) == 2 and all(abs(v) < 1e7 for v in p) for p in points):
            return None, text[:80]
        return box_around([(p[0], p[1]) for p in points]), text[:40]
    texts = [shape.values.get(key, "") for key in keys.get(shape.tag, ())]
    shown = f"({', '.join(texts)})"
    a, b, c, d = values = [to_float(text) for text in texts] if texts else [to_float("")] * 4
    if not all(abs(v) < 1e7 for v in values):
        return None, shown
    if shape.tag == "ellipse":
        turn = math.radians(to_float(shape.values.get("rotation", "0")))
        across = math.hypot(c * math.cos(turn), d * math.sin(turn))
        down = math.hypot(c * math.sin(turn), d * math.cos(turn))
        return (None if math.isnan(across) else (a - across, b - down, a + across, b + down)), shown
    return ((a, b, c, d) if shape.tag == "box" else (a, b, a + c, b + d)), shown
