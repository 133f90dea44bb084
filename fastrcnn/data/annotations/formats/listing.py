"""The result of reading any format other than VOC and COCO: images by id, and named splits.

An image id is the path of the image relative to the data set's folder, such as `train/images/0001.jpg`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from fastrcnn.data.images import IMAGE_SUFFIXES, read_bytes, read_header
from fastrcnn.data.truth.annotated import Annotated, AnnotatedObject, Box
from fastrcnn.data.truth.problems import LEADS_OUT, Problem
from fastrcnn.data.truth.text_files import exists, is_file, leads_out
from fastrcnn.data.truth.versions import read_once
from fastrcnn.errors import UserError

# Names of folders, lists and files, and the splits that they identify.
SPLIT_NAMES = {"trainval": "trainval", "train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation"), "val")
IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img")

Size = tuple[int, int]  # width and height
# A function of an image's size that returns the objects and the problems (errors and notes) of the image.
Objects = Callable[[Size], tuple[list[AnnotatedObject], list[Problem]]]


@dataclass(frozen=True)
class ListedImage:
    """An image that an annotation file lists."""

    path: Path
    annotation: Path  # the file with its annotations, even if it does not exist
    objects: Objects = field(repr=False, compare=False)
    size: Size | None = None  # as stated in the annotation file; None: use the size of the upright image


@dataclass(frozen=True)
class Listing:
    """The images of a data set, as listed by files of one format.

    format: name of the format, for messages. path: the main file. splits: image ids by split name; the name is "" if
    the files name no split. images: by image id. classes: class names, sorted, except that CVAT and YOLO files define
    their order and can include classes without objects. classes_from: source of the class names, for messages.
    problems: problems that do not concern a single image.
    """

    format: str
    path: Path
    splits: dict[str, list[str]]
    images: dict[str, ListedImage] = field(repr=False)
    classes: list[str]
    classes_from: str
    problems: tuple[Problem, ...] = ()

    def read(self, image_ids: Sequence[str], folder: Path, need_pictures: bool = True) -> Iterator[Annotated]:
        """Yield the annotations of each image. folder: the data set's folder; links to files outside it are errors.

        need_pictures: whether a missing image is an error. Without a size in the annotation file, it always is.
        """
        home = folder.resolve()
        for image_id in image_ids:
            image = self.images.get(image_id)
            if image is None:
                what = f"the file does not list image {image_id}."
                yield Annotated(image_id, self.path, self.path, problems=(Problem("annotation", str(self.path), what),))
            else:
                yield _read(image_id, image, home, need_pictures)


def _read(image_id: str, image: ListedImage, home: Path, need_pictures: bool) -> Annotated:
    found = Annotated(image_id, image.path, image.annotation)

    def refused(kind: str, file: Path, what: str) -> Annotated:
        return replace(found, problems=(Problem(kind, str(file), what),))

    if not is_file(image.path) and (need_pictures or image.size is None):
        what = f"no such image. Its annotation file is {image.annotation}. "
        what += "The image was also searched for in the data set's folder."
        return refused("missing_image", image.path, what)
    for file in (image.path, image.annotation):
        if not file.resolve().is_relative_to(home):
            return refused("link", file, LEADS_OUT)
    size = image.size
    if size is None:
        try:
            size = upright_size(image.path)
        except UserError as error:
            return refused("bad_image", image.path, str(error).removeprefix(f"{image.path}: "))
    objects, problems = image.objects(size)
    usable = None if any(p.error for p in problems) else tuple(objects)
    return replace(found, width=size[0], height=size[1], objects=usable, problems=tuple(problems))


@read_once(20_000)
def upright_size(path: Path) -> Size:
    """Return width and height of an image after its EXIF rotation. Raises UserError if the file cannot be read."""
    return read_header(read_bytes(path), path).upright


def images_below(folder: Path) -> list[Path]:
    """Find all images in a folder and its subfolders, except hidden folders, sorted by path."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__MACOSX" and not name.startswith(".")]
        found += [Path(parent, n) for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES and n[:2] != "._"]
    return sorted(found)


def image_id(path: Path, folder: Path) -> str:
    """Return the id of an image: its path relative to `folder`, the data set's folder, with / as the separator."""
    return path.relative_to(folder).as_posix()


def resolve(written: str, bases: Sequence[Path]) -> Path | None:
    """Return the file or folder that a path in a user's file refers to, or None. bases: folders to search, in order.

    Exported files often contain paths on another machine or in a zip file (`../train/images`, `/content/data/a.jpg`,
    `data/obj_train_data/a.jpg`). Therefore, `..` is ignored, and leading parts are dropped one by one until the path
    exists in one of the bases.
    """
    windows = "\\" in written or PureWindowsPath(written).drive
    parts = (PureWindowsPath(written) if windows else PurePosixPath(written)).parts
    parts = tuple(p for p in parts if p not in ("..", ".", "/", "\\") and not p.endswith(("\\", ":")) and "\0" not in p)
    for start in range(len(parts) or 1):
        for base in bases:
            if exists(there := base.joinpath(*parts[start:])):
                return there
    return None


def tidy(written: str, base: Path) -> Path:
    """Return the expected path of a missing image: below `base`, even if the path in the file points outside."""
    path = PurePosixPath(written.replace("\\", "/"))
    return base / path.name if leads_out(written) else base / path


def picture_bases(*folders: Path) -> list[Path]:
    """Return the folders to search for images: `folders`, and `images` and similar folders in each of them."""
    return list(dict.fromkeys(base for f in folders for base in (f, *(f / name for name in IMAGE_FOLDERS))))


def folders_of(split: str, base: Path) -> list[str]:
    """Return the names of the folders in `base` for a split, such as train or training for the split train."""
    meant = SPLIT_NAMES.get(split.casefold(), split.casefold())
    if not split or not base.is_dir():
        return []
    names = sorted(p.name for p in base.iterdir() if p.is_dir())
    return [name for name in names if SPLIT_NAMES.get(name.casefold(), name.casefold()) == meant]


def split_of(path: Path, folder: Path) -> str:
    """Return the part of a path that names a split, such as `valid`: a folder or a word of the file name; otherwise "".

    The innermost folder takes precedence. folder: the data set's folder, whose own name is ignored.
    """
    parts = path.relative_to(folder).parts
    for part in reversed(parts[:-1]):
        if part.casefold() in SPLIT_NAMES:
            return part
    words = path.stem.casefold().replace("-", "_").replace(".", "_").split("_")
    return next((word for word in words if word in SPLIT_NAMES), "")


def box_around(points: Sequence[tuple[float, float]]) -> Box:
    """Return the axis-aligned bounding box (x1, y1, x2, y2) of points (x, y)."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
