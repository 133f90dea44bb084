"""What annotations say, one picture at a time, and all that is wrong with them.

An object is bad here exactly where `load_voc` and `load_coco`, which training uses, refuse it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastrcnn.data.annotations.coco import load_coco
from fastrcnn.data.annotations.coco_file import id_key, read_coco_file
from fastrcnn.data.annotations.truth import Problem, ProblemError
from fastrcnn.data.annotations.voc import load_voc
from fastrcnn.data.annotations.voc_layout import find_annotation, find_image, picture_folder
from fastrcnn.data.annotations.voc_xml import parse_annotation


@dataclass(frozen=True)
class Truth:
    """What an annotation says about a picture. Boxes are half-open x1 y1 x2 y2 in pixels, clipped to the picture."""

    size: tuple[int, int] | None = None  # width and height; None where the annotation cannot be used
    names: tuple[str, ...] = ()  # G names of classes
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))  # (G, 4)
    difficult: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # (G,)
    numbers: tuple[int, ...] = ()  # G numbers of the objects in the annotation, from 1
    truncated: int = 0  # objects marked so
    clipped: int = 0  # boxes that stood out by at most one pixel
    at_zero: int = 0  # boxes with xmin or ymin 0, which a one-based file cannot have
    at_end: int = 0  # boxes with xmax or ymax as large as the picture, which a zero-based inclusive file cannot have


@dataclass(frozen=True)
class Annotated:
    """A picture's annotation as it was read."""

    file: Path  # the picture, or where it should be
    annotation: Path
    truth: Truth
    problems: tuple[Problem, ...]


def read_voc(folder: Path, image_id: str, first_pixel: int = 1) -> Annotated:
    """What the XML file of a picture says."""
    annotation = find_annotation(folder, image_id)
    picture = find_image(folder, image_id) or picture_folder(folder) / image_id
    try:
        said = parse_annotation(annotation, first_pixel)
    except ProblemError as error:
        _, found = load_voc(folder, [image_id], [], skip_bad=True)  # says what is wrong with the places besides
        others = [p for p in found.found if p.kind in ("missing_picture", "link")]
        return Annotated(picture, annotation, Truth(), (*others, *error.problems))
    names = sorted({o.name for o in said.objects})
    samples, found = load_voc(folder, [image_id], names, skip_bad=True, first_pixel=first_pixel)
    problems = (*found.found, *found.notes)
    if not samples:
        size = (said.width, said.height) if min(said.width, said.height) > 0 else None
        return Annotated(picture, annotation, Truth(size), problems)
    (sample,) = samples
    bad = {p.object for p in found.found}
    last = 1 - first_pixel  # of the half-open end of a box, beyond the last pixel as the file counts it
    truth = Truth(
        size=(said.width, said.height),
        names=tuple(names[label - 1] for label in sample.labels),
        boxes=sample.training_boxes,
        difficult=sample.difficult,
        numbers=tuple(o.number for o in said.objects if o.number not in bad),
        truncated=said.truncated,
        clipped=found.clipped,
        at_zero=found.at_zero,
        at_end=sum(o.box[2] - last >= said.width or o.box[3] - last >= said.height for o in said.objects),
    )
    return Annotated(picture, annotation, truth, problems)


def read_coco(path: Path, image_ids: Sequence[str], root: Path, training: bool) -> Iterator[Annotated]:
    """What a COCO file says of each of the images; what is wrong with the file as a whole says `coco_problems`.

    root: the data set's folder. training: annotations that training leaves out are noted.
    """
    file = read_coco_file(path)
    names, prefix = list(file.categories.values()), file.prefix(root)
    for image_id in image_ids:
        image = file.images[image_id.removeprefix(prefix)]
        picture = file.base / image.file_name
        samples, found = load_coco(path, [image_id], names, skip_bad=True, root=root)
        problems = found.found[len(file.problems) :]  # what is wrong with the file stands first
        if not samples:
            yield Annotated(picture, path, Truth((image.width, image.height)), tuple(problems))
            continue
        (sample,) = samples
        bad = {p.object for p in problems} | {
            n for n, entry in image.annotations if id_key(entry.get("category_id")) not in file.categories
        }
        truth = Truth(
            size=(image.width, image.height),
            names=tuple(names[label - 1] for label in sample.labels),
            boxes=sample.training_boxes,
            difficult=sample.difficult,
            numbers=tuple(n for n, _ in image.annotations if n not in bad),
            clipped=found.clipped,
        )
        if training:
            _, found = load_coco(path, [image_id], names, use_crowds=False, skip_bad=True, root=root)
        yield Annotated(picture, path, truth, (*problems, *found.notes))


def coco_problems(path: Path) -> list[Problem]:
    """Entries of a COCO file that belong to no picture or cannot be read."""
    return list(read_coco_file(path).problems)
