"""Where a data set keeps its COCO files, and which of its JSON files these are."""

from __future__ import annotations

import functools
from pathlib import Path

from fastrcnn.data.annotations.coco_file import OtherJsonError, parse, read_coco_file, version
from fastrcnn.errors import UserError


def json_files(folder: Path) -> list[Path]:
    """JSON files in a folder and in folders right below it."""
    return sorted(path for path in [*folder.glob("*.json"), *folder.glob("*/*.json")] if path.is_file())


def find_coco_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The COCO files among the JSON files of a folder and the folders right below it, and what is wrong with those that
    cannot be read, which may be COCO's too. JSON of something else is neither."""
    faults = {path: _fault(path, *version(path)) for path in json_files(folder)}
    return [p for p, fault in faults.items() if fault is None], {p: fault for p, fault in faults.items() if fault}


@functools.lru_cache(maxsize=256)
def _fault(path: Path, changed: int, size: int) -> str | None:
    """Why a file cannot be read, nothing for JSON of something else, and None for a COCO file."""
    try:
        read_coco_file(path)
    except OtherJsonError:
        return ""
    except UserError as error:
        return str(error)
    return None


def coco_images(path: Path) -> frozenset[Path] | str:
    """The images of a COCO file that may not be used otherwise, of which nothing else is kept; none for other JSON.

    For a file that cannot be read, the reason.
    """
    return _coco_images(path, *version(path))


@functools.lru_cache(maxsize=256)
def _coco_images(path: Path, changed: int, size: int) -> frozenset[Path] | str:
    try:
        return frozenset(parse(path).paths)
    except OtherJsonError:
        return frozenset()
    except UserError as error:
        return str(error)
