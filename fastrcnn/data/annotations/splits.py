"""What a data set consists of: which images belong to which split, and their truth, whatever the files' format."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

from fastrcnn.data.annotations.coco import coco_classes, load_coco
from fastrcnn.data.annotations.coco_file import read_coco_file
from fastrcnn.data.annotations.coco_layout import coco_images, find_coco_files, json_files
from fastrcnn.data.annotations.truth import Problem, Problems
from fastrcnn.data.annotations.voc import find_classes, load_voc
from fastrcnn.data.annotations.voc_layout import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    annotated_ids,
    annotation_folder,
    read_split,
    split_folders,
    split_lists,
    whole_lists,
)
from fastrcnn.errors import UserError
from fastrcnn.structures import Sample

TEST_SHARE = 0.2
# Words by which the name of a COCO file says what it is for, the better ones first.
WORDS = {"trainval": ("trainval", "train"), "test": ("test", "val")}


def is_coco(source: Path) -> bool:
    """Whether a source of annotations is a COCO file; else it is a folder in VOC layout."""
    return source.suffix.lower() == ".json"


def has_lists(source: Path) -> bool:
    """Whether a folder has split lists as VOC has them."""
    return bool(split_lists(source))


def split_of(image_id: str) -> float:
    """A number in [0, 1) that depends on the id alone: images below TEST_SHARE are for testing.

    An image stays in its split when others are added to the data set or removed.
    """
    return int.from_bytes(hashlib.sha256(image_id.encode(errors="surrogateescape")).digest()[:7], "big") / 2**56


def divided(ids: Sequence[str], split: str) -> list[str]:
    """The ids that are in `split`, trainval or test, where no list says so; of two ids or more neither is empty."""
    ordered = sorted(ids, key=split_of)
    tests = sum(split_of(i) < TEST_SHARE for i in ids)
    tests = min(max(tests, 1), len(ids) - 1)
    chosen = set(ordered[:tests] if split == "test" else ordered[tests:])
    return [i for i in ids if i in chosen]


def find_split(root: Path, split: str) -> tuple[Path, list[str], bool]:
    """The source of the annotations of a split, its image ids, and whether the split was made here.

    root: the data set's folder, or its only COCO file. split: the name of a list, as SPLIT or FOLDER/SPLIT, or a
    COCO file below root. Where there are no lists, COCO files and folders of XML files (train, valid, test) are
    recognised by their names; one file alone, XML files without lists, and the images of one list of another name,
    are divided into trainval and test.

    Raises UserError where there is no such split.
    """
    if root.is_file() and split != root.name:
        return root, _of_two(read_coco_file(root).ids(root), split, root), True
    if is_coco(Path(split)):
        path = root if root.is_file() else root / split
        return path, read_coco_file(path).ids(root), False
    folder, _, name = split.rpartition("/")
    source = root / folder
    if has_lists(source) or not source.is_dir():
        if (only := only_list(source)) and name in WORDS:
            return source, _of_two(read_split(source, only), name, source), True
        return source, read_split(source, name), False
    files, broken = find_coco_files(source)
    if broken and (files or not annotated_ids(source)):
        said = "\n".join(broken.values())
        raise UserError(
            f"{said}\nFix such a file, move it out of the data set, or name the files that are used: "
            "data.train=[FILE.json] data.test=[FILE.json]."
        )
    if len(files) == 1:
        return files[0], _of_two(read_coco_file(files[0]).ids(root), name, files[0]), True
    if files:
        file = _named(files, name, source)
        return file, read_coco_file(file).ids(root), False
    if folders := split_folders(source):
        return source, folders[_folder_of(folders, name, source)], False
    if ids := annotated_ids(source):
        _refuse_nested(ids, source)
        return source, _of_two(ids, name, source), True
    if below := [f for f in sorted(source.iterdir()) if f.is_dir() and find_coco_files(f)[0]]:
        raise UserError(f"{source}: its COCO files are too far down. Say data.root={below[0]}.")
    raise UserError(
        f"{source}: no data set. Wanted: JPEGImages/ID.jpg with Annotations/ID.xml (or images/ and annotations/, or "
        "both side by side), and if you like ImageSets/Main/SPLIT.txt; or a COCO annotation file and its images."
    )


def only_list(source: Path) -> str | None:
    """The only split list of a folder, if its name says nothing about its use: CVAT calls it default."""
    lists = whole_lists(source)
    return lists[0] if len(lists) == 1 and lists[0].casefold() not in SPLIT_NAMES else None


def _folder_of(folders: Collection[str], split: str, source: Path) -> str:
    """The one of several folders of XML files that a split's name means; as for COCO files, val where test is not."""
    for word in (split, *WORDS.get(split, ())):
        meant = [f for f in folders if f == word] or [
            f for f in folders if SPLIT_NAMES[f.casefold()] == SPLIT_NAMES.get(word.casefold())
        ]
        if len(meant) == 1:
            return meant[0]
        if meant:
            break
    raise UserError(
        f"{source}: which folder is '{split}'? There are {', '.join(folders)}. "
        "Name them: data.train=[FOLDER] data.test=[FOLDER]."
    )


def _refuse_nested(ids: Collection[str], source: Path) -> None:
    """Raises UserError where folders further down have the names of splits, so that their images are not mixed."""
    parents = {parent for i in ids for parent in PurePosixPath(i).parents}
    splits = sorted(str(p) for p in parents if p.name.casefold() in SPLIT_NAMES)
    if len({SPLIT_NAMES[PurePosixPath(s).name.casefold()] for s in splits}) < 2:
        return
    raise UserError(
        f"{source}: {', '.join(splits[:6])} look like splits, and would be mixed. Give the folder right above them as "
        "data.root, or name them, as data.train=[FOLDER/train] data.test=[FOLDER/test]."
    )


def _of_two(ids: list[str], split: str, source: Path) -> list[str]:
    if split not in WORDS:
        raise UserError(
            f"{source}: there are no split lists, so the images are divided into trainval and test; "
            f"there is no '{split}'."
        )
    if len(ids) == 1 and split == "test":  # enough to evaluate saved detections
        return list(ids)
    if len(ids) < 2:
        raise UserError(f"{source}: has {len(ids)} annotated image(s); at least two are needed, to train and to test.")
    return divided(ids, split)


def _named(files: list[Path], split: str, folder: Path) -> Path:
    """The one of several COCO files that a split's name means."""
    for word in (split, *WORDS.get(split, ())):
        found = [f for f in files if word in f"{f.parent.name if f.parent != folder else ''}/{f.stem}".lower()]
        found = [f for f in found if read_coco_file(f).annotated]
        if len(found) == 1:
            return found[0]
        if found:
            break
    empty = " (without annotations)"
    names = ", ".join(f"{f.relative_to(folder)}{'' if read_coco_file(f).annotated else empty}" for f in files)
    raise UserError(
        f"{folder}: which COCO file is '{split}'? There are {names}. "
        "Name them: data.train=[FILE.json] data.test=[FILE.json]."
    )


def unused_coco(root: Path, sources: Iterable[Path]) -> list[Problem]:
    """What of a folder with COCO files is not used: files other than the `sources`, and images that no file has."""
    used = {source for source in sources if is_coco(source)}
    if root.is_file() or not used:
        return []
    images = {file: frozenset(read_coco_file(file).paths) for file in used}
    in_use = frozenset[Path]().union(*images.values())
    problems, broken = [], False
    if ids := annotated_ids(root):
        what = f"{len(ids)} XML files, such as {ids[0]}.xml, are not used, since there are COCO files."
        problems.append(Problem("unused_file", str(root), what))
    for file in sorted({*json_files(root)} - used):
        own = coco_images(file)
        if isinstance(own, str):
            problems.append(Problem("unused_file", str(file), own.removeprefix(f"{file}: ")))
            broken = True
        elif own:
            images[file] = own
            unused = len(own - in_use)
            how_many = f"its {len(own)}" if unused == len(own) else f"{unused} of its {len(own)}"
            what = (
                f"{how_many} images are in no split that is used. To test on them: "
                f"data.test=[{file.relative_to(root)}]."
                if unused
                else f"not read: other files give its {len(own)} images to the splits that are used."
            )
            problems.append(Problem("unused_file", str(file), what))
    listed = in_use.union(*images.values())
    there = {p for folder in {path.parent for path in listed} for p in folder.glob("*")}
    lone = sorted(p for p in there - listed if p.suffix.lower() in IMAGE_SUFFIXES)
    absent = len(listed - there) + sum(read_coco_file(file).refused for file in used)
    if len(lone) > absent and not broken:  # else they may be those that the files give in another way
        problems.append(
            Problem("lone", str(lone[0]), f"{len(lone)} images are in no annotation file, and are not used.")
        )
    return problems


def unused_voc(source: Path, ids: Collection[str]) -> list[Problem]:
    """What of a folder with XML files is not used where the images `ids` of it are: whole folders, and COCO files."""
    problems = []
    folders = {} if has_lists(source) else split_folders(source)
    for name, own in folders.items():
        if not set(own) & set(ids):
            what = f"its {len(own)} images are in no split that is used. To test on them: data.test=[{name}]."
            problems.append(Problem("unused_file", str(annotation_folder(source) / name), what))
    outside = set(annotated_ids(source)).difference(*folders.values()) if folders else set()
    if outside:
        what = f"{len(outside)} XML files outside {', '.join(folders)} are not used, such as {min(outside)}.xml."
        problems.append(Problem("unused_file", str(source), what))
    for file in json_files(source):
        if isinstance(images := coco_images(file), frozenset) and images:
            what = f"not read: XML files say what is in the images. To use it: data.train=[{file.relative_to(source)}]."
            problems.append(Problem("unused_file", str(file), what))
    return problems


def unused(root: Path, sources: Iterable[tuple[Path, Sequence[str]]]) -> list[Problem]:
    """What of a data set is in no split that is used. sources: those of the splits, with the ids that are used."""
    used: dict[Path, list[str]] = {}
    for source, ids in sources:
        used.setdefault(source, []).extend(ids)
    if coco := [source for source in used if is_coco(source)]:
        return unused_coco(root, coco)
    return [problem for source, ids in used.items() for problem in unused_voc(source, ids)]


def class_names(source: Path, image_ids: Sequence[str]) -> tuple[list[str], Problems]:
    """Names of the classes of all objects, and which annotations cannot be read."""
    if is_coco(source):
        return coco_classes(source), Problems(list(read_coco_file(source).problems))
    return find_classes(source, image_ids)


def load(
    source: Path,
    image_ids: Sequence[str],
    classes: Sequence[str],
    *,
    training: bool,
    use_difficult: bool,
    skip_bad: bool,
    need_pictures: bool,
    first_pixel: int,
    leave_out_others: bool,
    root: Path,
) -> tuple[list[Sample], Problems]:
    """Samples of the given images of a source; see `load_voc` and `load_coco`.

    root: the data set's folder, which ids of a COCO file's images are relative to.
    training: difficult objects are kept where `use_difficult` says so, and crowds are left out; else both are kept.
    """
    if is_coco(source):
        return load_coco(source, image_ids, classes, not training, skip_bad, need_pictures, leave_out_others, root=root)
    difficult = use_difficult or not training
    return load_voc(source, image_ids, classes, difficult, skip_bad, need_pictures, first_pixel, leave_out_others)
