"""Reader of data sets in Pascal VOC's format. `voc_layout.py` finds the files, and `voc_xml.py` reads XML files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fastrcnn.data.annotations.formats.voc_layout import (
    find_annotation,
    find_images,
    homes,
    missing_image,
    nfc,
    picture_folder,
)
from fastrcnn.data.annotations.formats.voc_xml import last_part, read_annotation
from fastrcnn.data.images import IMAGE_SUFFIXES
from fastrcnn.data.truth.annotated import Annotated
from fastrcnn.data.truth.problems import LEADS_OUT, Problem
from fastrcnn.data.truth.text_files import is_file


def read_voc(
    root: Path, image_ids: Sequence[str], need_pictures: bool = True, first_pixel: int = 1
) -> Iterator[Annotated]:
    """Yield the annotations in each image's XML file; see `splits.read`. Links out of the data set are errors."""
    folders = homes(root)
    for image_id in image_ids:
        images, annotation = find_images(root, image_id), find_annotation(root, image_id)
        image = images[0] if images else picture_folder(root) / image_id
        path = image if images or need_pictures else image.with_name(f"{image.name}.jpg")
        problems = []
        if not images and need_pictures:
            problems.append(Problem("missing_image", str(image), missing_image(root, image_id)))
        paths = (*images[:1], annotation)
        link = next((p for p in paths if not any(p.resolve().is_relative_to(f) for f in folders)), None)
        if link is not None:
            problems.append(Problem("link", str(link), LEADS_OUT))
            yield Annotated(image_id, image, annotation, problems=tuple(problems))
            continue
        said = read_annotation(annotation, first_pixel)
        problems += [*said.problems, *(_filename_notes(images, said) if said.width and images else [])]
        objects = None if any(p.error for p in problems) else said.objects
        yield replace(said, image_id=image_id, path=path, objects=objects, problems=tuple(problems))


def _filename_notes(images: Sequence[Path], said: Annotated) -> list[Problem]:
    """Return notes about unused images with the same id, and about a <filename> other than that of the used image."""
    used, filename, named = images[0].name, said.filename, last_part(said.filename)
    notes = [
        Problem("same_id", str(other), f"the image is not used, because '{used}' has the same id.")
        for other in images[1:]
    ]
    if nfc(named) == nfc(used):
        return notes
    if Path(named).suffix.lower() in IMAGE_SUFFIXES and is_file(images[0].parent / named):
        what = (
            f"<filename> is '{named}', another image of the data set. '{used}', which has the XML file's name, is used."
        )
    elif ".." in filename.replace("\\", "/").split("/"):
        what = f"<filename> is '{filename}', which points outside the folder of the data set. '{used}' is used."
    elif len(images) > 1:
        names = ", ".join(f"'{p.name}'" for p in images)
        what = f"<filename> is none of the images with this id: {names}. '{used}' is used."
    else:
        return notes
    return [Problem("filename", str(said.annotation), what), *notes]
