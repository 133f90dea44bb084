"""Which format a data set's files have, where that is neither VOC's nor COCO's, and the reader for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastrcnn.data.annotations.formats.cvat import read_cvat
from fastrcnn.data.annotations.formats.label_studio import is_json_list, label_studio_files, read_label_studio
from fastrcnn.data.annotations.formats.listing import Listing
from fastrcnn.data.annotations.formats.table import read_table, table_files
from fastrcnn.data.annotations.formats.yolo import described_file, is_yolo_file, names_file, read_yolo
from fastrcnn.errors import UserError

FINDERS: dict[str, Callable[[Path], list[Path]]] = {
    "YOLO": lambda folder: [file] if (file := described_file(folder) or names_file(folder)) else [],
    "CSV": table_files,
    "Label Studio": label_studio_files,
}
SUFFIXES = (".json", ".csv", ".xml", ".yaml", ".yml", ".data", ".names")  # of files that data.root or a split may be


def is_coco(source: Path) -> bool:
    """Whether a source of annotations is a COCO file."""
    return source.suffix.lower() == ".json" and not is_json_list(source)


def is_annotation_file(path: Path) -> bool:
    """Whether `data.root` or the name of a split is a file of annotations, by its name."""
    return path.suffix.lower() in SUFFIXES or is_yolo_file(path)


def read_listing(file: Path, folder: Path) -> Listing:
    """What a file of annotations that is not COCO's lists. folder: the data set's. Raises UserError."""
    suffix = file.suffix.lower()
    if suffix == ".csv":
        return read_table(file, folder)
    if suffix == ".xml":
        return read_cvat(file, folder)
    if suffix == ".json":
        return read_label_studio(file, folder)
    if is_yolo_file(file):
        return read_yolo(file, folder)
    raise UserError(f"{file}: no file of annotations; those end in {', '.join(SUFFIXES)}.")


def listing_files(folder: Path) -> list[Path]:
    """The files of annotations of a folder that has neither COCO's, CVAT's, nor an XML file for each image: of one
    format alone. Raises UserError where there are several formats, and for a file that cannot be read."""
    if file := described_file(folder):
        return [file]
    found = {name: find(folder) for name, find in FINDERS.items()}
    there = {name: files for name, files in found.items() if files}
    if len(there) > 1:
        some = "; ".join(f"{name} ({files[0].relative_to(folder)})" for name, files in there.items())
        first = next(iter(there.values()))[0]
        raise UserError(f"{folder}: has annotations in several formats, {some}. Say which, as data.root={first}.")
    return next(iter(there.values()), [])


def every_file(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of annotations of all these formats in a folder, and what is wrong with those that cannot be read."""
    files, faults = [], []
    for find in FINDERS.values():
        try:
            files += find(folder)
        except UserError as error:
            faults.append(str(error))
    return files, faults
