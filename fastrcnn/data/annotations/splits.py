"""Find the splits of a data set and read their images and ground truth, in any annotation format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from fastrcnn.data.annotations.formats.coco import coco_classes, read_coco, where_images_are
from fastrcnn.data.annotations.formats.coco_file import find_coco_files, read_coco_file
from fastrcnn.data.annotations.formats.cvat import cvat_files
from fastrcnn.data.annotations.formats.listing import IMAGE_FOLDERS, SPLIT_NAMES, images_below
from fastrcnn.data.annotations.formats.voc import read_voc
from fastrcnn.data.annotations.formats.voc_layout import (
    annotated_ids,
    find_annotation,
    read_split,
    split_folders,
    split_lists,
    where_files_are,
    whole_lists,
)
from fastrcnn.data.annotations.layouts import is_annotation_file, is_coco, listing_files, read_listing
from fastrcnn.data.annotations.unread import unread
from fastrcnn.data.truth.annotated import Annotated, to_samples
from fastrcnn.data.truth.problems import Problem, Problems, nearly_all, shorten
from fastrcnn.data.truth.text_files import exists
from fastrcnn.errors import UserError
from fastrcnn.structures import Sample

TEST_SHARE = 0.2  # fraction of the images that `divide` assigns to test
# Names of folders, and words in the names of annotation files, that identify a split, in order of preference.
WORDS = {"trainval": ("trainval", "train"), "test": ("test", "val")}


def divide(ids: Sequence[str], split: str) -> list[str]:
    """Divide image ids into trainval and test, and return the ids of `split` in the given order.

    An id belongs to test if its hash is in the lowest fifth of the range, so an image stays in its split when other
    images are added or removed. If there are two or more ids, each split contains at least one.
    """
    hashes = {i: hashlib.sha256(i.encode(errors="surrogateescape")).digest()[:7] for i in ids}
    ordered = sorted(ids, key=hashes.__getitem__)
    tests = sum(int.from_bytes(h, "big") / 2**56 < TEST_SHARE for h in hashes.values())
    tests = min(max(tests, 1), len(ids) - 1)
    chosen = set(ordered[:tests] if split == "test" else ordered[tests:])
    return [i for i in ids if i in chosen]


def find_split(root: Path, split: str) -> tuple[Path, list[str], bool]:
    """Return the file or folder with a split's annotations, the split's image ids, and whether `divide` selected them.

    root: the data set's folder, or its only annotation file. split: the name of a split (SPLIT or FOLDER/SPLIT), or an
    annotation file inside root. Without lists in ImageSets/Main, splits are recognised by the names of annotation
    files, of splits in those files, or of folders (train, valid, test). `divide` is used if the data set defines no
    splits, or only one list that is not named after a split. Raises UserError if the split is not found or a file
    cannot be read.
    """
    if root.is_file() and split != root.name:
        return _of_file(root, split, root)
    if is_annotation_file(Path(split)):
        path = root if root.is_file() else root / split
        if not path.is_file():
            raise UserError(f"{path}: no such file. Check data.root and the names of the splits.")
        if not is_coco(path) and not path.is_relative_to(folder_of(root)):
            if not path.resolve().is_relative_to(root.resolve()):
                raise UserError(
                    f"{path}: the file is not inside data.root={root}. Set data.root to the folder that contains "
                    "this file and the images."
                )
            path = root / path.resolve().relative_to(root.resolve())
        return path, ids_in(path, root), False
    folder, _, name = split.rpartition("/")
    source = root / folder
    if split_lists(source) or not source.is_dir():
        if (only := _only_list(source)) and name in WORDS:
            return source, _of_two(read_split(source, only), name, source), True
        return source, read_split(source, name), False
    files, broken = find_coco_files(source)
    if broken and (files or not annotated_ids(source)):
        said = "\n".join(broken.values())
        raise UserError(
            f"{said}\nFix or move each file named above, or select other files with data.train=[FILE.json] "
            "data.test=[FILE.json]."
        )
    if files or (files := cvat_files(source)):
        return _of_files(files, name, source, root)
    if folders := split_folders(source):
        return source, folders[_named(folders, name, source, "folder")], False
    if ids := annotated_ids(source):
        _refuse_nested(ids, source)
        return source, _of_two(ids, name, source), True
    if files := listing_files(source):
        return _of_files(files, name, source, root)
    if below := [f for f in sorted(source.iterdir()) if f.is_dir() and find_coco_files(f)[0]]:
        raise UserError(f"{source}: the COCO files are in a subfolder of this folder. Set data.root={below[0]}.")
    raise UserError(
        f"{source}: no supported annotations found.{unread(source)} Supported formats: Pascal VOC XML, COCO JSON, YOLO "
        "labels with data.yaml or classes.txt, CSV, CVAT XML and Label Studio JSON. See docs/data.md."
    )


def _of_file(file: Path, split: str, root: Path) -> tuple[Path, list[str], bool]:
    """Find a split that an annotation file defines, or one that `divide` selects. For the result, see `find_split`."""
    if is_coco(file):
        return file, _of_two(read_coco_file(file).ids(root), split, file), True
    listing = read_listing(file, folder_of(root))
    named = {name: ids for name, ids in listing.splits.items() if name}
    if len(named) > 1:
        return file, named[_named(list(named), split, file, "split")], False
    return file, _of_two(list(listing.images), split, file), True


def _of_files(files: Sequence[Path], split: str, source: Path, root: Path) -> tuple[Path, list[str], bool]:
    """Find a split in the only annotation file, or the file of a split. For the result, see `find_split`."""
    if len(files) == 1:
        return _of_file(files[0], split, root)
    file = _file_of(files, split, source)
    return file, ids_in(file, root), False


def ids_in(file: Path, root: Path) -> list[str]:
    """Return the ids of all images in an annotation file. root: the data set's folder or its only annotation file."""
    return read_coco_file(file).ids(root) if is_coco(file) else list(read_listing(file, folder_of(root)).images)


def folder_of(root: Path) -> Path:
    """Return the folder of a data set, given the folder or its only annotation file.

    For a file, the result is the folder that contains it. If this folder contains no images, but its parent contains
    a folder of images, the result is the parent. An example is `data/labels.csv` with `images/` next to `data/`.
    """
    if not root.is_file():
        return root
    above = root.parent.parent
    beside = any((above / name).is_dir() for name in IMAGE_FOLDERS) and not images_below(root.parent)
    return above if beside else root.parent


def _only_list(source: Path) -> str | None:
    """Return the name of the only list in ImageSets/Main if it does not name a split (CVAT's `default`), or None."""
    lists = whole_lists(source)
    return lists[0] if len(lists) == 1 and lists[0].casefold() not in SPLIT_NAMES else None


T = TypeVar("T")


def _choose(split: str, source: Path, kind: str, names: Sequence[str], found: Callable[[str], list[T]]) -> T:
    """Return the only candidate for a split's name, or for the first of its synonyms in WORDS that has candidates.

    kind: "file", "folder" or "split" (in a file). names: all candidates, for the error message. found: a function that
    returns the candidates for a name. Raises UserError unless there is exactly one candidate.
    """
    choices = next((some for word in (split, *WORDS.get(split, ())) if (some := found(word))), [])
    if len(choices) == 1:
        return choices[0]
    example = {"file": "FILE", "folder": "FOLDER"}.get(kind, "SPLIT")
    raise UserError(
        f"{source}: cannot determine which {kind} to use for '{split}'. Available: {', '.join(names)}. "
        f"Select the {kind}s with data.train=[{example}] data.test=[{example}]."
    )


def _named(names: Collection[str], split: str, source: Path, kind: str) -> str:
    """Return the entry of `names` that a split's name refers to. For `test`, use val if there is no test."""

    def found(word: str) -> list[str]:
        alike = [n for n in names if SPLIT_NAMES.get(n.casefold(), n) == SPLIT_NAMES.get(word.casefold())]
        return [word] if word in names else alike

    return _choose(split, source, kind, list(names), found)


def _refuse_nested(ids: Collection[str], source: Path) -> None:
    """Raise UserError if image ids contain folders named after different splits, whose images would be mixed."""
    parents = {parent for i in ids for parent in PurePosixPath(i).parents}
    splits = sorted(str(p) for p in parents if p.name.casefold() in SPLIT_NAMES)
    if len({SPLIT_NAMES[PurePosixPath(s).name.casefold()] for s in splits}) < 2:
        return
    raise UserError(
        f"{source}: the folders {', '.join(splits[:6])} look like splits, but their images would be mixed. Set "
        "data.root to their parent folder, or select them with data.train=[FOLDER/train] data.test=[FOLDER/test]."
    )


def _of_two(ids: list[str], split: str, source: Path) -> list[str]:
    if split not in WORDS:
        raise UserError(
            f"{source}: no split '{split}'. The images are divided into trainval and test. Use one of these splits."
        )
    if len(ids) == 1 and split == "test":  # enough to evaluate saved detections
        return list(ids)
    if len(ids) < 2:
        raise UserError(f"{source}: found {len(ids)} annotated image(s). Training and testing need at least two.")
    return divide(ids, split)


def _file_of(files: Sequence[Path], split: str, folder: Path) -> Path:
    """Return the annotation file that a split's name refers to."""
    annotated = [f for f in files if not is_coco(f) or read_coco_file(f).annotated]

    def found(word: str) -> list[Path]:
        return [f for f in annotated if word in f"{f.parent.name if f.parent != folder else ''}/{f.stem}".lower()]

    names = [f"{f.relative_to(folder)}{'' if f in annotated else ' (without annotations)'}" for f in files]
    return _choose(split, folder, "file", names, found)


# ------------------------------------------------------------------------------------------------ reading


def read(
    source: Path, image_ids: Sequence[str], root: Path, need_pictures: bool = True, first_pixel: int = 1
) -> Iterator[Annotated]:
    """Yield the annotations of each image. source: a folder in VOC layout, or an annotation file.

    root: the data set's folder, to which the image ids of an annotation file are relative. need_pictures: whether a
    missing image is an error; evaluating saved detections does not need images. first_pixel: coordinate of the first
    pixel in VOC XML files, which is 1, or 0 in zero-based data sets.
    """
    if is_coco(source):
        return read_coco(source, image_ids, root, need_pictures)
    if source.is_file():
        folder = folder_of(root)
        return read_listing(source, folder).read(image_ids, folder, need_pictures)
    return read_voc(source, image_ids, need_pictures, first_pixel)


def annotated(source: Path, image_ids: Sequence[str], root: Path) -> list[bool]:
    """Return for each image whether it has an annotation. For a COCO file, all values are True if any image has one."""
    if is_coco(source):
        return [read_coco_file(source).annotated] * len(image_ids)
    if source.is_file():
        return [True] * len(image_ids)  # images that these files list count as annotated
    return [exists(find_annotation(source, image_id)) for image_id in image_ids]


def source_problems(source: Path, root: Path | None = None) -> list[Problem]:
    """Return the problems of an annotation file that `read` does not return with an image, such as unusable entries.

    For a folder, the result is empty. root: the data set's folder. If None, `source` is used.
    """
    if is_coco(source):
        return list(read_coco_file(source).problems)
    return list(read_listing(source, folder_of(root or source)).problems) if source.is_file() else []


def explain_missing(problems: Sequence[Problem], source: Path, root: Path, images: int) -> list[Problem]:
    """Return the problems. If nearly all images or annotations are missing, state in them where such files are."""
    for kind in ("missing_image", "missing_annotation"):
        missing = [p for p in problems if p.kind == kind]
        if not nearly_all(len(missing), images):
            continue
        if is_coco(source):
            if what := where_images_are(source, Path(missing[0].file), root):
                return [replace(p, what=what) if p.kind == kind else p for p in problems]
        elif source.is_dir() and (where := where_files_are(source)):
            return [replace(p, what=f"{where} At this path: {p.what}") if p.kind == kind else p for p in problems]
    return list(problems)


def class_names(source: Path, image_ids: Sequence[str], root: Path | None = None) -> tuple[list[str], Problems]:
    """Return the names of all classes with objects in the images `image_ids`, and errors of unreadable annotations.

    The names are in the order that a COCO, CVAT or YOLO file defines. For other formats, they are sorted. For a COCO
    file, the classes of all images in the file are returned. root: the data set's folder. If None, `source` is used.
    """
    if is_coco(source):
        return coco_classes(source), Problems(source_problems(source))
    names, problems = set[str](), Problems(images=len(image_ids))
    for image in read(source, image_ids, folder_of(root or source), need_pictures=False):
        names.update(o.name for o in image.objects or () if o.listed)
        problems.found += [p for p in image.problems if p.error]
    order = read_listing(source, folder_of(root or source)).classes if source.is_file() else sorted(names)
    return [name for name in order if name in names], problems


def load(
    source: Path,
    image_ids: Sequence[str],
    classes: Sequence[str],
    *,
    root: Path | None = None,
    training: bool = False,
    use_difficult: bool = True,
    skip_bad: bool = False,
    need_pictures: bool = True,
    first_pixel: int = 1,
    leave_out_others: bool = False,
) -> tuple[list[Sample], Problems]:
    """Load images as samples with half-open boxes. Return the samples of the usable images, and all problems found.

    See `read` for parameters not described here. root: the data set's folder. If None, `source` is used. training:
    exclude annotations with `iscrowd` or `ignore`, and difficult objects unless `use_difficult` is set. Otherwise keep
    all annotations. skip_bad: skip unusable files and objects. leave_out_others: exclude objects of classes that are
    not in `classes`, and count them in a note; otherwise they are errors.

    Raises UserError if there are errors (see problems.ERRORS) and `skip_bad` is false.
    """
    root = source if root is None else root
    images = read(source, image_ids, root, need_pictures, first_pixel)
    samples, problems = to_samples(images, classes, training, use_difficult, leave_out_others)
    problems.found = explain_missing([*source_problems(source, root), *problems.found], source, root, len(image_ids))
    errors = problems.errors
    if errors and not skip_bad:
        unknown = any(p.kind == "unknown_class" for p in errors)
        others = " Exclude objects of other classes with data.other_classes=leave_out." if unknown else ""
        number = sum(p.error for p in problems.found)
        raise UserError(
            f"{number} problem(s) in the data set {source}:\n{shorten(problems.lines)}\n"
            f"Fix the files, or skip unusable files and objects with data.skip_bad=true.{others}"
        )
    return samples, problems
