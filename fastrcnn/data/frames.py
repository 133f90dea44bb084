"""Choose the orientation of the images of a data set, and report images that are rotated or converted.

The boxes of an annotation refer either to the image as stored, or to the upright image after its EXIF orientation is
applied. The image size in the annotation determines which of the two is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from fastrcnn.data.images import Stored, apply_orientation, decode_stored, inspect, pixels_key, read_bytes
from fastrcnn.data.mosaics import draw
from fastrcnn.data.truth.problems import Problem
from fastrcnn.errors import UserError
from fastrcnn.progress import progress
from fastrcnn.structures import Sample

DONE = {
    "turned": "are rotated upright according to their EXIF orientation",
    "either_way": "have an EXIF orientation but are used as stored, because the size in their annotation fits both the "
    "stored and the upright image",
    "as_stored": "have an EXIF orientation but are used as stored, because the size in their annotation fits the "
    "stored image",
}
Look = tuple[Path, Stored, int]  # an image's file, its properties, and the orientation to apply
Size = tuple[int, int]  # width and height


def turn_for(stored: Stored, size: Size | None) -> int | None:
    """Return the EXIF orientation to apply to an image whose annotation contains the width and height `size`.

    Returns 1 (the image as stored) if the stored image has this size, even if the upright image has it too. Returns
    the file's orientation if only the upright image has this size, or if `size` is None (no annotation). Returns None
    if neither image has this size.
    """
    if size == stored.size:
        return 1
    return stored.orientation if size in (None, stored.upright) else None


def disagreement(stored: Stored, size: Size) -> str:
    """Return the message for an image if neither its stored nor its upright size equals `size` in its annotation."""
    upright = f" (upright: {_pixels(stored.upright)})" if stored.upright != stored.size else ""
    swapped = " Width and height are swapped, but the image has no EXIF orientation that swaps them."
    end = swapped if stored.size == size[::-1] else ""
    return f"the image has {_pixels(stored.size)} pixels{upright}, but its annotation has size {_pixels(size)}.{end}"


def _pixels(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _size_fault(path: Path, stored: Stored, size: Size) -> str:
    return f"{path}: {disagreement(stored, size)} Fix the size and the boxes in the annotation."


def without_objects(image_id: str, path: Path, size: Size | None = None, number: int | str | None = None) -> Sample:
    """Return a sample without objects. size: width and height, or None for 0 x 0. number: id in a COCO file, if any."""
    width, height = size or (0, 0)
    return Sample(
        image_id, path, width, height, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), number=number
    )


def look_at(samples: Sequence[Sample], rotated_only: bool = False) -> tuple[list[Sample], list[Look], list[str]]:
    """Check that the image of each sample is complete and has the sample's size, as stored or upright.

    Returns three lists: the valid samples, with size and orientation of their image; the path, file properties and
    orientation to apply of each valid sample; and an error message for each other sample. If the width of a sample is
    0, its image can have any size and is used upright.

    rotated_only: do not check the size of images without an EXIF orientation.
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

    with ThreadPool(8) as pool:  # most of the time is spent reading files
        seen = list(progress(pool.imap(look, samples, chunksize=16), len(samples), "checking images"))
    found, looks = [], []
    for sample, result in zip(samples, seen, strict=True):
        if not isinstance(result, str):
            _, stored, turn = result
            width, height = stored.rotated(turn)
            found.append(replace(sample, width=width, height=height, turn=turn))
            looks.append(result)
    return found, looks, [result for result in seen if isinstance(result, str)]


def read_sample(sample: Sample) -> np.ndarray:
    """Read the image (H, W, 3) uint8 RGB of a sample, in the orientation that its boxes refer to.

    A mosaic is drawn from the images of its tiles. Raises UserError if an image cannot be read, or if it does not have
    its sample's size, as stored or upright.
    """
    if sample.tiles:
        return draw(sample, (read_sample(tile.sample) for tile in sample.tiles))
    image, stored = decode_stored(read_bytes(sample.path), sample.path)
    size = (sample.width, sample.height)
    turn = turn_for(stored, size) if sample.turn == 1 else sample.turn
    pixels = None if turn is None else apply_orientation(image, turn)
    if pixels is None or pixels.shape[1::-1] != size:
        raise UserError(_size_fault(sample.path, stored, size))
    return pixels


def content_key(sample: Sample) -> bytes:
    """Return a key for values that are computed from the pixels of a sample.

    Raises UserError if a file cannot be read.
    """
    if sample.tiles:
        places = repr((sample.width, sample.height, [tile.box for tile in sample.tiles]))
        return b"".join([places.encode(), *(content_key(tile.sample) for tile in sample.tiles)])
    return pixels_key(read_bytes(sample.path), sample.turn)


def image_notes(looks: Sequence[Look]) -> list[Problem]:
    """Return notes that count the images with an EXIF orientation, and the 16-bit images that use fewer bits."""
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
            first = f"{path.name}, stored as {_pixels(stored.size)} with EXIF orientation {stored.orientation}"
            notes.append(Problem(kind, str(path), f"{len(some)} image(s) {DONE[kind]}. The first is {first}."))
    few = [(stored.bits, path) for path, stored, _ in looks if stored.bits is not None and stored.bits < 16]
    for bits, number in sorted(Counter(bits for bits, _ in few).items()):
        path = next(path for own, path in few if own == bits)
        what = f"{number} image(s) with 16 bits per channel use only {bits} of them (values up to {(1 << bits) - 1})"
        notes.append(Problem("bits", str(path), f"{what} and are scaled accordingly. The first is {path.name}."))
    return notes
