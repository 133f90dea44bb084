"""Detect the annotation format of a data set that is neither VOC nor COCO, and read its annotations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastrcnn.data.annotations.formats.cvat import read_cvat
from fastrcnn.data.annotations.formats.label_studio import is_json_list, label_studio_files, read_label_studio
from fastrcnn.data.annotations.formats.listing import Listing
from fastrcnn.data.annotations.formats.table import read_table, table_files
from fastrcnn.data.annotations.formats.yolo import described_file, is_yolo_file, names_file, read_yolo
from fastrcnn.data.truth.text_files import refuse_link
from fastrcnn.errors import UserError

FINDERS: dict[str, Callable[[Path], list[Path]]] = {
    "YOLO": lambda folder: [file] if (file := described_file(folder) or names_file(folder)) else [],
    "CSV": table_files,
    "Label Studio": label_studio_files,
}
# Suffixes of annotation files that data.root or a split can name.
SUFFIXES = (".json", ".csv", ".xml", ".yaml", ".yml", ".data", ".names")


def is_coco(source: Path) -> bool:
    """Return whether a file or folder is treated as a COCO file: a .json file that does not start with a list."""
    return source.suffix.lower() == ".json" and not is_json_list(source)


def is_annotation_file(path: Path) -> bool:
    """Return whether a path (data.root or an entry of data.train) is an annotation file, judging by its name."""
    return path.suffix.lower() in SUFFIXES or is_yolo_file(path)


def read_listing(file: Path, folder: Path) -> Listing:
    """Read a CSV, CVAT, Label Studio or YOLO file, depending on its suffix. folder: the data set's folder.

    Raises UserError if the suffix is not supported, if the file cannot be read or is invalid, or if it is a link out of
    the folder.
    """
    refuse_link(file, folder)
    suffix = file.suffix.lower()
    if suffix == ".csv":
        return read_table(file, folder)
    if suffix == ".xml":
        return read_cvat(file, folder)
    if suffix == ".json":
        return read_label_studio(file, folder)
    if is_yolo_file(file):
        return read_yolo(file, folder)
    raise UserError(f"{file}: not an annotation file. Supported suffixes: {', '.join(SUFFIXES)}.")


def listing_files(folder: Path) -> list[Path]:
    """Find the YOLO, CSV or Label Studio files of a folder. If it has a `data.yaml` or `obj.data`, find only this file.

    Raises UserError if the folder has files of several formats, or a file cannot be read or is invalid.
    """
    if file := described_file(folder):
        return [file]
    found = {name: find(folder) for name, find in FINDERS.items()}
    there = {name: files for name, files in found.items() if files}
    if len(there) > 1:
        some = " and ".join(f"{name} ({files[0].relative_to(folder)})" for name, files in there.items())
        first = next(iter(there.values()))[0]
        raise UserError(f"{folder}: found annotations in several formats, {some}. Choose one with data.root={first}.")
    return next(iter(there.values()), [])


def every_file(folder: Path) -> tuple[list[Path], list[str]]:
    """Return all YOLO, CSV and Label Studio files of a folder, and an error message for each format with a bad file."""
    files, faults = [], []
    for find in FINDERS.values():
        try:
            files += find(folder)
        except UserError as error:
            faults.append(str(error))
    return files, faults
