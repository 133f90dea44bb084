"""YOLO's data sets: where images, labels, names of classes and splits are. `yolo_labels.py` reads one label file.

The names of the classes, and the splits, are in Ultralytics' `data.yaml` or Darknet's `obj.data`; or the names alone
are in a file of one name a line (`classes.txt`, `obj.names`, Roboflow's `_darknet.labels`), and folders are the splits.
Images are used upright, as all these programs read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from fastrcnn.data.annotations.formats.listing import (
    IMAGE_FOLDERS,
    SPLIT_NAMES,
    ListedImage,
    Listing,
    image_id,
    images_below,
    resolve,
    split_of,
    tidy,
)
from fastrcnn.data.annotations.formats.yolo_labels import objects_in, parse_labels
from fastrcnn.data.images import IMAGE_SUFFIXES
from fastrcnn.data.truth.problems import Problem, shorten
from fastrcnn.data.truth.text_files import read_lines
from fastrcnn.errors import UserError

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
MAX_YAML_BYTES = 1_000_000
NAMES = re.compile(r"['\"]?names['\"]?\s*:")


@dataclass(frozen=True)
class _Head:
    """What names the classes and the splits."""

    path: Path
    names: list[str]
    # Of each split the places, folders or files of paths, each in the ways to look it up; none: folders are the splits.
    splits: dict[str, list[list[str]]]
    keypoints: bool = False  # whether a line has keypoints after its box


def is_yolo_file(path: Path) -> bool:
    """Whether data.root or a split may be this file."""
    return path.suffix.lower() in (".yaml", ".yml", ".data", ".names") or path.name in NAME_FILES


def described_file(folder: Path) -> Path | None:
    """The `data.yaml` or `obj.data` of a folder. Raises UserError for several, and for one that cannot be read."""
    head = _described(folder)
    return head.path if head else None


def names_file(folder: Path) -> Path | None:
    """The file with the names of classes of a folder that has YOLO's labels and no description of them. Raises
    UserError for labels without such a file, and for files that differ."""
    head = _names_alone(folder)
    if head is None or not any(_label_of(image, folder).is_file() for image in images_below(folder)):
        return None
    return head.path


def read_yolo(file: Path, folder: Path) -> Listing:
    """The images of the data set that a file describes, or gives the names of the classes of. folder: the data set's.

    Raises UserError for a file that cannot be read, for paths of splits that mean nothing, and where no image has a
    label file.
    """
    head = _head_of(file)
    if head is None:
        raise UserError(f"{file}: does not describe a YOLO data set: it lacks `names`, or for Darknet `train`.")
    splits, missing = _splits(head, folder)
    images: dict[str, ListedImage] = {}
    for path in dict.fromkeys(path for paths in splits.values() for path in paths):
        label = _label_of(path, folder)
        objects = partial(objects_in, label, tuple(head.names), head.keypoints)
        images[image_id(path, folder)] = ListedImage(path, label, objects)
    bare = [image for image in images.values() if not image.annotation.is_file()]
    if len(bare) == len(images):
        example = next(iter(images.values()), None)
        looked = f" The first was looked for as {example.annotation}." if example else ""
        raise UserError(
            f"{head.path}: none of its {len(images)} images has a label file.{looked} Labels belong in `labels/` where "
            "the images are in `images/`, or beside the images, and have their names: a.jpg, a.txt."
        )
    named = {split: [image_id(path, folder) for path in paths] for split, paths in splits.items()}
    problems = [Problem("unused_file", str(file), f"{place} is not there; it is left out.") for place in missing]
    problems += _notes(folder, images, bare)
    return Listing("YOLO", head.path, named, images, head.names, head.path.name, tuple(problems))


# ------------------------------------------------------------------------------------------------ names and splits


def _described(folder: Path) -> _Head | None:
    """What a file with splits says, if there is one."""
    files = sorted(p for pattern in ("*.yaml", "*.yml", "*.data") for p in folder.glob(pattern) if p.is_file())
    found = [head for head in (_head_of(path) for path in files) if head is not None and head.splits]
    if len(found) > 1:
        usual = [head for head in found if head.path.name in ("data.yaml", "obj.data")]
        if len(usual) != 1:
            names = ", ".join(head.path.name for head in found)
            raise UserError(f"{folder}: which file describes the data set, {names}? Say data.root={found[0].path}.")
        found = usual
    return found[0] if found else None


def _head_of(path: Path) -> _Head | None:
    """What a file says of classes and splits; None for a file of something else."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml(path)
    return _read_data(path) if path.suffix.lower() == ".data" else _Head(path, _read_names(path), {})


def _read_yaml(path: Path) -> _Head | None:
    if path.stat().st_size > MAX_YAML_BYTES or not (lines := _lines(path)):
        return None
    if not any(NAMES.match(line) for line in lines):  # a YAML file of something else
        return None
    try:
        content = yaml.safe_load("\n".join(lines))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}).") from None
    except RecursionError:
        raise UserError(f"{path}: not a data set's YAML file; its lists are nested too deep.") from None
    if not isinstance(content, dict) or not isinstance(content.get("names"), (list, dict)):
        return None
    names = content["names"]
    if isinstance(names, dict):
        keys = sorted(names, key=lambda k: (not isinstance(k, int), str(k) if not isinstance(k, int) else k))
        if keys != list(range(len(keys))):
            raise UserError(f"{path}: `names` should number the classes from 0 without a gap, has {keys!r:.80}.")
        names = [names[key] for key in keys]
    names = _checked_names(path, names)
    number = content.get("nc", len(names))
    if number != len(names):
        raise UserError(f"{path}: `nc` is {number!r:.20}, but `names` has {len(names)} names. Correct one of them.")
    splits: dict[str, list[list[str]]] = {}
    base = PurePosixPath(str(content.get("path") or "").replace("\\", "/")).parts
    bases = ["/".join(base[start:]) for start in range(len(base) + 1)]  # it may be a place on another machine
    for split in ("train", "val", "valid", "test"):
        where = content.get(split) or []
        where = [where] if isinstance(where, str) else where
        if not isinstance(where, list) or not all(isinstance(w, str) for w in where):
            raise UserError(f"{path}: `{split}` should be a folder or a list of folders, is {where!r:.80}.")
        if where:
            splits[split] = [[f"{own}/{place}" if own else place for own in bases] for place in where]
    return _Head(path, names, splits, keypoints="kpt_shape" in content)


def _lines(path: Path) -> list[str]:
    """The lines of a file that may be of anything; none where it is no text."""
    try:
        return read_lines(path)
    except UserError:
        return []


def _checked_names(path: Path, names: Iterable[Any]) -> list[str]:
    texts = [str(name).strip() if isinstance(name, (str, int, float)) else "" for name in names]
    for number, text in enumerate(texts):
        if not text:
            raise UserError(f"{path}: class {number} has no name.")
        if texts.index(text) != number:
            raise UserError(f"{path}: classes {texts.index(text)} and {number} have the same name '{text}'.")
    if not texts:
        raise UserError(f"{path}: names no class.")
    return texts


def _read_data(path: Path) -> _Head | None:
    """Darknet's `KEY = VALUE` lines."""
    pairs = [line.partition("=") for line in _lines(path) if line.strip() and not line.strip().startswith("#")]
    values = {key.strip().casefold(): value.strip() for key, _, value in pairs}
    if not {"names", "train"} <= values.keys():
        return None
    if (file := resolve(values["names"], [path.parent])) is None or not file.is_file():
        raise UserError(f"{path}: there is no {values['names']}, which it says has the names of the classes.")
    splits = {split: [[values[split]]] for split in ("train", "valid", "test") if values.get(split)}
    return _Head(path, _read_names(file), splits)


def _read_names(path: Path) -> list[str]:
    return _checked_names(path, [line for line in read_lines(path) if line.strip()])


def _names_alone(folder: Path) -> _Head | None:
    """The file with the names of classes, for labels that nothing else describes; None where there are no labels."""
    levels = ("", "*/", "*/*/")  # LabelImg writes classes.txt beside the labels, as in labels/train
    files = [file for level in levels for name in NAME_FILES for file in sorted(folder.glob(f"{level}{name}"))]
    files = files or [file for level in levels for file in sorted(folder.glob(f"{level}*.names"))]
    if files:
        names = _read_names(files[0])
        if other := next((file for file in files[1:] if _read_names(file) != names), None):
            raise UserError(f"{files[0]} and {other} name other classes. Make them equal, or keep one.")
        return _Head(files[0], names, {})
    labels = (path for image in images_below(folder) if (path := _label_of(image, folder)).is_file())
    if (first := next(labels, None)) is None or parse_labels(first)[1] or not parse_labels(first)[0]:
        return None
    raise UserError(
        f"{folder}: has YOLO labels, such as {first.relative_to(folder)}, but no names of the classes. Write them into "
        f"{folder / 'classes.txt'}, one a line, in the order of their numbers."
    )


def _splits(head: _Head, folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The images of each split, and the splits that are not there, such as a `test` without images. Raises UserError
    where there is nothing to train on."""
    if not head.splits:
        found: dict[str, list[Path]] = {}
        for path in images_below(folder):
            found.setdefault(split_of(path, folder), []).append(path)
        order = ["", *SPLIT_NAMES]
        return {split: found[split] for split in sorted(found, key=lambda name: order.index(name.casefold()))}, []
    splits, missing = {}, []
    for split, places in head.splits.items():
        paths: list[Path] = []
        for ways in places:
            there = _place(ways, head.path.parent)
            if there is None:
                missing.append(f"`{split}`: {ways[-1]}")
            elif there.is_dir():
                paths += images_below(there)
            else:
                paths += _listed(there, folder)
        if paths:
            splits[split] = list(dict.fromkeys(paths))
    if "train" not in splits:
        lines = shorten(missing) or "  its folders hold no images"
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise UserError(
            f"{head.path}: the images to train on ({kinds}) are not there:\n{lines}\n"
            f"Paths in it are looked up from {head.path.parent}; correct them, or move the file to where they fit."
            f"{_without_splits(folder)}"
        )
    return splits, missing


def _without_splits(folder: Path) -> str:
    """How to read the labels of a folder without the splits that a file names; empty where there is no way."""
    try:
        names = names_file(folder)
    except UserError:
        return ""
    if names is None or names.parent != folder:
        return ""
    return f" To read the labels beside the images without these splits: data.root={names}"


def _place(ways: Sequence[str], base: Path) -> Path | None:
    """The folder or file that a path means, which may be written in several ways. Of a folder only `..` is dropped: a
    shorter path would be another split's too."""
    for way in ways:
        parts = [part for part in PurePosixPath(way.replace("\\", "/")).parts if part not in ("..", ".", "/")]
        if "\0" not in way and (there := base.joinpath(*parts)).exists():
            return there
    file = resolve(ways[-1], [base])
    return file if file is not None and file.is_file() else None


def _listed(file: Path, folder: Path) -> list[Path]:
    """The images that a text file lists, a path a line."""
    paths, names = [], [line.strip() for line in read_lines(file)]
    for number, name in enumerate(names, 1):
        if name:
            if PurePosixPath(name.replace("\\", "/")).suffix.lower() not in IMAGE_SUFFIXES:
                kinds = ", ".join(IMAGE_SUFFIXES)
                raise UserError(f"{file}, line {number}: should be the path of an image ({kinds}), is {name[:200]!r}.")
            paths.append(resolve(name, [file.parent, folder]) or tidy(name, file.parent))
    return paths


def _label_of(image: Path, folder: Path) -> Path:
    """The label file of an image, or where it should be: in `labels` where the image is in `images`, or beside it."""
    parts = image.relative_to(folder).parts
    for at in reversed(range(len(parts) - 1)):
        if parts[at].casefold() in [name.casefold() for name in IMAGE_FOLDERS]:
            label = folder.joinpath(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
            beside = image.with_suffix(".txt")
            return beside if beside.is_file() and not label.is_file() else label
    return image.with_suffix(".txt")


def _notes(folder: Path, images: dict[str, ListedImage], bare: Sequence[ListedImage]) -> list[Problem]:
    """What to know of images without labels, the `bare`, and of labels without images."""
    notes = []
    if bare:
        what = f"{len(bare)} of {len(images)} images have no label file: they are images without objects, as for YOLO."
        notes.append(Problem("unlabelled", str(bare[0].path), what))
    used = {image.annotation for image in images.values()}
    parents = dict.fromkeys(path.parent for path in used)
    others = [p for parent in parents for p in sorted(parent.glob("*.txt")) if p not in used and parse_labels(p)[0]]
    others = [p for p in others if p.name not in NAME_FILES]
    if others:
        what = f"{len(others)} label file(s) have no image that is used; this is the first."
        notes.append(Problem("unused_file", str(others[0]), what))
    return notes
