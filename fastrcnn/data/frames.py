"""Which way round an image of a data set is used, and what is said where its file is not taken as it is stored.

The boxes of an annotation are in pixels of the image that its author saw, which may be the stored one or the upright
one that EXIF data ask for. The size in the annotation tells which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from fastrcnn.data.images import Stored, apply_orientation, decode_stored, inspect, read_bytes
from fastrcnn.data.truth.problems import Problem
from fastrcnn.errors import UserError
from fastrcnn.progress import progress
from fastrcnn.structures import Sample

DONE = {
    "turned": "are rotated upright, as their EXIF data ask",
    "either_way": "have EXIF data that ask for a rotation or a mirror image, but their annotation fits both "
    "ways; they are used as stored",
    "as_stored": "have EXIF data that ask for a rotation, but their annotation has the stored size; they are used so",
}
Look = tuple[Path, Stored, int]  # an image's file, what it says, and the orientation that is applied
Size = tuple[int, int]  # width and height


def turn_for(stored: Stored, size: Size | None) -> int | None:
    """The EXIF orientation to apply to an image whose annotation says the width and height `size`.

    1, the image as stored, where it has that size, also where it has it either way; the file's own where the upright
    image has it; None where neither does. Without an annotation (None) the file's own: such images are used upright.
    """
    if size == stored.size:
        return 1
    return stored.orientation if size in (None, stored.upright) else None


def disagreement(stored: Stored, size: Size) -> str:
    """What to say where `turn_for` gives None."""
    upright = f", or {_pixels(stored.upright)} upright," if stored.upright != stored.size else ""
    swapped = " Width and height are swapped, and no EXIF data ask for that." if stored.size == size[::-1] else ""
    return f"the image has {_pixels(stored.size)}{upright} pixels, but its annotation says {_pixels(size)}.{swapped}"


def _pixels(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _size_fault(path: Path, stored: Stored, size: Size) -> str:
    return f"{path}: {disagreement(stored, size)} Fix the size and the boxes in the annotation."


def without_objects(image_id: str, path: Path, size: Size | None = None, number: int | str | None = None) -> Sample:
    """A sample without objects. size: what an annotation says, if any. number: the image's id in a COCO file."""
    width, height = size or (0, 0)
    return Sample(
        image_id, path, width, height, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), number=number
    )


def look_at(samples: Sequence[Sample], rotated_only: bool = False) -> tuple[list[Sample], list[Look], list[str]]:
    """The samples whose image is whole and has the sample's size, with the rotation that it needs; what each file says;
    and what is wrong with the others. A width of 0 means that any size is right, and the image is used upright.

    rotated_only: the size matters only where EXIF data ask for a rotation.
    """

    def look(sample: Sample) -> Look | str:
        size = (sample.width, sample.height) if sample.width else None
        try:
            stored = inspect(sample.path)
        except UserError as error:
            return str(error)
        if size is None or (rotated_only and stored.orientation == 1):
            return sample.path, stored, stored.orientation
        turn = turn_for(stored, size)
        return _size_fault(sample.path, stored, size) if turn is None else (sample.path, stored, turn)

    with ThreadPool(8) as pool:  # the time goes into reading files
        seen = list(progress(pool.imap(look, samples, chunksize=16), len(samples), "looking at images"))
    found, looks = [], []
    for sample, result in zip(samples, seen, strict=True):
        if not isinstance(result, str):
            _, stored, turn = result
            width, height = stored.rotated(turn)
            found.append(replace(sample, width=width, height=height, turn=turn))
            looks.append(result)
    return found, looks, [result for result in seen if isinstance(result, str)]


def read_sample(sample: Sample) -> np.ndarray:
    """The pixels (H, W, 3) uint8 RGB that a sample's boxes are about.

    Raises UserError for an image that cannot be read, or has not the sample's size either way.
    """
    image, stored = decode_stored(read_bytes(sample.path), sample.path)
    size = (sample.width, sample.height)
    turn = turn_for(stored, size) if sample.turn == 1 else sample.turn
    pixels = None if turn is None else apply_orientation(image, turn)
    if pixels is None or pixels.shape[1::-1] != size:
        raise UserError(_size_fault(sample.path, stored, size))
    return pixels


def image_notes(looks: Sequence[Look]) -> list[Problem]:
    """One note for each thing that is done to images beyond reading what is stored, with their number and the first."""
    groups: dict[str, list[Look]] = {kind: [] for kind in DONE}
    for look in looks:
        _, stored, turn = look
        if turn != 1:
            groups["turned"].append(look)
        elif stored.orientation != 1:
            groups["either_way" if stored.upright == stored.size else "as_stored"].append(look)
    notes = []
    for kind, some in groups.items():
        if some:
            path, stored, _ = some[0]
            first = f"{path.name}, stored as {_pixels(stored.size)} with orientation {stored.orientation}"
            notes.append(Problem(kind, str(path), f"{len(some)} image(s) {DONE[kind]}; the first is {first}."))
    few = [(stored.bits, path) for path, stored, _ in looks if stored.bits is not None and stored.bits < 16]
    for bits, number in sorted(Counter(bits for bits, _ in few).items()):
        path = next(path for own, path in few if own == bits)
        what = f"{number} image(s) with 16 bits a channel use {bits} of them, values up to {(1 << bits) - 1}, and are "
        notes.append(Problem("bits", str(path), f"{what}scaled by that; the first is {path.name}."))
    return notes
