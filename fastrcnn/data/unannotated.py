"""Images whose truth nobody has, as those of a competition's test set: samples made of the pictures alone."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from fastrcnn.data.annotations.coco_file import CocoImage, read_coco_file
from fastrcnn.data.annotations.splits import is_coco
from fastrcnn.data.annotations.truth import FEW, NEARLY_ALL, ProblemError
from fastrcnn.data.annotations.voc_layout import (
    find_annotation,
    find_image,
    homes,
    missing_image,
    picture_folder,
    where_files_are,
)
from fastrcnn.data.annotations.voc_xml import parse_annotation
from fastrcnn.data.frames import Look, size_fault, turn_for
from fastrcnn.data.images import inspect
from fastrcnn.errors import UserError
from fastrcnn.progress import progress
from fastrcnn.structures import Sample


def without_annotation(source: Path, image_ids: Sequence[str]) -> int:
    """How many of the images have no XML file; of a COCO file all or none, as it has annotations or not."""
    if is_coco(source):
        return 0 if read_coco_file(source).annotated else len(image_ids)
    return sum(not find_annotation(source, image_id).exists() for image_id in image_ids)


def annotated_size(annotation: Path) -> tuple[int, int] | None:
    """Width and height that an image's XML file gives, if there is a usable one."""
    try:
        found = parse_annotation(annotation)
    except ProblemError:
        return None
    return (found.width, found.height) if min(found.width, found.height) > 0 else None


def load_unannotated(source: Path, image_ids: Sequence[str], root: Path) -> tuple[list[Sample], list[Look], list[str]]:
    """Samples without objects of the given images, with what each file says, and what is wrong with the other images.

    source: a folder in VOC layout or a COCO file; root: the data set's folder. Objects are not looked at, also where
    there are some. Widths and heights are those of the images. One whose EXIF data ask for a rotation is used as an
    evaluation with truth would use it: in the size that the COCO file or the XML file gives it; without either upright,
    as `fastrcnn detect` does. An image is wrong that is missing, incomplete, of another size than such a file says
    though it is rotated, or outside the data set by a link. Each is read, so that nothing breaks hours later.
    """
    base, faults = picture_folder(source), []
    images: dict[str, CocoImage] = {}
    if is_coco(source):
        file = read_coco_file(source)
        base, images = file.base, dict(zip(file.ids(root), file.images.values(), strict=True))
        faults = [str(problem) for problem in file.problems]
        paths: dict[str, Path | None] = {i: base / images[i].file_name for i in image_ids}
    else:
        paths = {i: find_image(source, i) for i in image_ids}
    missing = {i for i, path in paths.items() if path is None}
    if len(missing) >= max(FEW, NEARLY_ALL * len(paths)):  # one cause, one message
        faults.append(f"{base}: {where_files_are(source)} Missing: {len(missing)} of {len(paths)} images.")
        image_ids = [i for i in image_ids if i not in missing]
    inside = [base.resolve(), *homes(source)]

    def look(image_id: str) -> tuple[Sample, Look] | str:
        path = paths[image_id]
        if path is None or not path.is_file():
            return f"{path or base / image_id}: {missing_image(source, image_id) if path is None else 'no such image.'}"
        if not any(path.resolve().is_relative_to(folder) for folder in inside):
            return f"{path}: a link leads out of the data set; refused. Put the file itself there."
        try:
            stored = inspect(path)
        except UserError as error:
            return str(error)
        size: tuple[int, int] | None = stored.size
        if stored.orientation != 1:
            entry = images.get(image_id)
            size = (entry.width, entry.height) if entry else annotated_size(find_annotation(source, image_id))
        turn = turn_for(stored, size)
        if size is not None and turn is None:
            return size_fault(path, stored, size)
        turn = turn or 1
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        width, height = stored.size if turn == 1 else stored.upright
        number = images[image_id].number if image_id in images else None
        return Sample(image_id, path, width, height, *nothing, number=number, turn=turn), (path, stored, turn)

    with ThreadPool(8) as pool:  # the time goes into reading files
        looked = list(progress(pool.imap(look, image_ids, chunksize=16), len(image_ids), "looking at pictures"))
    usable = [found for found in looked if not isinstance(found, str)]
    bad = faults + [fault for fault in looked if isinstance(fault, str)]
    return [sample for sample, _ in usable], [seen for _, seen in usable], bad
