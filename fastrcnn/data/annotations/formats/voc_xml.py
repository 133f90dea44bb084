"""One Pascal VOC XML file: its objects, everything that is wrong with it, and what of it is not used.

Boxes in the files are one-based and inclusive (xmin, ymin, xmax, ymax); they become (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from fastrcnn.data.truth.annotated import Annotated, AnnotatedObject, Box, box_fault, enclosing, read_flag, to_float
from fastrcnn.data.truth.problems import Problem
from fastrcnn.data.truth.versions import read_once

MAX_XML_BYTES = 4_000_000  # ten thousand objects; elements in memory take up to a hundred times as much
SIDES = ("xmin", "ymin", "xmax", "ymax")

# What an element may hold without a note: what is read, and what VOC and the usual tools write beside it.
KNOWN = {
    "annotation": {"folder", "filename", "path", "source", "owner", "size", "segmented", "verified", "object"},
    "size": {"width", "height", "depth"},
    "object": {"name", "bndbox", "difficult", "truncated", "ignore", "deleted", "attributes"}
    | {"pose", "occluded", "part", "parts", "actions", "point", "polygon", "mask", "segmented", "type", "view", "id"},
    "bndbox": set(SIDES),
}
# Whoever writes one of these in another place or in other letters means something that is read.
MEANT = {"object", "bndbox", "robndbox", "difficult", *SIDES}
READ = {"annotation": {"size"}, "size": {"width", "height"}, "object": {"name", "truncated", "ignore", "deleted"}}
NORMALISED = (
    "boxes look normalised to 0..1. Pixels are needed: multiply x by the image's width and y by its height, or export "
    "the data set again."
)
SMALLEST = 10  # pixels: in a smaller image a box between 0 and 1 may be one in pixels
NOTHING: Box = (0.0, 0.0, 0.0, 0.0)


@read_once(20_000)
def read_annotation(path: Path, first_pixel: int = 1) -> Annotated:
    """What a VOC XML file says, of an image that the caller knows; its id is empty. Objects marked deleted are left
    out. first_pixel: coordinate of the first pixel, 1 in VOC, 0 in zero-based sets.

    Errors, with a line or the object's number, are malformed XML, entities, fields that are missing, doubled or no
    numbers, objects and boxes in places that are not read, boxes in fractions of the image. A box that does not fit
    into the image is a fault of its object.
    """
    root = _root(path)
    if isinstance(root, Problem):
        return Annotated("", path, path, problems=(root,))
    file = _File(path, first_pixel)
    file.report_strays(root, "annotation")
    filename = file.text(root, "filename")
    if (size := file.only_child(root, "size")) is not None:
        file.report_strays(size, "size")
    width, height = file.size = (file.pixels(size, "width", "size/width"), file.pixels(size, "height", "size/height"))
    for key, value in (("width", width), ("height", height)):
        if value != math.trunc(value):
            file.report(f"<size/{key}> should be a whole number of pixels, is '{value:g}'.")
    if not file.errors and min(width, height) < 1:
        file.report(f"the image's size is given as {width:g} x {height:g}.")
    truncated, objects = 0, []
    for number, element in enumerate(root.findall("object"), 1):
        file.number = number
        truncated += file.flag(element, "truncated", share=True)
        objects.append(_read_object(file, element))
    if file.errors:
        return Annotated("", path, path, problems=tuple(file.errors), filename=filename)
    kept, notes = tuple(o for o in objects if o is not None), tuple(file.notes)
    return Annotated("", path, path, int(width), int(height), kept, notes, truncated, filename=filename)


def last_part(filename: str) -> str:
    """The name at the end of a path of any system."""
    return re.split(r"[/\\]", filename)[-1]


def _root(path: Path) -> Element | Problem:
    """The root element, or why the file cannot be used."""
    line = None
    try:
        if path.stat().st_size <= MAX_XML_BYTES:
            root = parse(path, forbid_dtd=True).getroot()
            if root is not None and root.tag == "annotation":
                return root
            what = "the root element is not <annotation>; this is no VOC annotation."
        else:
            what = f"larger than {MAX_XML_BYTES // 1_000_000} MB, not an annotation."
    except ParseError as error:
        line, column = error.position
        what = f"not well-formed XML at column {column} ({error.msg})."
    except DefusedXmlException:
        line = path.read_bytes().partition(b"<!DOCTYPE")[0].count(b"\n") + 1
        what = "a document type, and so entities, are refused. Remove it."
    except FileNotFoundError:
        return Problem("missing_annotation", str(path), "no such annotation.")
    except OSError as error:
        what = f"cannot be read ({error.strerror})."
    except (ValueError, LookupError) as error:  # an encoding that does not exist or does not fit
        what = f"not a text that can be read ({error})."
    return Problem("annotation", str(path), what, line)


@dataclass
class _File:
    """Reads fields of a file and collects what is wrong with them."""

    path: Path
    first_pixel: int
    size: tuple[float, float] = (0.0, 0.0)  # of the image
    number: int | None = None  # of the object that is read
    errors: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)  # tags that a note says are not used

    def report(self, what: str, kind: str = "annotation") -> None:
        self.errors.append(Problem(kind, str(self.path), what, object=self.number))

    def note(self, kind: str, what: str, name: str | None = None) -> None:
        self.notes.append(Problem(kind, str(self.path), what, object=self.number, name=name))

    def only_child(self, element: Element | None, tag: str) -> Element | None:
        """The child of this tag; several are reported."""
        found = [] if element is None else element.findall(tag)
        if len(found) > 1:
            advice = "Give each box its own <object>." if tag == "bndbox" else "Keep one of them."
            self.report(f"has {len(found)} <{tag}>; only one can be read. {advice}")
        return found[0] if found else None

    def text(self, element: Element | None, tag: str) -> str:
        child = self.only_child(element, tag)
        return "" if child is None else (child.text or "").strip()

    def pixels(self, element: Element | None, tag: str, shown: str) -> float:
        """The child as a number; 0, and reported, if it is none."""
        text = self.text(element, tag)
        if abs(value := to_float(text)) < 1e7:  # neither NaN nor infinity
            return value
        self.report(f"<{shown}> should be a number of pixels, is '{text}'.")
        return 0.0

    def flag(self, element: Element, tag: str, share: bool = False) -> bool:
        text = self.text(element, tag)
        if (value := read_flag(text, share)) is None:
            self.report(f"<{tag}> should be 0 or 1 (or true, false, yes, no), is '{text}'.")
        return bool(value)

    def report_strays(self, element: Element, tag: str, also: str = "") -> bool:
        """Reports children that are not read; whether there is an error, because they hold what is meant to be read."""
        unused, refused = set[str](), set[str]()
        for child in element:
            if child.tag in KNOWN[tag] or child.tag == also or child.tag in refused:
                continue
            held = next((e.tag for e in child.iter() if _plain(e) in MEANT), None)
            if held is not None or _plain(child) in READ.get(tag, ()):
                refused.add(child.tag)
                holds = f", which holds <{held}>," if held not in (None, child.tag) else ""
                self.report(
                    f"<{child.tag}>{holds} is not read in <{tag}>. VOC's layout, in these letters, is annotation/"
                    "object/name and annotation/object/bndbox/xmin."
                )
            else:
                unused.add(child.tag)
        if new := sorted(unused - self.unused):  # the first object that has one stands for all of the file
            self.unused |= unused
            self.note("elements", f"not used: {', '.join(f'<{t}>' for t in new)}."[:200])
        return bool(refused)


def _plain(element: Element) -> str:
    """An element's tag without namespace and letter case."""
    return element.tag.rpartition("}")[2].casefold()


def _read_object(file: _File, element: Element) -> AnnotatedObject | None:
    """An object of a file; None if it is deleted or cannot be read."""
    before = len(file.errors)
    rotated_only = element.find("bndbox") is None and element.find("robndbox") is not None
    if file.report_strays(element, "object", also="robndbox" if rotated_only else ""):
        return None
    if not (name := file.text(element, "name")):
        file.report("<name> is missing or empty.")
    difficult = file.flag(element, "difficult")
    box, shown, fault, degrees = (_rotated_box if rotated_only else _upright_box)(file, element)
    if file.flag(element, "deleted"):
        del file.errors[before:]
        file.note("flags", "is marked <deleted>, and left out.", name or None)
        return None
    if len(file.errors) > before:
        return None
    if file.flag(element, "ignore"):
        difficult = True
        file.note("flags", "is marked <ignore>, and treated as <difficult>.", name)
    if not fault and degrees % 180:
        box, what = enclosing(box, shown, degrees, file.size)
        file.note("rotated", what, name)
    fault = fault or box_fault(box, int(file.size[0]), int(file.size[1]))
    return AnnotatedObject(file.path, file.number or 0, name, box, shown, difficult, fault=fault)


def _upright_box(file: _File, element: Element) -> tuple[Box, str, str, float]:
    """The <bndbox>, half-open; as it stands there; what is wrong with it by its own numbers; its rotation in degrees.

    CVAT gives the box before its rotation about its centre, and the angle as an attribute.
    """
    bndbox = file.only_child(element, "bndbox")
    if bndbox is None:
        there = ", ".join(f"<{child.tag}>" for child in element) or "nothing"
        file.report(f"has no <bndbox>, only {there}. Export the data set again with bounding boxes.")
        return NOTHING, "", "", 0.0
    before = len(file.errors)
    file.report_strays(bndbox, "bndbox")
    xmin, ymin, xmax, ymax = sides = [file.pixels(bndbox, key, f"bndbox/{key}") for key in SIDES]
    shown, fault = f"({', '.join(f'{v:g}' for v in sides)})", ""
    point = xmax == xmin and ymax == ymin
    if len(file.errors) > before:
        return NOTHING, "", "", 0.0
    if min(file.size) > SMALLEST and all(0 <= v <= 1 for v in sides) and not (point and xmax in (0, 1)):
        file.report(NORMALISED, "normalised")
    elif xmax < xmin or ymax < ymin:
        fault = "is inverted: xmax < xmin or ymax < ymin."
    elif point:
        fault = "is a single point."
    first = file.first_pixel
    box = (xmin - first, ymin - first, xmax - first + 1, ymax - first + 1)
    return box, shown, fault, _cvat_rotation(file, element)


def _cvat_rotation(file: _File, element: Element) -> float:
    """Degrees in the attribute `rotation`; 0 if there is none."""
    for attribute in element.findall("attributes/attribute"):
        if (attribute.findtext("name") or "").strip().casefold() == "rotation":
            text = (attribute.findtext("value") or "").strip()
            if math.isfinite(degrees := to_float(text)):
                return degrees
            file.report(f"its attribute rotation should be a number of degrees, is '{text}'.")
    return 0.0


def _rotated_box(file: _File, element: Element) -> tuple[Box, str, str, float]:
    """roLabelImg's <robndbox>: centre, sides, and the angle in radians; its coordinates begin at the image's edge."""
    rotated = file.only_child(element, "robndbox")
    cx, cy, w, h, angle = (file.pixels(rotated, key, f"robndbox/{key}") for key in ("cx", "cy", "w", "h", "angle"))
    shown = f"(cx {cx:g}, cy {cy:g}, w {w:g}, h {h:g})"
    fault = "" if w > 0 and h > 0 else "has no area: w and h should be more than 0."
    return (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), shown, fault, math.degrees(angle)
