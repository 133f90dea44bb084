"""Find annotations and images of a data set that no split uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from fastrcnn.data.annotations.formats.coco_file import coco_images, json_files, read_coco_file
from fastrcnn.data.annotations.formats.listing import image_id, images_below
from fastrcnn.data.annotations.formats.voc_layout import (
    annotated_ids,
    annotation_folder,
    pictures_without_annotation,
    split_folders,
    split_lists,
)
from fastrcnn.data.annotations.layouts import every_file, is_coco, read_listing
from fastrcnn.data.images import IMAGE_SUFFIXES
from fastrcnn.data.truth.problems import Problem
from fastrcnn.data.truth.text_files import exists


def unused(root: Path, sources: Iterable[tuple[Path, Sequence[str]]]) -> list[Problem]:
    """Return notes about annotations and images that no split uses.

    root: the data set's folder or its only annotation file. sources: for each split, the file or folder with its
    annotations, and the ids of its images.
    """
    used: dict[Path, list[str]] = {}
    for source, ids in sources:
        used.setdefault(source, []).extend(ids)
    if root.is_dir() and all(is_coco(source) or source.is_dir() for source in used):
        others = list(unused_files(root, used))
    else:
        others = []
    if coco := [source for source in used if is_coco(source)]:
        return [*unused_coco(root, coco), *others]
    if files := [source for source in used if source.is_file()]:
        return unused_listed(root, files, {i for source in files for i in used[source]})
    return [*(problem for source, ids in used.items() for problem in unused_voc(source, ids)), *others]


def unused_files(root: Path, used: Collection[Path]) -> Iterator[Problem]:
    """Yield notes about unused YOLO, CSV and Label Studio files in `root`. used: the annotation files in use."""
    files, faults = every_file(root)
    for file in files:
        if file not in used:
            yield _not_used(file, f"the file is not read. To use only this file, set data.root={file}.")
    for fault in faults:
        yield _not_used(root, f"some unused annotations cannot be read. {fault}")


def unused_coco(root: Path, used: Collection[Path]) -> list[Problem]:
    """Return notes about unused files in a folder with COCO files, and about images that no COCO file lists.

    used: the COCO files in use. If root is a file, the result is empty.
    """
    if root.is_file() or not used:
        return []
    images = {file: read_coco_file(file).paths for file in used}
    in_use = frozenset[Path]().union(*images.values())
    problems, broken = [], False
    if ids := annotated_ids(root):
        what = f"{len(ids)} XML file(s), such as {ids[0]}.xml, are not used, because the data set has COCO files."
        problems.append(_not_used(root, what))
    for file in sorted({*json_files(root)} - {*used}):
        own = coco_images(file)
        if own and isinstance(own, str):
            problems.append(_not_used(file, own.removeprefix(f"{file}: ")))
            broken = True
        elif isinstance(own, frozenset) and own:
            images[file] = own
            new = len(own - in_use)
            how_many = f"its {len(own)}" if new == len(own) else f"{new} of its {len(own)}"
            what = f"{how_many} image(s) are not in any used split. To test on them, set "
            what += f"data.test=[{file.relative_to(root)}]."
            others = f"the file is not read, because the used files contain all of its images ({len(own)})."
            problems.append(_not_used(file, what if new else others))
    listed = in_use.union(*images.values())
    folders = [folder for folder in {path.parent for path in listed} if exists(folder)]
    there = {p for folder in folders for p in folder.glob("*")}
    lone = sorted(p for p in there - listed if p.suffix.lower() in IMAGE_SUFFIXES)
    absent = len(listed - there) + sum(read_coco_file(file).refused for file in used)
    if len(lone) > absent and not broken:  # otherwise they can be images that are listed with wrong paths
        what = f"{len(lone)} image(s) are not in any annotation file and are not used."
        problems.append(Problem("lone", str(lone[0]), what))
    return problems


def unused_listed(root: Path, used: Sequence[Path], ids: Collection[str]) -> list[Problem]:
    """Return notes about unused splits, files and images of a data set that is neither VOC nor COCO.

    used: the annotation files in use. ids: the ids of the images in use. If root is a file, the result is empty.
    """
    if root.is_file():
        return []
    problems, listed = [], set[str]()
    for file in used:
        listing = read_listing(file, root)
        listed.update(listing.images)
        for name, own in listing.splits.items():
            if own and not set(own) & set(ids):
                of, advice = (f" of '{name}'", f" To test on them, set data.test=[{name}].") if name else ("", "")
                what = f"{len(own)} image(s){of} are not in any used split.{advice}"
                problems.append(_not_used(file, what))
    same = {file.suffix for file in used}
    files, _ = every_file(root)
    for file in files:
        if file in used or file.suffix not in same:
            continue
        own = list(read_listing(file, root).images)
        listed.update(own)
        what = f"the file is not used. To test on its {len(own)} image(s), set "
        problems.append(_not_used(file, f"{what}data.test=[{file.relative_to(root)}]."))
    problems += [p for p in unused_files(root, used) if Path(p.file).suffix not in same]
    lone = [path for path in images_below(root) if image_id(path, root) not in listed]
    if lone:
        what = f"{len(lone)} image(s) are not in any annotation file and are not used."
        problems.append(Problem("lone", str(lone[0]), what))
    return problems


def unused_voc(source: Path, ids: Collection[str]) -> list[Problem]:
    """Return notes about unused files and images in a folder with VOC XML files. ids: the ids of the images in use."""
    problems = []
    folders = {} if split_lists(source) else split_folders(source)
    for name, own in folders.items():
        if not set(own) & set(ids):
            what = f"its {len(own)} image(s) are not in any used split. To test on them, set data.test=[{name}]."
            problems.append(_not_used(annotation_folder(source) / name, what))
    outside = set(annotated_ids(source)).difference(*folders.values()) if folders else set()
    if outside:
        example = f"such as {min(outside)}.xml, are not used."
        what = f"{len(outside)} XML file(s) outside the folders {', '.join(folders)}, {example}"
        problems.append(_not_used(source, what))
    if not split_lists(source) and (lone := pictures_without_annotation(source)):
        what = f"{len(lone)} image(s) without an annotation are not used."
        problems.append(Problem("lone", str(lone[0]), what))
    for file in json_files(source):
        if isinstance(images := coco_images(file), frozenset) and images:
            what = "the file is not read, because the images have XML files. To use it, set "
            what += f"data.train=[{file.relative_to(source)}]."
            problems.append(_not_used(file, what))
    return problems


def _not_used(path: Path, what: str) -> Problem:
    return Problem("unused_file", str(path), what)
