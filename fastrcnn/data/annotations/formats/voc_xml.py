"""Reader of a Pascal VOC XML file: its objects, its errors, and notes about unused elements.

Boxes in the file are one-based and inclusive. They are converted to half-open boxes (xmin - 1, ymin - 1, xmax, ymax).
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

MAX_XML_BYTES = 4_000_000  # about ten thousand objects; parsed elements take up to 100 times as much memory
SIDES = ("xmin", "ymin", "xmax", "ymax")

# Child elements that are not reported as unused, because they are read, or because VOC or common tools write them.
KNOWN = {
    "annotation": {"folder", "filename", "path", "source", "owner", "size", "segmented", "verified", "object"},
    "size": {"width", "height", "depth"},
    "object": {"name", "bndbox", "difficult", "truncated", "ignore", "deleted", "attributes"}
    | {"pose", "occluded", "part", "parts", "actions", "point", "polygon", "mask", "segmented", "type", "view", "id"},
    "bndbox": set(SIDES),
}
# These elements are errors in any place or letter case that is not read, because their content would be lost.
MEANT = {"object", "bndbox", "robndbox", "difficult", *SIDES}
READ = {"annotation": {"size"}, "size": {"width", "height"}, "object": {"name", "truncated", "ignore", "deleted"}}
NORMALISED = (
    "boxes look normalised to 0..1, but must be in pixels. Multiply x by the image's width and y by its height, or "
    "export the data set again."
)
SMALLEST = 10  # pixels; in a smaller image a box between 0 and 1 can be in pixels
NOTHING: Box = (0.0, 0.0, 0.0, 0.0)


@read_once(20_000)
def read_annotation(path: Path, first_pixel: int = 1) -> Annotated:
    """Read a VOC XML file. The image id of the result is empty. Objects marked deleted are excluded.

    first_pixel: coordinate of the first pixel, 1 in VOC, 0 in zero-based data sets.

    Malformed XML, a DOCTYPE, missing, duplicate or invalid fields, objects and boxes in places that are not read, and
    normalised boxes are errors in `problems` of the result, whose `objects` is then None. If a box does not fit into
    the image, only its object is unusable (see AnnotatedObject.fault).
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
            file.report(f"<size/{key}> must be an integer number of pixels, but is '{value:g}'.")
    if not file.errors and min(width, height) < 1:
        file.report(f"the image size {width:g} x {height:g} is not positive. Fix <size>.")
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
    """Return the last part of a path, in the syntax of any operating system."""
    return re.split(r"[/\\]", filename)[-1]


def _root(path: Path) -> Element | Problem:
    """Return the root element of an XML file, or the error that makes the file unusable."""
    line = None
    try:
        if path.stat().st_size <= MAX_XML_BYTES:
            root = parse(path, forbid_dtd=True).getroot()
            if root is not None and root.tag == "annotation":
                return root
            what = "not a VOC annotation, because the root element is not <annotation>."
        else:
            what = f"the file is larger than the limit of {MAX_XML_BYTES // 1_000_000} MB for an annotation."
    except ParseError as error:
        line, column = error.position
        what = f"not well-formed XML at column {column} ({error.msg})."
    except DefusedXmlException:
        line = path.read_bytes().partition(b"<!DOCTYPE")[0].count(b"\n") + 1
        what = "a DOCTYPE declaration is not allowed. Remove it."
    except FileNotFoundError:
        return Problem("missing_annotation", str(path), "no such annotation.")
    except OSError as error:
        what = f"the file cannot be read ({error.strerror})."
    except (ValueError, LookupError) as error:  # an unknown or wrong encoding
        what = f"the text cannot be decoded ({error})."
    return Problem("annotation", str(path), what, line)


@dataclass
class _File:
    """Read the fields of a VOC XML file, and collect errors and notes."""

    path: Path
    first_pixel: int
    size: tuple[float, float] = (0.0, 0.0)  # of the image
    number: int | None = None  # of the current object
    errors: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)  # tags of unused elements that a note already lists

    def report(self, what: str, kind: str = "annotation") -> None:
        self.errors.append(Problem(kind, str(self.path), what, object=self.number))

    def note(self, kind: str, what: str, name: str | None = None) -> None:
        self.notes.append(Problem(kind, str(self.path), what, object=self.number, name=name))

    def only_child(self, element: Element | None, tag: str) -> Element | None:
        """Return the first child with this tag, or None. Report an error if there are several."""
        found = [] if element is None else element.findall(tag)
        if len(found) > 1:
            advice = "Give each box its own <object>." if tag == "bndbox" else "Keep one of them."
            self.report(f"found {len(found)} <{tag}> elements, but only one is allowed. {advice}")
        return found[0] if found else None

    def text(self, element: Element | None, tag: str) -> str:
        child = self.only_child(element, tag)
        return "" if child is None else (child.text or "").strip()

    def pixels(self, element: Element | None, tag: str, shown: str) -> float:
        """Return the number in a child element, or 0 after reporting an error. shown: its place, for the error."""
        text = self.text(element, tag)
        if abs(value := to_float(text)) < 1e7:  # False for NaN and infinity
            return value
        self.report(f"<{shown}> must be a number of pixels, but is '{text}'.")
        return 0.0

    def flag(self, element: Element, tag: str, share: bool = False) -> bool:
        text = self.text(element, tag)
        if (value := read_flag(text, share)) is None:
            self.report(f"<{tag}> must be 0 or 1 (or true, false, yes, no), but is '{text}'.")
        return bool(value)

    def report_strays(self, element: Element, tag: str, also: str = "") -> bool:
        """Report an error for each misplaced child element, and a note about other unused children.

        tag: the element's key in KNOWN. also: a further allowed child. Returns whether there are errors.
        """
        unused, refused = set[str](), set[str]()
        for child in element:
            if child.tag in KNOWN[tag] or child.tag == also or child.tag in refused:
                continue
            held = next((e.tag for e in child.iter() if _plain(e) in MEANT), None)
            if held is not None or _plain(child) in READ.get(tag, ()):
                refused.add(child.tag)
                holds = f", which contains <{held}>," if held not in (None, child.tag) else ""
                self.report(
                    f"<{child.tag}>{holds} is not allowed in <{tag}>. VOC's paths, such as annotation/object/name and "
                    "annotation/object/bndbox/xmin, are case-sensitive."
                )
            else:
                unused.add(child.tag)
        if new := sorted(unused - self.unused):  # one note per tag and file
            self.unused |= unused
            self.note("elements", f"unused elements: {', '.join(f'<{t}>' for t in new)}."[:200])
        return bool(refused)


def _plain(element: Element) -> str:
    """Return an element's tag in lower case, without its namespace."""
    return element.tag.rpartition("}")[2].casefold()


def _read_object(file: _File, element: Element) -> AnnotatedObject | None:
    """Read an <object>. Return None if it is marked deleted, or if it has errors, which are then in `file.errors`."""
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
        file.note("flags", "the object is marked <deleted> and excluded.", name or None)
        return None
    if len(file.errors) > before:
        return None
    if file.flag(element, "ignore"):
        difficult = True
        file.note("flags", "the object is marked <ignore> and treated as <difficult>.", name)
    if not fault and degrees % 180:
        box, what = enclosing(box, shown, degrees, file.size)
        file.note("rotated", what, name)
    fault = fault or box_fault(box, int(file.size[0]), int(file.size[1]))
    return AnnotatedObject(file.path, file.number or 0, name, box, shown, difficult, fault=fault)


def _upright_box(file: _File, element: Element) -> tuple[Box, str, str, float]:
    """Read <bndbox>. Return the half-open box, its coordinates as text, its error or "", and its rotation in degrees.

    CVAT stores the box without rotation and, as an attribute, the angle of rotation about its centre.
    """
    bndbox = file.only_child(element, "bndbox")
    if bndbox is None:
        there = ", ".join(f"<{child.tag}>" for child in element) or "an empty <object>"
        file.report(f"<bndbox> is missing, found only {there}. Export the data set again with bounding boxes.")
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
    """Return an object's attribute `rotation` in degrees, or 0 if it is missing or (reported as an error) invalid."""
    for attribute in element.findall("attributes/attribute"):
        if (attribute.findtext("name") or "").strip().casefold() == "rotation":
            text = (attribute.findtext("value") or "").strip()
            if math.isfinite(degrees := to_float(text)):
                return degrees
            file.report(f"the attribute `rotation` must be a number of degrees, but is '{text}'.")
    return 0.0


def _rotated_box(file: _File, element: Element) -> tuple[Box, str, str, float]:
    """Read roLabelImg's <robndbox>. Return the box before rotation, its coordinates as text, its error, and the angle.

    The element contains centre and size in pixels (0 is the image's edge), and the angle in radians, which is returned
    in degrees. The returned box is half-open, and the error is "" if there is none.
    """
    rotated = file.only_child(element, "robndbox")
    cx, cy, w, h, angle = (file.pixels(rotated, key, f"robndbox/{key}") for key in ("cx", "cy", "w", "h", "angle"))
    shown = f"(cx {cx:g}, cy {cy:g}, w {w:g}, h {h:g})"
    fault = "" if w > 0 and h > 0 else "has no area: w and h must be greater than 0."
    return (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), shown, fault, math.degrees(angle)
