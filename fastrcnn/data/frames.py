"""Which way round an image of a data set is used, and what is said where its file is not taken as it is stored.

The boxes of an annotation are in pixels of the image that its author saw, which may be the stored one or the upright
one that EXIF data ask for. The size in the annotation tells which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastrcnn.data.annotations.truth import Problem
from fastrcnn.data.images import Stored, decode_stored, read_bytes, turned
from fastrcnn.errors import UserError
from fastrcnn.structures import Sample

DONE = {
    "turned": "are rotated upright, as their EXIF data ask",
    "either_way": "have EXIF data that ask for a rotation or a mirror image, but their annotation fits both "
    "ways; they are used as stored",
    "as_stored": "have EXIF data that ask for a rotation, but their annotation has the stored size; they are used so",
}
Look = tuple[Path, Stored, int]  # an image's file, what it says, and the orientation that is applied


def turn_for(stored: Stored, size: tuple[int, int] | None) -> int | None:
    """The EXIF orientation to apply to an image whose annotation says the width and height `size`.

    1, the image as stored, where it has that size, also where it has it either way; the file's own where the upright
    image has it; None where neither does. Without an annotation (None) the file's own: such images are used upright.
    """
    if size == stored.size:
        return 1
    return stored.orientation if size in (None, stored.upright) else None


def disagreement(stored: Stored, size: tuple[int, int]) -> str:
    """What to say where `turn_for` gives None."""
    upright = f", or {_pixels(stored.upright)} upright," if stored.upright != stored.size else ""
    swapped = " Width and height are swapped, and no EXIF data ask for that." if stored.size == size[::-1] else ""
    return f"the image has {_pixels(stored.size)}{upright} pixels, but its annotation says {_pixels(size)}.{swapped}"


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def size_fault(path: Path, stored: Stored, size: tuple[int, int]) -> str:
    """A message about an image that has not the size of its annotation."""
    return f"{path}: {disagreement(stored, size)} Fix the size and the boxes in the annotation."


def read_sample(sample: Sample) -> np.ndarray:
    """The pixels (H, W, 3) uint8 RGB that a sample's boxes are about.

    Raises UserError for an image that cannot be read, or has not the sample's size either way.
    """
    image, stored = decode_stored(read_bytes(sample.path), sample.path)
    size = (sample.width, sample.height)
    turn = turn_for(stored, size) if sample.turn == 1 else sample.turn
    pixels = None if turn is None else turned(image, turn)
    if pixels is None or pixels.shape[1::-1] != size:
        raise UserError(size_fault(sample.path, stored, size))
    return pixels


def image_notes(looks: Sequence[Look]) -> list[Problem]:
    """One note for each thing that is done to images beyond reading what is stored, with their number and the first."""
    rotated = [look for look in looks if look[2] != 1]
    left = [look for look in looks if look[2] == 1 and look[1].orientation != 1]
    groups = {
        "turned": rotated,
        "either_way": [look for look in left if look[1].upright == look[1].size],
        "as_stored": [look for look in left if look[1].upright != look[1].size],
    }
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
