"""Pascal VOC annotations: XML files and split lists to Samples.

The layout of a data set is the devkit's: `JPEGImages/ID.jpg`, `Annotations/ID.xml`, `ImageSets/Main/SPLIT.txt`; or
`images/` and `annotations/`, or pictures and XML files side by side. Boxes in the files are one-based and inclusive
(xmin, ymin, xmax, ymax); they become (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from fastrcnn.data.truth import AnnotatedObject, Problem, ProblemError, Problems, Reading
from fastrcnn.errors import UserError, nearest
from fastrcnn.structures import Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_XML_BYTES = 4_000_000  # ten thousand objects; elements in memory take up to a hundred times as much


@dataclass(frozen=True)
class VocObject:
    """One `<object>` of a VOC file; the box as it stands there, inclusive."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def parse_annotation(path: Path) -> tuple[int, int, list[VocObject]]:
    """Width, height and objects of a VOC XML file.

    Raises ProblemError with the file, and the line or the object's number, for whatever cannot be read: malformed XML,
    entities, missing or non-numeric fields.
    """
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
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror}).") from None
    except (ValueError, LookupError) as error:  # an encoding that does not exist or does not fit
        raise _unusable(path, f"not a text that can be read ({error}).") from None
    if root is None or root.tag != "annotation":
        raise _unusable(path, "the root element is not <annotation>; this is no VOC annotation.")
    filename = (root.findtext("filename") or "").strip()
    if _leads_out(filename):
        raise _unusable(path, f"<filename> is '{filename}', which leads out of the data set. Give the name alone.")
    width, height = (int(_number(root, f"size/{key}", path)) for key in ("width", "height"))
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise _unusable(path, "<name> is missing or empty.", number=number)
        xmin, ymin, xmax, ymax = (
            _number(element, f"bndbox/{key}", path, number) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (element.findtext("difficult") or "0").strip() == "1"
        objects.append(VocObject(name, (xmin, ymin, xmax, ymax), difficult))
    return width, height, objects


def _unusable(path: Path, what: str, line: int | None = None, number: int | None = None) -> ProblemError:
    return ProblemError(Problem("annotation", str(path), what, line, number))


def _number(element: Element, key: str, path: Path, number: int | None = None) -> float:
    text = (element.findtext(key) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e7:  # NaN and infinity too
        raise _unusable(path, f"<{key}> should be a number of pixels, is '{text}'.", number=number)
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


def picture_folder(root: Path) -> Path:
    """Where a data set keeps its pictures: JPEGImages as in VOC, else `images`, else the folder itself."""
    return next((root / name for name in ("JPEGImages", "images") if (root / name).is_dir()), root)


def annotation_folder(root: Path) -> Path:
    """Where a data set keeps its XML files: Annotations as in VOC, else `annotations`, else the folder itself."""
    return next((root / name for name in ("Annotations", "annotations") if (root / name).is_dir()), root)


def annotated_ids(root: Path) -> list[str]:
    """Ids of all annotations, sorted: what the images of a data set are where no list says so."""
    folder = annotation_folder(root)
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.xml"))


def pictures_without_annotation(root: Path) -> list[Path]:
    """Pictures of a data set that no XML file belongs to."""
    folder, annotated = picture_folder(root), set(annotated_ids(root))
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(p for p in found if p.relative_to(folder).with_suffix("").as_posix() not in annotated)


def find_image(root: Path, image_id: str) -> Path | None:
    """The picture `ID.*` in the picture folder of `root`, or None."""
    folder = picture_folder(root)
    for suffix in IMAGE_SUFFIXES:
        for candidate in (suffix, suffix.upper()):
            path = folder / f"{image_id}{candidate}"
            if path.is_file():
                return path
    return None


def find_classes(root: Path, image_ids: Sequence[str]) -> tuple[list[str], Problems]:
    """Names of all objects in the annotations of `image_ids`, sorted, and which annotations cannot be read."""
    names: set[str] = set()
    problems = Problems()
    for image_id in image_ids:
        try:
            _, _, objects = parse_annotation(annotation_folder(root) / f"{image_id}.xml")
        except ProblemError as error:
            problems.found.append(error.problem)
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
    first_pixel: int = 1,
    leave_out_others: bool = False,
) -> tuple[list[Sample], Problems]:
    """Samples of the given images, boxes half-open.

    use_difficult: objects marked `difficult` are kept (and marked); else they are left out.
    skip_bad: leave out whatever is wrong, a file or an object, and report it in the Problems returned.
    need_pictures: whether the picture must be there; the truth alone does for evaluating saved detections.
    first_pixel: coordinate of the first pixel, 1 in VOC, 0 in zero-based sets.
    leave_out_others: objects of classes that are not in the list are left out and counted.

    Raises UserError, listing everything that is wrong at once, unless `skip_bad`: missing files, broken XML, unknown
    classes, boxes that are inverted, a single point, or out of their image by more than one pixel, and files that a
    link leads to outside the data set.
    """
    reading = Reading(classes, leave_out_others)
    problems = reading.problems
    pictures, annotations = picture_folder(root), annotation_folder(root)
    folders = [f.resolve() for f in (root, pictures, annotations)]  # these may be links
    for image_id in image_ids:
        image = find_image(root, image_id)
        annotation = annotations / f"{image_id}.xml"
        missing = image is None and need_pictures
        if missing:
            problems.add("missing_picture", pictures / image_id, f"no such picture ({', '.join(IMAGE_SUFFIXES)}).")
        outside = [p for p in (image, annotation) if p and not any(p.resolve().is_relative_to(f) for f in folders)]
        if outside:
            problems.add("link", outside[0], "a link leads out of the data set; refused. Put the file itself there.")
            continue
        try:
            width, height, objects = parse_annotation(annotation)
        except ProblemError as error:
            problems.found.append(error.problem)
            continue
        if width < 1 or height < 1:
            problems.add("annotation", annotation, f"the image's size is given as {width} x {height}.")
            continue
        if missing:
            continue
        found = [
            _annotated(o, annotation, number, first_pixel)
            for number, o in enumerate(objects, 1)
            if use_difficult or not o.difficult
        ]
        reading.add(image_id, image or pictures / f"{image_id}.jpg", width, height, found)
    return reading.result(root, skip_bad)


def _annotated(o: VocObject, file: Path, number: int, first_pixel: int) -> AnnotatedObject:
    """The object with its box half-open, and what is wrong with the box, as far as its own numbers tell."""
    xmin, ymin, xmax, ymax = o.box
    fault = ""
    if xmax < xmin or ymax < ymin:
        fault = "is inverted: xmax < xmin or ymax < ymin."
    elif xmax == xmin and ymax == ymin:
        fault = "is a single point."
    box = (xmin - first_pixel, ymin - first_pixel, xmax - first_pixel + 1, ymax - first_pixel + 1)
    return AnnotatedObject(file, number, o.name, box, f"({', '.join(f'{v:g}' for v in o.box)})", o.difficult, fault)
