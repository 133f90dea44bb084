"""Reader of YOLO data sets. It finds images, label files, class names and splits; `yolo_labels.py` reads label files.

Class names and splits are in Ultralytics' `data.yaml` or Darknet's `obj.data`. Otherwise a file with one class name per
line (`classes.txt`, `obj.names`, Roboflow's `_darknet.labels`) defines the classes, and folders define the splits.
Coordinates refer to the upright image (after EXIF rotation), as in these programs.
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
from fastrcnn.data.truth.text_files import exists, is_file, read_lines, refuse_link
from fastrcnn.errors import UserError

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
MAX_YAML_BYTES = 1_000_000
NAMES = re.compile(r"['\"]?names['\"]?\s*:")


@dataclass(frozen=True)
class _Head:
    """Class names and splits of a data set."""

    path: Path
    names: list[str]
    # Folders or image lists of each split, each as a list of alternative paths. Empty if folder names define splits.
    splits: dict[str, list[list[str]]]
    keypoints: bool = False  # whether label lines contain keypoints after the box


def is_yolo_file(path: Path) -> bool:
    """Return whether a file is a YOLO data set description or a list of class names, judging by its name."""
    return path.suffix.lower() in (".yaml", ".yml", ".data", ".names") or path.name in NAME_FILES


def described_file(folder: Path) -> Path | None:
    """Find the YOLO data set description (`data.yaml`, `obj.data`) in a folder, or return None.

    Raises UserError if there are several and not exactly one has one of these names, or if one is invalid.
    """
    head = _described(folder)
    return head.path if head else None


def names_file(folder: Path) -> Path | None:
    """Find the file with the class names (`classes.txt`, `obj.names`) of a folder, or return None if it has no labels.

    Raises UserError if there are labels but no class names, or if several files contain different class names.
    """
    head = _names_alone(folder)
    if head is None or not any(_label_of(image, folder).is_file() for image in images_below(folder)):
        return None
    return head.path


def read_yolo(file: Path, folder: Path) -> Listing:
    """Read a data set, given its description or its list of class names. folder: the data set's folder.

    Raises UserError if the file is invalid, the images to train on do not exist, or no image has a label file.
    """
    head = _head_of(file, folder)
    if head is None:
        raise UserError(
            f"{file}: not a YOLO data set description. A YAML file must contain the key `names`. A Darknet file must "
            "contain the keys `names` and `train`."
        )
    splits, missing = _splits(head, folder)
    images: dict[str, ListedImage] = {}
    names = tuple(head.names)
    for path in dict.fromkeys(path for paths in splits.values() for path in paths):
        label = _label_of(path, folder)
        objects = partial(objects_in, label, names, head.keypoints)
        images[image_id(path, folder)] = ListedImage(path, label, objects)
    bare = [image for image in images.values() if not is_file(image.annotation)]
    if len(bare) == len(images):
        example = next(iter(images.values()), None)
        looked = f" The label file of the first image should be {example.annotation}." if example else ""
        raise UserError(
            f"{head.path}: found {len(images)} image(s), but none has a label file.{looked} Put the label files into "
            "`labels/` (if the images are in `images/`) or next to the images. Each label file must have the name of "
            "its image, for example a.txt for a.jpg."
        )
    named = {split: [image_id(path, folder) for path in paths] for split, paths in splits.items()}
    problems = [Problem("unused_file", str(file), f"{place} does not exist and is ignored.") for place in missing]
    problems += _notes(folder, images, bare)
    return Listing("YOLO", head.path, named, images, head.names, head.path.name, tuple(problems))


# ------------------------------------------------------------------------------------------------ names and splits


def _described(folder: Path) -> _Head | None:
    """Read the file in a folder that describes the data set and its splits. Return None if there is none."""
    files = sorted(p for pattern in ("*.yaml", "*.yml", "*.data") for p in folder.glob(pattern) if p.is_file())
    found = [head for head in (_head_of(path, folder) for path in files) if head is not None and head.splits]
    if len(found) > 1:
        usual = [head for head in found if head.path.name in ("data.yaml", "obj.data")]
        if len(usual) != 1:
            names = ", ".join(head.path.name for head in found)
            first = found[0].path
            raise UserError(
                f"{folder}: found several data set descriptions ({names}). Choose one with data.root={first}."
            )
        found = usual
    return found[0] if found else None


def _head_of(path: Path, folder: Path) -> _Head | None:
    """Read classes and splits from a file. Return None if the file has another purpose."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml(path, folder)
    is_data = path.suffix.lower() == ".data"
    return _read_data(path, folder) if is_data else _Head(path, _read_names(path, folder), {})


def _read_yaml(path: Path, folder: Path) -> _Head | None:
    if path.stat().st_size > MAX_YAML_BYTES or not (lines := _lines(path)):
        return None
    if not any(NAMES.match(line) for line in lines):  # a YAML file with another purpose
        return None
    refuse_link(path, folder)
    try:
        content = yaml.safe_load("\n".join(lines))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}).") from None
    except RecursionError:
        raise UserError(f"{path}: not a valid data set description, because its lists are nested too deeply.") from None
    if not isinstance(content, dict) or not isinstance(content.get("names"), (list, dict)):
        return None
    names = content["names"]
    if isinstance(names, dict):
        keys = sorted(names, key=lambda k: (not isinstance(k, int), str(k) if not isinstance(k, int) else k))
        if keys != list(range(len(keys))):
            raise UserError(f"{path}: `names` must number classes from 0 without gaps, but its keys are {keys!r:.80}.")
        names = [names[key] for key in keys]
    names = _checked_names(path, names)
    number = content.get("nc", len(names))
    if number != len(names):
        raise UserError(f"{path}: `nc` is {number!r:.20}, but `names` has {len(names)} name(s). Fix one of them.")
    splits: dict[str, list[list[str]]] = {}
    base = PurePosixPath(str(content.get("path") or "").replace("\\", "/")).parts
    bases = ["/".join(base[start:]) for start in range(len(base) + 1)]  # `path` can be from another machine
    for split in ("train", "val", "valid", "test"):
        where = content.get(split) or []
        where = [where] if isinstance(where, str) else where
        if not isinstance(where, list) or not all(isinstance(w, str) for w in where):
            raise UserError(f"{path}: `{split}` must be a path or a list of paths, but is {where!r:.80}.")
        if where:
            splits[split] = [[f"{own}/{place}" if own else place for own in bases] for place in where]
    return _Head(path, names, splits, keypoints="kpt_shape" in content)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file, or an empty list if it cannot be read as text."""
    try:
        return read_lines(path)
    except UserError:
        return []


def _checked_names(path: Path, names: Iterable[Any]) -> list[str]:
    texts = [str(name).strip() if isinstance(name, (str, int, float)) else "" for name in names]
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        if not text:
            raise UserError(f"{path}: class {number} has no name.")
        if first.setdefault(text, number) != number:
            raise UserError(f"{path}: classes {first[text]} and {number} have the same name '{text}'.")
    if not texts:
        raise UserError(f"{path}: the list of class names is empty.")
    return texts


def _read_data(path: Path, folder: Path) -> _Head | None:
    """Read Darknet's `KEY = VALUE` lines. Return None if the file has another purpose."""
    pairs = [line.partition("=") for line in _lines(path) if line.strip() and not line.strip().startswith("#")]
    values = {key.strip().casefold(): value.strip() for key, _, value in pairs}
    if not {"names", "train"} <= values.keys():
        return None
    refuse_link(path, folder)
    if (file := resolve(values["names"], [path.parent])) is None or not file.is_file():
        raise UserError(f"{path}: the file of class names, {values['names']}, does not exist.")
    splits = {split: [[values[split]]] for split in ("train", "valid", "test") if values.get(split)}
    return _Head(path, _read_names(file, folder), splits)


def _read_names(path: Path, folder: Path) -> list[str]:
    refuse_link(path, folder)
    return _checked_names(path, [line for line in read_lines(path) if line.strip()])


def _names_alone(folder: Path) -> _Head | None:
    """Read a folder's class names from a file of names. Return None if it has neither such a file nor labels."""
    levels = ("", "*/", "*/*/")  # LabelImg writes classes.txt next to the labels, such as in labels/train
    files = [file for level in levels for name in NAME_FILES for file in sorted(folder.glob(f"{level}{name}"))]
    files = files or [file for level in levels for file in sorted(folder.glob(f"{level}*.names"))]
    if files:
        names = _read_names(files[0], folder)
        if other := next((file for file in files[1:] if _read_names(file, folder) != names), None):
            raise UserError(
                f"{files[0]} and {other} contain different class names. Use the same names in both files, or delete "
                "one of the files."
            )
        return _Head(files[0], names, {})
    labels = (path for image in images_below(folder) if (path := _label_of(image, folder)).is_file())
    if (first := next(labels, None)) is None or parse_labels(first)[1] or not parse_labels(first)[0]:
        return None
    raise UserError(
        f"{folder}: found YOLO labels, such as {first.relative_to(folder)}, but no class names. Write the names to "
        f"{folder / 'classes.txt'}, one per line, in the order of the class numbers."
    )


def _splits(head: _Head, folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the image paths of each split, and the missing folders and image lists as text, such as "`test`: PATH".

    Raises UserError if the file defines splits, but there are no images to train on.
    """
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
        lines = shorten(missing) or "  none, but `train` is not set or contains no images"
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise UserError(
            f"{head.path}: found no images to train on ({kinds}). Paths in the file that do not exist:\n{lines}\n"
            f"Relative paths start at {head.path.parent}. Correct the paths, or move the file to the folder for which "
            f"they were written.{_without_splits(folder)}"
        )
    return splits, missing


def _without_splits(folder: Path) -> str:
    """Return advice on how to read the labels without the defined splits, or "" if `folder` has no file of names."""
    try:
        names = names_file(folder)
    except UserError:
        return ""
    if names is None or names.parent != folder:
        return ""
    return f" To read the labels without these splits, set data.root={names}."


def _place(ways: Sequence[str], base: Path) -> Path | None:
    """Return the folder or file of a split, or None if it does not exist. ways: alternative paths, tried in order.

    `..` in a path is ignored. If none of the paths exists, `resolve` drops leading parts of the last one to find a
    file. A folder is not searched for in this way, because a shorter path could be the folder of another split.
    """
    for way in ways:
        parts = [part for part in PurePosixPath(way.replace("\\", "/")).parts if part not in ("..", ".", "/")]
        if "\0" not in way and exists(there := base.joinpath(*parts)):
            return there
    file = resolve(ways[-1], [base])
    return file if file is not None and file.is_file() else None


def _listed(file: Path, folder: Path) -> list[Path]:
    """Return the paths of the images that a text file lists, one per line, including images that do not exist."""
    refuse_link(file, folder)
    paths, names = [], [line.strip() for line in read_lines(file)]
    for number, name in enumerate(names, 1):
        if name:
            if PurePosixPath(name.replace("\\", "/")).suffix.lower() not in IMAGE_SUFFIXES:
                kinds = ", ".join(IMAGE_SUFFIXES)
                raise UserError(f"{file}, line {number}: {name[:200]!r} is not the path of an image ({kinds}).")
            paths.append(resolve(name, [file.parent, folder]) or tidy(name, file.parent))
    return paths


def _label_of(image: Path, folder: Path) -> Path:
    """Return the path of an image's label file, in `labels/` if the image is in `images/`, or next to the image."""
    parts = image.relative_to(folder).parts
    for at in reversed(range(len(parts) - 1)):
        if parts[at].casefold() in [name.casefold() for name in IMAGE_FOLDERS]:
            label = folder.joinpath(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
            beside = image.with_suffix(".txt")
            return beside if is_file(beside) and not is_file(label) else label
    return image.with_suffix(".txt")


def _notes(folder: Path, images: dict[str, ListedImage], bare: Sequence[ListedImage]) -> list[Problem]:
    """Return notes about images without label files (`bare`), and about label files without images."""
    notes = []
    if bare:
        what = f"images without a label file: {len(bare)} of {len(images)}. They are used as images without objects."
        notes.append(Problem("unlabelled", str(bare[0].path), what))
    used = {image.annotation for image in images.values()}
    parents = [parent for parent in dict.fromkeys(path.parent for path in used) if exists(parent)]
    others = [p for parent in parents for p in sorted(parent.glob("*.txt")) if p not in used and parse_labels(p)[0]]
    others = [p for p in others if p.name not in NAME_FILES]
    if others:
        what = f"{len(others)} label file(s) do not belong to any used image. This is the first."
        notes.append(Problem("unused_file", str(others[0]), what))
    return notes
