"""One Pascal VOC XML file: its objects, everything that is wrong with it, and what of it is not used.

Boxes in the files are one-based and inclusive (xmin, ymin, xmax, ymax); they become (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from fastrcnn.data.annotations.truth import AnnotatedObject, Box, Problem, ProblemError, enclosing

MAX_XML_BYTES = 4_000_000  # ten thousand objects; elements in memory take up to a hundred times as much
SIDES = ("xmin", "ymin", "xmax", "ymax")
TRUE, FALSE = ("1", "true", "yes", "t", "y"), ("", "0", "false", "no", "f", "n")

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


@dataclass(frozen=True)
class Annotation:
    """What a VOC file says about an image."""

    width: int
    height: int
    filename: str  # <filename> as it stands in the file
    objects: tuple[AnnotatedObject, ...]  # without those that are marked deleted; boxes half-open
    truncated: int  # objects marked so
    notes: tuple[Problem, ...]  # what is read in another way than it stands in the file, or is not used


def parse_annotation(path: Path, first_pixel: int = 1) -> Annotation:
    """What a VOC XML file says.

    first_pixel: coordinate of the first pixel, 1 in VOC, 0 in zero-based sets.

    Raises ProblemError with everything that makes the file unusable, with its line or the object's number: malformed
    XML, entities, fields that are missing, doubled or no numbers, objects and boxes in places that are not read, boxes
    in fractions of the image. Boxes that do not fit into the image are not looked for.
    """
    root = _root(path)
    file = _File(path)
    file.report_strays(root, "annotation")
    if (size := file.only_child(root, "size")) is not None:
        file.report_strays(size, "size")
    file.size = width, height = file.number(size, "width", "size/width"), file.number(size, "height", "size/height")
    for key, value in (("width", width), ("height", height)):
        if value != math.trunc(value):
            file.report(f"<size/{key}> should be a whole number of pixels, is '{value:g}'.")
    objects, truncated = [], 0
    for number, element in enumerate(root.findall("object"), 1):
        truncated += file.flag(element, "truncated", number, share=True)
        found = _read_object(file, element, number, first_pixel)
        if found is not None:
            objects.append(found)
    filename = (file.text(root, "filename") or "").strip()
    if file.problems:
        raise ProblemError(*file.problems)
    return Annotation(int(width), int(height), filename, tuple(objects), truncated, tuple(file.notes))


def named_image(path: Path) -> str:
    """The name of the image, without folders, that a VOC file says it belongs to; empty if it does not say."""
    try:
        return last_part((_root(path).findtext("filename") or "").strip())
    except ProblemError:
        return ""


def last_part(filename: str) -> str:
    """The name at the end of a path of any system."""
    return re.split(r"[/\\]", filename)[-1]


def _root(path: Path) -> Element:
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise _unusable(path, f"larger than {MAX_XML_BYTES // 1_000_000} MB, not an annotation.")
        root = parse(path, forbid_dtd=True).getroot()
    except ParseError as error:
        line, column = error.position
        raise _unusable(path, f"not well-formed XML at column {column} ({error.msg}).", line) from None
    except DefusedXmlException:
        line = path.read_bytes().partition(b"<!DOCTYPE")[0].count(b"\n") + 1
        raise _unusable(path, "a document type, and so entities, are refused. Remove it.", line) from None
    except FileNotFoundError:
        raise ProblemError(Problem("missing_annotation", str(path), "no such annotation.")) from None
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror}).") from None
    except (ValueError, LookupError) as error:  # an encoding that does not exist or does not fit
        raise _unusable(path, f"not a text that can be read ({error}).") from None
    if root is None or root.tag != "annotation":
        raise _unusable(path, "the root element is not <annotation>; this is no VOC annotation.")
    return root


def _unusable(path: Path, what: str, line: int | None = None) -> ProblemError:
    return ProblemError(Problem("annotation", str(path), what, line))


@dataclass
class _File:
    """Reads fields of a file and collects what is wrong with them."""

    path: Path
    size: tuple[float, float] = (0.0, 0.0)  # of the image
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)  # tags that a note says are not used

    def report(self, what: str, number: int | None = None, kind: str = "annotation") -> None:
        self.problems.append(Problem(kind, str(self.path), what, object=number))

    def note(self, kind: str, what: str, number: int | None = None, name: str | None = None) -> None:
        self.notes.append(Problem(kind, str(self.path), what, object=number, name=name))

    def only_child(self, element: Element | None, tag: str, number: int | None = None) -> Element | None:
        """The child of this tag; several are reported."""
        found = [] if element is None else element.findall(tag)
        if len(found) > 1:
            advice = " Give each box an <object> of its own." if tag == "bndbox" else " Keep one of them."
            self.report(f"has {len(found)} <{tag}>; only one can be read.{advice}", number)
        return found[0] if found else None

    def text(self, element: Element | None, tag: str, number: int | None = None) -> str:
        child = self.only_child(element, tag, number)
        return "" if child is None else (child.text or "").strip()

    def number(self, element: Element | None, tag: str, shown: str, number: int | None = None) -> float:
        """The child as a number; 0, and reported, if it is none."""
        text = self.text(element, tag, number)
        value = _float(text)
        if abs(value) < 1e7:  # neither NaN nor infinity
            return value
        self.report(f"<{shown}> should be a number of pixels, is '{text}'.", number)
        return 0.0

    def flag(self, element: Element, tag: str, number: int, share: bool = False) -> bool:
        """Whether a flag is set, in the usual spellings. share: a number between 0 and 1 sets it too, as in KITTI."""
        text = self.text(element, tag, number)
        value = 1.0 if text.casefold() in TRUE else 0.0 if text.casefold() in FALSE else _float(text)
        if value in (0, 1) or (share and 0 < value < 1):
            return value > 0
        self.report(f"<{tag}> should be 0 or 1 (or true, false, yes, no), is '{text}'.", number)
        return False

    def report_strays(self, element: Element, tag: str, number: int | None = None, also: str = "") -> bool:
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
                    "object/name and annotation/object/bndbox/xmin.",
                    number,
                )
            else:
                unused.add(child.tag)
        if new := sorted(unused - self.unused):  # the first object that has one stands for all of the file
            self.unused |= unused
            self.note("elements", f"not used: {', '.join(f'<{t}>' for t in new)}."[:200], number)
        return bool(refused)


def _plain(element: Element) -> str:
    """An element's tag without namespace and letter case."""
    return element.tag.rpartition("}")[2].casefold()


def _float(text: str) -> float:
    try:
        return float("nan" if "_" in text else text)
    except ValueError:
        return math.nan


def _read_object(file: _File, element: Element, number: int, first_pixel: int) -> AnnotatedObject | None:
    """An object of a file, its box half-open; None if it is deleted or cannot be read."""
    before = len(file.problems)
    rotated_only = element.find("bndbox") is None and element.find("robndbox") is not None
    if file.report_strays(element, "object", number, also="robndbox" if rotated_only else ""):
        return None
    if not (name := file.text(element, "name", number)):
        file.report("<name> is missing or empty.", number)
    difficult = file.flag(element, "difficult", number)
    read = _rotated_box if rotated_only else _upright_box
    box, shown, fault, degrees = read(file, element, number, first_pixel)
    if file.flag(element, "deleted", number):
        del file.problems[before:]
        file.note("flags", "is marked <deleted>, and left out.", number, name or None)
        return None
    if len(file.problems) > before:
        return None
    if file.flag(element, "ignore", number):
        difficult = True
        file.note("flags", "is marked <ignore>, and treated as <difficult>.", number, name)
    if not fault and degrees % 180:
        box, what = enclosing(box, shown, degrees, file.size)
        file.note("rotated", what, number, name)
    return AnnotatedObject(file.path, number, name, box, shown, difficult, fault)


BoxReader = Callable[[_File, Element, int, int], tuple[Box, str, str, float]]


def _upright_box(file: _File, element: Element, number: int, first_pixel: int) -> tuple[Box, str, str, float]:
    """The <bndbox>, half-open; as it stands there; what is wrong with it by its own numbers; its rotation in degrees.

    CVAT gives the box before its rotation about its centre, and the angle as an attribute.
    """
    bndbox = file.only_child(element, "bndbox", number)
    if bndbox is None:
        there = ", ".join(f"<{child.tag}>" for child in element) or "nothing"
        file.report(f"has no <bndbox>, only {there}. Export the data set again with bounding boxes.", number)
        return (0.0, 0.0, 0.0, 0.0), "", "", 0.0
    before = len(file.problems)
    file.report_strays(bndbox, "bndbox", number)
    xmin, ymin, xmax, ymax = sides = [file.number(bndbox, key, f"bndbox/{key}", number) for key in SIDES]
    shown, fault = f"({', '.join(f'{v:g}' for v in sides)})", ""
    point = xmax == xmin and ymax == ymin
    if len(file.problems) > before:
        pass
    elif min(file.size) > SMALLEST and all(0 <= v <= 1 for v in sides) and not (point and xmax in (0, 1)):
        file.report(NORMALISED, number, "normalised")
    elif xmax < xmin or ymax < ymin:
        fault = "is inverted: xmax < xmin or ymax < ymin."
    elif point:
        fault = "is a single point."
    box = (xmin - first_pixel, ymin - first_pixel, xmax - first_pixel + 1, ymax - first_pixel + 1)
    return box, shown, fault, _cvat_rotation(file, element, number)


def _cvat_rotation(file: _File, element: Element, number: int) -> float:
    """Degrees in the attribute `rotation`; 0 if there is none."""
    for attribute in element.findall("attributes/attribute"):
        if (attribute.findtext("name") or "").strip().casefold() == "rotation":
            text = (attribute.findtext("value") or "").strip()
            if math.isfinite(degrees := _float(text)):
                return degrees
            file.report(f"its attribute rotation should be a number of degrees, is '{text}'.", number)
    return 0.0


def _rotated_box(file: _File, element: Element, number: int, first_pixel: int) -> tuple[Box, str, str, float]:
    """roLabelImg's <robndbox>: centre, sides, and the angle in radians; its coordinates begin at the image's edge."""
    rotated = file.only_child(element, "robndbox", number)
    cx, cy, w, h, angle = (
        file.number(rotated, key, f"robndbox/{key}", number) for key in ("cx", "cy", "w", "h", "angle")
    )
    shown = f"(cx {cx:g}, cy {cy:g}, w {w:g}, h {h:g})"
    fault = "" if w > 0 and h > 0 else "has no area: w and h should be more than 0."
    return (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), shown, fault, math.degrees(angle)
