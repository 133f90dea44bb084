"""What every reader of a format returns whose files are neither VOC's nor COCO's: images by id, in splits with names.

An image's id is its path below the data set's folder, as `train/images/0001.jpg`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from fastrcnn.data.images import IMAGE_SUFFIXES, read_bytes, read_header
from fastrcnn.data.truth.annotated import Annotated, AnnotatedObject, Box
from fastrcnn.data.truth.problems import LEADS_OUT, Problem
from fastrcnn.data.truth.text_files import leads_out
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError

# What the names of folders, lists and files mean.
SPLIT_NAMES = {"trainval": "trainval", "train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation"), "val")
IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img")

Size = tuple[int, int]  # width and height
# Takes the size of an image; gives its objects, and the problems: what is wrong with them, and what is not used.
Objects = Callable[[Size], tuple[list[AnnotatedObject], list[Problem]]]


@dataclass(frozen=True)
class ListedImage:
    """An image that files of a format list."""

    path: Path
    annotation: Path  # the file that says what is in it, or where that file should be
    objects: Objects = field(repr=False, compare=False)
    size: Size | None = None  # as the files have it; None: the image's own, upright


@dataclass(frozen=True)
class Listing:
    """The images of a data set, as files of one format list them.

    format: its name, for messages. path: the file that stands for all of them. splits: ids by the name that the files
    give a split; "" where they name none. classes: names in the files' order, of which some may have no object.
    classes_from: where the names come from, for messages. problems: what is wrong beside single images.
    """

    format: str
    path: Path
    splits: dict[str, list[str]]
    images: dict[str, ListedImage] = field(repr=False)
    classes: list[str]
    classes_from: str
    problems: tuple[Problem, ...] = ()

    def read(self, image_ids: Sequence[str], folder: Path, need_pictures: bool = True) -> Iterator[Annotated]:
        """What the files say about each of the images. folder: the data set's, which no link may lead out of.

        need_pictures: whether the image must be there; without it one of unknown size is an error all the same.
        """
        home = folder.resolve()
        for image_id in image_ids:
            image = self.images.get(image_id)
            if image is None:
                what = f"there is no image {image_id} in it."
                yield Annotated(image_id, self.path, self.path, problems=(Problem("annotation", str(self.path), what),))
            else:
                yield _read(image_id, image, home, need_pictures)


def _read(image_id: str, image: ListedImage, home: Path, need_pictures: bool) -> Annotated:
    found = Annotated(image_id, image.path, image.annotation)

    def refused(kind: str, file: Path, what: str) -> Annotated:
        return replace(found, problems=(Problem(kind, str(file), what),))

    if not image.path.is_file() and (need_pictures or image.size is None):
        where = "It was looked for beside that file, in the data set's folder, and in `images` and the like in both."
        return refused("missing_picture", image.path, f"no such image, which {image.annotation} names. {where}")
    for file in (image.path, image.annotation):
        if not file.resolve().is_relative_to(home):
            return refused("link", file, LEADS_OUT)
    size = image.size
    if size is None:
        try:
            size = upright_size(image.path)
        except UserError as error:
            return refused("bad_picture", image.path, str(error).removeprefix(f"{image.path}: "))
    objects, problems = image.objects(size)
    usable = None if any(p.error for p in problems) else tuple(objects)
    return replace(found, width=size[0], height=size[1], objects=usable, problems=tuple(problems))


@read_once(20_000)
def upright_size(path: Path) -> Size:
    """Width and height of an image, rotated as its EXIF data ask. Raises UserError where it cannot be read."""
    return read_header(read_bytes(path), path).upright


def images_below(folder: Path) -> list[Path]:
    """All images in a folder and the folders below it, in the order of their paths."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__MACOSX" and not name.startswith(".")]
        found += [Path(parent, n) for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES and n[:2] != "._"]
    return sorted(found)


def image_id(path: Path, folder: Path) -> str:
    """The id of an image below the data set's folder."""
    return path.relative_to(folder).as_posix()


def resolve(written: str, bases: Sequence[Path]) -> Path | None:
    """The file or folder that a path in a user's file means: below the first of the bases that has it.

    Exporters write paths of the machine or the zip they were made on (`../train/images`, `/content/data/a.jpg`,
    `data/obj_train_data/a.jpg`), so that leading parts are left out one by one, and none above a base is looked at.
    """
    windows = "\\" in written or PureWindowsPath(written).drive
    parts = (PureWindowsPath(written) if windows else PurePosixPath(written)).parts
    parts = tuple(p for p in parts if p not in ("..", ".", "/", "\\") and not p.endswith(("\\", ":")) and "\0" not in p)
    for start in range(len(parts) or 1):
        for base in bases:
            if (there := base.joinpath(*parts[start:])).exists():
                return there
    return None


def tidy(written: str, base: Path) -> Path:
    """Where an image should be that is not there: below `base`, also where its path leads elsewhere."""
    path = PurePosixPath(written.replace("\\", "/"))
    return base / path.name if leads_out(written) else base / path


def picture_bases(*folders: Path) -> list[Path]:
    """Where the images may be that a file in one of these folders names: there, or in `images` and the like."""
    return list(dict.fromkeys(base for f in folders for base in (f, *(f / name for name in IMAGE_FOLDERS))))


def folders_of(split: str, base: Path) -> list[str]:
    """The folders below `base` whose names mean the split: train, training, ..."""
    meant = SPLIT_NAMES.get(split.casefold(), split.casefold())
    if not split or not base.is_dir():
        return []
    names = sorted(p.name for p in base.iterdir() if p.is_dir())
    return [name for name in names if SPLIT_NAMES.get(name.casefold(), name.casefold()) == meant]


def split_of(path: Path, folder: Path) -> str:
    """The name of the split that a file or image is of, by the folders it is in, else by its own name; "" for none."""
    parts = path.relative_to(folder).parts
    for part in reversed(parts[:-1]):
        if part.casefold() in SPLIT_NAMES:
            return part
    words = path.stem.casefold().replace("-", "_").replace(".", "_").split("_")
    return next((word for word in words if word in SPLIT_NAMES), "")


def box_around(points: Sequence[tuple[float, float]]) -> Box:
    """The smallest upright box around points x, y."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
