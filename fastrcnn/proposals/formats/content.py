"""What a reader of one proposal format finds in a file, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.conventions import Convention

Pair = tuple[np.ndarray, np.ndarray | None]  # boxes (P, 4) float64, and scores (P,) float64 or None


@dataclass(frozen=True)
class Content:
    """The proposals of a file, or of several; each image's are read when they are asked for.

    paths: the files, of which the first one names them all in messages.
    format: the format, in words for messages.
    convention: what the numbers of a box mean.
    ids: image ids in the file's order; "" for images that neither the file nor its name tells.
    boxes: numbers (P, 4) as they stand in the file, and scores, of the image ids[index]. Raises UserError, naming file
        and image, where there are no such numbers.
    named: whether the ids stand in the file, so that no others may be given for them.
    """

    paths: tuple[Path, ...]
    format: str
    convention: Convention
    ids: list[str]
    boxes: Callable[[int], Pair] = field(repr=False, compare=False)
    named: bool = True

    @property
    def path(self) -> Path:
        """The file that messages name."""
        return self.paths[0]

    def half_open(self, index: int) -> Pair:
        """The boxes (P, 4) of an image as half-open x1 y1 x2 y2, and their scores."""
        numbers, scores = self.boxes(index)
        return self.convention.read(numbers), scores


def as_boxes(value: object, where: str, columns: tuple[int, ...] = (4,)) -> Pair:
    """Boxes out of an array (P, one of `columns`) or a list of rows, and the scores of a fifth column if there is one.

    Raises UserError, which begins with `where`, for anything else. Whatever is empty has no boxes.
    """
    wanted = f"where numbers of shape {' or '.join(f'(P, {n})' for n in columns)} should be"
    if isinstance(value, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in value):
        # Rows are looked at one by one, since lists within lists may be far larger than the bytes that hold them.
        if not all(len(row) in columns and len(row) == len(value[0]) and _are_numbers(row) for row in value):
            raise UserError(f"{where}: rows of another length, or of no numbers, {wanted}.")
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray):
        raise UserError(f"{where}: {type(value).__name__} {wanted}.")
    if value.size == 0:
        scored = columns == (5,) or value.shape[1:] == (5,)
        return np.zeros((0, 4)), np.zeros(0) if scored else None
    if value.dtype.kind not in "iuf" or value.ndim != 2 or value.shape[1] not in columns:
        raise UserError(f"{where}: {value.dtype} of shape {value.shape} {wanted}.")
    numbers = value.astype(np.float64)
    return numbers[:, :4], numbers[:, 4] if numbers.shape[1] == 5 else None


def as_scores(value: object, boxes: np.ndarray, where: str) -> np.ndarray:
    """Scores (P,) float64, one for each box (P, 4), out of an array or a list. Raises UserError for anything else."""
    if isinstance(value, (list, tuple)) and _are_numbers(value):
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray):
        raise UserError(f"{where}: {type(value).__name__} where numbers should be, one for each of {len(boxes)} boxes.")
    is_row = value.size == len(boxes) and max(value.shape, default=1) == value.size
    if value.size != len(boxes) or (value.size and (value.dtype.kind not in "iuf" or not is_row)):
        raise UserError(
            f"{where}: {value.dtype} of shape {value.shape} for {len(boxes)} boxes; it must be a number for each."
        )
    return value.astype(np.float64).reshape(-1)


def _are_numbers(row: list | tuple) -> bool:
    return all(type(n) is float or (type(n) is int and abs(n) < 1 << 63) for n in row)
