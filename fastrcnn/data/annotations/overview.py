"""One-line descriptions of data sets and splits for the log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastrcnn.data.annotations.formats.coco_file import find_coco_files
from fastrcnn.data.annotations.formats.cvat import cvat_files
from fastrcnn.data.annotations.formats.listing import SPLIT_NAMES
from fastrcnn.data.annotations.formats.voc_layout import (
    annotated_ids,
    read_split,
    split_folders,
    split_lists,
    whole_lists,
)
from fastrcnn.data.annotations.layouts import is_coco, listing_files, read_listing
from fastrcnn.data.annotations.splits import divide, folder_of, ids_in


def describe_split(source: Path, split: str, ids: Sequence[str]) -> str:
    """Describe the folder whose images a split uses, if folder and split have different names (`val` for `test`).

    source: the folder or file that contains the annotations. ids: the image ids of the split. Returns an empty string
    if the names are equivalent, such as `valid` and `val`, or if the split is not a folder.
    """
    if source.is_file() or split_lists(source):
        return ""
    own, folders, name = ids[0].partition("/")[0], split_folders(source), split.rpartition("/")[2]
    meant = SPLIT_NAMES.get(own.casefold())
    if own not in folders or meant == SPLIT_NAMES.get(name.casefold()) or (name, meant) == ("trainval", "train"):
        return ""
    others = [f"{name} ({len(ids)})" for name, ids in folders.items() if name != own]
    return f"the split '{split}' uses the folder {own} ({len(ids)} images). Other folders: {', '.join(others)}"


def overview(source: Path, root: Path, made: bool = False) -> str:
    """Return one line that describes a data set: its format and the number of images in each split.

    If all annotations are in one file, which is not a COCO file, the line also states the source of the class names.
    source: the folder or file that contains the annotations. root: the data set's folder or its only annotation file.
    made: whether this program divided the images into splits (see splits.divide).
    """
    if source.is_dir() and (lists := whole_lists(source)):
        text = _line("Pascal VOC", "list", {name: len(read_split(source, name)) for name in lists})
        return text + _divided(read_split(source, lists[0]), made)
    files = [source] if source.is_file() else find_coco_files(source)[0] or cvat_files(source)
    if not files and (folders := split_folders(source)):
        return _line("Pascal VOC's XML", "folder", {name: len(ids) for name, ids in folders.items()})
    if not files and (ids := annotated_ids(source)):
        return f"Pascal VOC's XML, {len(ids)} images without split lists{_divided(ids, made)}"
    files = files or listing_files(source)
    if not files or len(files) > 1 or is_coco(files[0]):
        kind = "nothing" if not files else "COCO" if is_coco(files[0]) else read_listing(files[0], root).format
        names = [f.name if f == source else f.relative_to(source).as_posix() for f in files]
        ids_of = {name: ids_in(f, root) for name, f in zip(names, files, strict=True)}
        text = _line(kind, "file", {name: len(ids) for name, ids in ids_of.items()})
        return text + (_divided(ids_of[names[0]], made) if files else "")
    listing = read_listing(files[0], folder_of(root))
    named = {name or "no split": len(ids) for name, ids in listing.splits.items()}
    origin = f"; classes from {listing.classes_from}"
    if len(named) > 1:
        return _line(listing.format, "split", named) + origin
    number = len(listing.images)
    return f"{listing.format}, {number} images without splits{_divided(list(listing.images), made)}{origin}"


def _divided(ids: Sequence[str], made: bool) -> str:
    if not made or len(ids) < 2:
        return ""
    train, test = (len(divide(ids, split)) for split in ("trainval", "test"))
    return f", divided by their ids into trainval {train} and test {test}"


def _line(kind: str, unit: str, numbers: dict[str, int]) -> str:
    several = "s" if len(numbers) != 1 else ""
    return f"{kind}, {len(numbers)} {unit}{several}: {', '.join(f'{name} {n}' for name, n in numbers.items())}"
