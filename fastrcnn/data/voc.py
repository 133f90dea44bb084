"""Pascal VOC annotations: XML files and split lists to Samples.

The layout of a data set is the devkit's: `JPEGImages/ID.jpg`, `Annotations/ID.xml`, `ImageSets/Main/SPLIT.txt`. Boxes
in the files are one-based and inclusive (xmin, ymin, xmax, ymax); they become (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from fastrcnn.errors import UserError, nearest
from fastrcnn.structures import Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_XML_BYTES = 4_000_000  # ten thousand objects; elements in memory take up to a hundred times as much


@dataclass
class Problems:
    """What is wrong with a data set, collected so that everything can be said at once."""

    lines: list[str] = field(default_factory=list)
    clipped: int = 0  # boxes that stood out of their image by at most one pixel

    def add(self, where: Path | str, what: str) -> None:
        self.lines.append(f"{where}: {what}")

    def text(self, most: int = 20) -> str:
        more = len(self.lines) - most
        return "\n".join(f"  {line}" for line in self.lines[:most]) + (f"\n  and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class AnnotatedObject:
    """One `<object>` of a VOC file; the box as it stands there, one-based and inclusive."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def parse_annotation(path: Path) -> tuple[int, int, list[AnnotatedObject]]:
    """Width, height and objects of a VOC XML file.

    Raises UserError with the file, and the line or the object's number, for whatever cannot be read: malformed XML,
    entities, missing or non-numeric fields.
    """
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise UserError(f"{path}: larger than {MAX_XML_BYTES // 1_000_000} MB, not an annotation.")
        root = parse(path, forbid_dtd=True).getroot()
    except ParseError as error:
        line, column = error.position
        raise UserError(f"{path}, line {line}, column {column}: not well-formed XML ({error.msg}).") from None
    except DefusedXmlException:
        before = path.read_bytes().partition(b"<!DOCTYPE")[0]
        line = before.count(b"\n") + 1
        raise UserError(f"{path}, line {line}: a document type, and so entities, are refused. Remove it.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, LookupError) as error:  # an encoding that does not exist or does not fit
        raise UserError(f"{path}: not a text that can be read ({error}).") from None
    if root is None or root.tag != "annotation":
        raise UserError(f"{path}: the root element is not <annotation>; this is no VOC annotation.")
    filename = (root.findtext("filename") or "").strip()
    if _leads_out(filename):
        raise UserError(f"{path}: <filename> is '{filename}', which leads out of the data set. Give the name alone.")
    width, height = (int(_number(root, f"size/{key}", path, "the image")) for key in ("width", "height"))
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        where = f"object {number}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{path}, {where}: <name> is missing or empty.")
        xmin, ymin, xmax, ymax = (
            _number(element, f"bndbox/{key}", path, where) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (element.findtext("difficult") or "0").strip() == "1"
        objects.append(AnnotatedObject(name, (xmin, ymin, xmax, ymax), difficult))
    return width, height, objects


def _number(element: Element, key: str, path: Path, where: str) -> float:
    text = (element.findtext(key) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e7:  # NaN and infinity too
        raise UserError(f"{path}, {where}: <{key}> should be a number of pixels, is '{text}'.")
    return value


def read_split(root: Path, split: str) -> list[str]:
    """Image ids in `ImageSets/Main/SPLIT.txt` below `root`.

    Raises UserError where there is no such list (naming those there are), it is empty, names an id twice, or an id
    would lead out of the folder.
    """
    folder = root / "ImageSets" / "Main"
    path = folder / f"{split}.txt"
    if not path.is_file():
        if not root.is_dir():
            raise UserError(f"data.root: there is no folder {root}.")
        present = sorted(p.stem for p in folder.glob("*.txt"))
        there = f"There are: {', '.join(present[:20])}." if present else f"{folder} has none."
        raise UserError(f"{path}: no list of images for the split '{split}'. {there}{nearest(split, present)}")
    ids: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        image_id = words[0]
        if len(words) > 2 or words[1:] not in ([], ["-1"], ["0"], ["1"]):  # as in the devkit's class-wise lists
            raise UserError(f"{path}, line {number}: wanted an id without spaces, found '{line.strip()[:80]}'.")
        if _leads_out(image_id):
            raise UserError(f"{path}, line {number}: the id '{image_id}' leads out of the data set; refused.")
        if image_id in ids:
            raise UserError(f"{path}, line {number}: '{image_id}' stands in line {ids[image_id]} already.")
        ids[image_id] = number
    if not ids:
        raise UserError(f"{path}: the list is empty.")
    return list(ids)


def _leads_out(name: str) -> bool:
    """Whether an id or a file's name is absolute, or has `..`, a backslash or a null character in it."""
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not {"\\", "\0"}.isdisjoint(name)


def find_image(root: Path, image_id: str) -> Path | None:
    """The picture `JPEGImages/ID.*` below `root`, or None."""
    for suffix in IMAGE_SUFFIXES:
        for candidate in (suffix, suffix.upper()):
            path = root / "JPEGImages" / f"{image_id}{candidate}"
            if path.is_file():
                return path
    return None


def find_classes(root: Path, image_ids: Sequence[str]) -> tuple[list[str], Problems]:
    """Names of all objects in the annotations of `image_ids`, sorted, and which annotations cannot be read."""
    names: set[str] = set()
    problems = Problems()
    for image_id in image_ids:
        try:
            _, _, objects = parse_annotation(root / "Annotations" / f"{image_id}.xml")
        except UserError as error:
            problems.lines.append(str(error))
            continue
        names.update(o.name for o in objects)
    return sorted(names), problems


def load_voc(
    root: Path,
    image_ids: Sequence[str],
    classes: Sequence[str],
    use_difficult: bool = True,
    skip_bad: bool = False,
    need_pictures: bool = True,
) -> tuple[list[Sample], Problems]:
    """Samples of the given images, boxes half-open.

    use_difficult: objects marked `difficult` are kept (and marked); else they are left out.
    skip_bad: leave out whatever is wrong, a file or an object, and report it in the Problems returned.
    need_pictures: whether the picture must be there; the truth alone does for evaluating saved detections.

    Raises UserError, listing everything that is wrong at once, unless `skip_bad`: missing files, broken XML, unknown
    classes, boxes that are inverted, a single point, or out of their image by more than one pixel, and files that a
    link leads to outside the data set.
    """
    problems = Problems()
    samples = []
    unknown: dict[str, list[str]] = {}  # where each class that is not in the list stands
    label_of = {name: i for i, name in enumerate(classes, 1)}
    folders = [f.resolve() for f in (root, root / "JPEGImages", root / "Annotations")]  # these may be links
    for image_id in image_ids:
        image = find_image(root, image_id)
        annotation = root / "Annotations" / f"{image_id}.xml"
        missing = image is None and need_pictures
        if missing:
            problems.add(root / "JPEGImages" / image_id, f"no such picture ({', '.join(IMAGE_SUFFIXES)}).")
        outside = [p for p in (image, annotation) if p and not any(p.resolve().is_relative_to(f) for f in folders)]
        if outside:
            problems.add(outside[0], "a link leads out of the data set; refused. Put the file itself there.")
            continue
        try:
            width, height, objects = parse_annotation(annotation)
        except UserError as error:
            problems.lines.append(str(error))
            continue
        if width < 1 or height < 1:
            problems.add(annotation, f"the image's size is given as {width} x {height}.")
            continue
        if missing:
            continue
        kept = []
        for number, o in enumerate(objects, 1):
            if o.difficult and not use_difficult:
                continue
            box = _half_open(o.box, width, height, problems)
            if o.name not in label_of:
                unknown.setdefault(o.name, []).append(f"{annotation}, object {number}")
            elif isinstance(box, str):
                problems.add(f"{annotation}, object {number} ({o.name})", box)
            else:
                kept.append((box, label_of[o.name], o.difficult))
        samples.append(
            Sample(
                image_id=image_id,
                path=image or root / "JPEGImages" / f"{image_id}.jpg",
                width=width,
                height=height,
                boxes=np.array([k[0] for k in kept], dtype=np.float32).reshape(-1, 4),
                labels=np.array([k[1] for k in kept], dtype=np.int64),
                difficult=np.array([k[2] for k in kept], dtype=bool),
            )
        )
    for name, places in unknown.items():  # one line a class, not one an object: there may be thousands
        more = f" {len(places) - 1} more object(s) of it." if len(places) > 1 else ""
        known = f"{nearest(name, classes)} Known: {', '.join(classes)}."
        problems.add(places[0], f"unknown class '{name}'.{known}{more}")
    if problems.lines and not skip_bad:
        raise UserError(
            f"{len(problems.lines)} problem(s) in the data set {root}:\n{problems.text()}\n"
            "Mend the files, or leave out what is wrong with data.skip_bad=true."
        )
    return samples, problems


def _half_open(
    box: tuple[float, float, float, float], width: int, height: int, problems: Problems
) -> tuple[float, float, float, float] | str:
    """The box half-open and inside the image, or what is wrong with it."""
    x1, y1, x2, y2 = box[0] - 1, box[1] - 1, box[2], box[3]
    as_text = f"({', '.join(f'{v:g}' for v in box)})"
    if box[2] < box[0] or box[3] < box[1]:
        return f"the box {as_text} is inverted: xmax < xmin or ymax < ymin."
    if box[2] == box[0] and box[3] == box[1]:
        return f"the box {as_text} is a single point."
    if x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1:
        return f"the box {as_text} stands out of the image of {width} x {height} pixels."
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return f"the box {as_text} lies beside the image of {width} x {height} pixels."
    problems.clipped += clipped != (x1, y1, x2, y2)
    return clipped
