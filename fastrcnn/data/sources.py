"""What `source=` may mean: a picture, a folder, a pattern, a list of pictures in a text file, or a video."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from fastrcnn.data.frames import Look, without_objects
from fastrcnn.data.images import IMAGE_SUFFIXES, Stored, apply_orientation, decode_stored, read_bytes
from fastrcnn.data.truth.text_files import read_lines
from fastrcnn.errors import UserError
from fastrcnn.parallel.ahead import ahead, threads
from fastrcnn.structures import Sample

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def is_video(source: str) -> bool:
    """Whether `source` names a file that a video would be in."""
    path = Path(source).expanduser()
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def pictures(source: str) -> list[Path]:
    """The pictures that `source` means: a file, a folder, a pattern, or a text file with a path a line.

    Raises UserError where there is none, and for lines of a list that name no file.
    """
    path, kinds = Path(source).expanduser(), ", ".join(IMAGE_SUFFIXES)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        fault = f"the folder has no picture ({kinds}); those in folders below: source='{path}/**'"
    elif path.is_file() and path.suffix.lower() == ".txt":
        found, fault = paths_in_list(path), "the list names no picture; it should have a path on each line"
    elif path.exists():
        return [path]
    else:
        matching = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        found = [p for p in matching if p.suffix.lower() in IMAGE_SUFFIXES] or matching  # '*.tif' was meant so
        fault = f"there is no such file, folder or pattern ({kinds})"
    if not found:
        raise UserError(f"source={source}: {fault}.")
    return found


def paths_in_list(path: Path) -> list[Path]:
    """The files that a list names, a path on each line, as it is or from the list's folder; empty lines do not count.

    Raises UserError with the numbers of all lines that name no file.
    """
    names = {number: name for number, line in enumerate(read_lines(path), 1) if (name := line.strip())}
    files = {number: path.parent / Path(name).expanduser() for number, name in names.items()}
    missing = [f"{path}, line {n}: there is no file {file}." for n, file in files.items() if not file.is_file()]
    if missing:
        more = [f"... and {len(missing) - 10} more"] if len(missing) > 10 else []
        advice = "Paths begin at the folder of the list, unless they are whole."
        raise UserError("\n".join([*missing[:10], *more, advice]))
    return list(files.values())


def image_ids(paths: Sequence[Path]) -> list[str]:
    """An id for each picture, no two the same: the file's name, with its folder where two agree."""
    stems = Counter(path.stem for path in paths)
    taken: set[str] = set()
    found = []
    for path in paths:
        image_id = name = path.stem if stems[path.stem] == 1 else f"{path.parent.name}_{path.name}"
        number = 1
        while image_id in taken:  # folders of one name in different places
            number += 1
            image_id = f"{name}_{number}"
        taken.add(image_id)
        found.append(image_id)
    return found


def samples_of(paths: Sequence[Path]) -> list[Sample]:
    """Samples of images that nothing is known about, which `look_at` completes."""
    return [without_objects(image_id, path) for image_id, path in zip(image_ids(paths), paths, strict=True)]


def decode_each(
    paths: Mapping[str, Path], looks: list[Look], faults: list[str]
) -> Generator[tuple[str, np.ndarray], None, None]:
    """Ids and pixels (H, W, 3) uint8 RGB, upright, of the files (by id) that can be decoded. Adds to `looks` what they
    say, and to `faults` what is wrong with the others. Threads decode the next files ahead."""

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
