"""Images whose truth nobody has, as those of a competition's test set: samples made of the images alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastrcnn.data.annotations.coco_file import read_coco_file
from fastrcnn.data.annotations.problems import by_cause
from fastrcnn.data.annotations.splits import explain_missing, is_coco, read, source_problems
from fastrcnn.data.annotations.voc_layout import find_annotation
from fastrcnn.data.frames import Look, look_at, sample_of
from fastrcnn.structures import Sample


def without_annotation(source: Path, image_ids: Sequence[str]) -> int:
    """How many of the images have no XML file; of a COCO file all or none, as it has annotations or not."""
    if is_coco(source):
        return 0 if read_coco_file(source).annotated else len(image_ids)
    return sum(not find_annotation(source, image_id).exists() for image_id in image_ids)


def load_unannotated(source: Path, image_ids: Sequence[str], root: Path) -> tuple[list[Sample], list[Look], list[str]]:
    """Samples without objects of the given images, with what each file says, and what is wrong with the other images.

    source: a folder in VOC layout or a COCO file; root: the data set's folder. Objects do not matter, also where there
    are some. Widths and heights are those of the images. One whose EXIF data ask for a rotation is used as an
    evaluation with truth would use it: in the size that the COCO file or the XML file gives it; without either upright,
    as `fastrcnn detect` does. An image is wrong that is missing, incomplete, of another size than such a file says
    though it is rotated, or outside the data set by a link. Each is read, so that nothing breaks hours later.
    """
    usable, bad = [], source_problems(source)
    for image in read(source, image_ids, root):
        faults = [p for p in image.problems if p.kind in ("missing_picture", "link") or image.path == source]
        bad += faults
        if not faults:
            usable.append(image)
    bad = by_cause(explain_missing(bad, source, root, len(image_ids)), len(image_ids))
    looks = look_at([(image.path, image.size) for image in usable], rotated_only=True)
    pairs = [(image, look) for image, look in zip(usable, looks, strict=True) if not isinstance(look, str)]
    samples = [sample_of(image.image_id, look, image.number) for image, look in pairs]
    return samples, [look for _, look in pairs], [*map(str, bad), *(look for look in looks if isinstance(look, str))]
