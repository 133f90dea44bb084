"""Images whose truth nobody has, as those of a competition's test set: samples made of the pictures alone."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from fastrcnn.data.annotations import is_coco
from fastrcnn.data.coco import picture_base, read_coco_file
from fastrcnn.data.images import complete_size
from fastrcnn.data.truth import FEW, NEARLY_ALL
from fastrcnn.data.voc_layout import (
    find_annotation,
    find_image,
    homes,
    missing_image,
    picture_folder,
    where_files_are,
)
from fastrcnn.errors import UserError
from fastrcnn.progress import progress
from fastrcnn.structures import Sample


def without_annotation(source: Path, image_ids: Sequence[str]) -> int:
    """How many of the images have no XML file; of a COCO file all or none, as it has annotations or not."""
    if is_coco(source):
        return 0 if any(i.annotations for i in read_coco_file(source).images.values()) else len(image_ids)
    return sum(not find_annotation(source, image_id).exists() for image_id in image_ids)


def load_unannotated(source: Path, image_ids: Sequence[str]) -> tuple[list[Sample], list[str]]:
    """Samples without objects of the given images, and what is wrong with the pictures of the others.

    source: a folder in VOC layout or a COCO file. Widths and heights are the pictures'; annotations are not looked at,
    also where there are some. A picture is wrong that is missing, no whole picture, or leads out of the data set by a
    link. Each is read, so that nothing breaks hours later.
    """
    base, paths, faults = picture_folder(source), {i: find_image(source, i) for i in image_ids}, []
    if is_coco(source):
        file = read_coco_file(source)
        base = picture_base(file)
        paths = {i: base / file.images[i].file_name for i in image_ids}
        faults = [str(problem) for problem in file.problems]
    missing = {i for i, path in paths.items() if path is None}
    if len(missing) >= max(FEW, NEARLY_ALL * len(paths)):  # one cause, one message
        faults.append(f"{base}: {where_files_are(source)} Missing: {len(missing)} of {len(paths)} images.")
        image_ids = [i for i in image_ids if i not in missing]
    inside = [base.resolve(), *homes(source)]

    def look(image_id: str) -> Sample | str:
        path = paths[image_id]
        if path is None or not path.is_file():
            return f"{path or base / image_id}: {missing_image(source, image_id) if path is None else 'no such image.'}"
        if not any(path.resolve().is_relative_to(folder) for folder in inside):
            return f"{path}: a link leads out of the data set; refused. Put the file itself there."
        try:
            width, height = complete_size(path)
        except UserError as error:
            return str(error)
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        return Sample(image_id, path, width, height, *nothing)

    with ThreadPool(8) as pool:  # the time goes into reading files
        looked = list(progress(pool.imap(look, image_ids, chunksize=16), len(image_ids), "looking at pictures"))
    samples = [found for found in looked if isinstance(found, Sample)]
    return samples, faults + [fault for fault in looked if isinstance(fault, str)]
