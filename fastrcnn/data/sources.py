"""Inputs that `source=` accepts: an image, a folder, a glob pattern, a text file with image paths, or a video."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from fastrcnn.data.frames import Look, without_objects
from fastrcnn.data.images import IMAGE_SUFFIXES, Stored, apply_orientation, decode_stored, read_bytes
from fastrcnn.data.truth.text_files import is_file, read_lines
from fastrcnn.errors import UserError
from fastrcnn.parallel.ahead import ahead, threads
from fastrcnn.structures import Sample

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def is_video(source: str) -> bool:
    """Return whether `source` is an existing file with a video suffix."""
    path = Path(source).expanduser()
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def pictures(source: str) -> list[Path]:
    """Return the image files of a source: a file, a folder, a glob pattern, or a text file with one path per line.

    Raises UserError if there are no images, or if a file that the text file lists does not exist.
    """
    path, kinds = Path(source).expanduser(), ", ".join(IMAGE_SUFFIXES)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        fault = f"the folder contains no images ({kinds}). To search its subfolders as well, use source='{path}/**'"
    elif path.is_file() and path.suffix.lower() == ".txt":
        found, fault = paths_in_list(path), "the text file lists no images. It must contain one path per line"
    elif path.exists():
        return [path]
    else:
        matching = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        # A pattern such as '*.tif' selects files of other formats explicitly.
        found = [p for p in matching if p.suffix.lower() in IMAGE_SUFFIXES] or matching
        fault = f"no such file or folder, and no file matches this pattern. Supported suffixes of images: {kinds}"
    if not found:
        raise UserError(f"source={source}: {fault}.")
    return found


def paths_in_list(path: Path) -> list[Path]:
    """Return the files that a text file lists, one path per line. Empty lines are ignored.

    Paths can be relative to the folder of the text file. Raises UserError if files are missing; the message lists them
    with their line numbers.
    """
    names = {number: name for number, line in enumerate(read_lines(path), 1) if (name := line.strip())}
    files = {number: path.parent / Path(name).expanduser() for number, name in names.items()}
    missing = [f"{path}, line {n}: the file {file} does not exist." for n, file in files.items() if not is_file(file)]
    if missing:
        more = [f"... and {len(missing) - 10} more"] if len(missing) > 10 else []
        advice = "Paths must be absolute, or relative to the folder of the text file."
        raise UserError("\n".join([*missing[:10], *more, advice]))
    return list(files.values())


def image_ids(paths: Sequence[Path]) -> list[str]:
    """Return a unique id for each image: the stem of its file name, or FOLDER_FILENAME if several have it."""
    stems = Counter(path.stem for path in paths)
    taken: set[str] = set()
    found = []
    for path in paths:
        image_id = name = path.stem if stems[path.stem] == 1 else f"{path.parent.name}_{path.name}"
        number = 1
        while image_id in taken:  # for example, if several folders have the same name
            number += 1
            image_id = f"{name}_{number}"
        taken.add(image_id)
        found.append(image_id)
    return found


def samples_of(paths: Sequence[Path]) -> list[Sample]:
    """Return samples of image files, without annotations. Width and height are 0 until `look_at` sets them."""
    return [without_objects(image_id, path) for image_id, path in zip(image_ids(paths), paths, strict=True)]


def decode_each(
    paths: Mapping[str, Path], looks: list[Look], faults: list[str]
) -> Generator[tuple[str, np.ndarray], None, None]:
    """Decode image files, given by id. Yield the id and the upright pixels (H, W, 3) uint8 RGB of each valid file.

    Appends the path, properties and orientation of each valid file to `looks`, and an error message for each other file
    to `faults`. Threads decode the next files in advance.
    """

    def decode(path: Path) -> tuple[np.ndarray, Stored]:
        image, stored = decode_stored(read_bytes(path), path)
        return apply_orientation(image, stored.orientation), stored

    with closing(ahead(decode, paths.values(), max(1, threads() // 2))) as decoded:
        for (image_id, path), future in zip(paths.items(), decoded, strict=True):
            try:
                image, stored = future.result()
            except UserError as error:
                faults.append(str(error))
                continue
            looks.append((path, stored, stored.orientation))
            yield image_id, image
