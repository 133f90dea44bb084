"""Data sets in Pascal VOC's format to Samples; `voc_layout.py` finds their files, `voc_xml.py` reads one annotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastrcnn.data.annotations.truth import FEW, NEARLY_ALL, Problem, ProblemError, Problems, Reading
from fastrcnn.data.annotations.voc_layout import (
    IMAGE_SUFFIXES,
    composed,
    find_annotation,
    find_images,
    homes,
    missing_image,
    picture_folder,
    where_files_are,
)
from fastrcnn.data.annotations.voc_xml import Annotation, last_part, parse_annotation
from fastrcnn.structures import Sample


def find_classes(root: Path, image_ids: Sequence[str]) -> tuple[list[str], Problems]:
    """Names of all objects in the annotations of `image_ids`, sorted, and which annotations cannot be read."""
    names: set[str] = set()
    problems = Problems(images=len(image_ids))
    for image_id in image_ids:
        try:
            names.update(o.name for o in parse_annotation(find_annotation(root, image_id)).objects)
        except ProblemError as error:
            problems.found += error.problems
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
    need_pictures: whether the image must be there; the truth alone does for evaluating saved detections.
    first_pixel: coordinate of the first pixel, 1 in VOC, 0 in zero-based sets.
    leave_out_others: objects of classes that are not in the list are left out and counted.

    Raises UserError, listing everything that is wrong at once, unless `skip_bad`: missing files, annotations that
    cannot be used, unknown classes, boxes that are inverted, a single point, or out of their image by more than one
    pixel, and files that a link leads to outside the data set.
    """
    reading = Reading(classes, leave_out_others)
    problems = reading.problems
    problems.images = len(image_ids)
    folders = homes(root)
    for image_id in image_ids:
        images = find_images(root, image_id)
        image = images[0] if images else picture_folder(root) / image_id
        annotation = find_annotation(root, image_id)
        missing = not images and need_pictures
        if missing:
            problems.add("missing_picture", image, missing_image(root, image_id))
        outside = [p for p in (*images[:1], annotation) if not any(p.resolve().is_relative_to(f) for f in folders)]
        if outside:
            problems.add("link", outside[0], "a link leads out of the data set; refused. Put the file itself there.")
            continue
        try:
            said = parse_annotation(annotation, first_pixel)
        except ProblemError as error:
            problems.found += error.problems
            continue
        if said.width < 1 or said.height < 1:
            problems.add("annotation", annotation, f"the image's size is given as {said.width} x {said.height}.")
            continue
        problems.notes += [*said.notes, *_filename_notes(images, said, annotation)]
        problems.notes += [
            Problem("same_id", str(other), f"not used: '{images[0].name}' has the same id.") for other in images[1:]
        ]
        if missing:
            continue
        found = [o for o in said.objects if use_difficult or not o.difficult]
        path = image if images else image.with_name(f"{image.name}.jpg")
        reading.add(image_id, path, said.width, said.height, found)
    problems.found = explain_missing(problems.found, root, len(image_ids))
    return reading.result(root, skip_bad)


def _filename_notes(images: Sequence[Path], said: Annotation, annotation: Path) -> list[Problem]:
    """What to know where <filename> and the image that is used disagree."""
    used, named = images[0].name if images else "", last_part(said.filename)
    if not images or composed(named) == composed(used):
        return []
    if Path(named).suffix.lower() in IMAGE_SUFFIXES and (images[0].parent / named).is_file():
        what = f"<filename> is '{named}', another image of the data set; '{used}' is used, by the XML file's name."
    elif ".." in said.filename.replace("\\", "/").split("/"):
        what = f"<filename> is '{said.filename}', which leads out of the data set; '{used}' is used."
    elif len(images) > 1:
        names = ", ".join(f"'{p.name}'" for p in images)
        what = f"<filename> names none of the images of this id, {names}; '{used}' is used."
    else:
        return []
    return [Problem("filename", str(annotation), what)]


def explain_missing(problems: Sequence[Problem], root: Path, images: int) -> list[Problem]:
    """The problems; if nearly all images or annotations are missing, they say where the data set keeps its files."""
    for kind in ("missing_picture", "missing_annotation"):
        missing = sum(p.kind == kind for p in problems)
        if images and missing >= max(FEW, NEARLY_ALL * images) and (where := where_files_are(root)):
            return [replace(p, what=f"{where} Missing: {p.what}") if p.kind == kind else p for p in problems]
    return list(problems)
