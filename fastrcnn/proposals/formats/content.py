"""The content of a proposal file, which every reader returns, and checks that the readers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.conventions import Convention

Pair = tuple[np.ndarray, np.ndarray | None]  # boxes (P, 4) float64, and their scores (P,) float64 or None


@dataclass(frozen=True)
class Content:
    """The proposals of one or more files. The proposals of an image are read on demand.

    paths: the files or folders. Messages name the first one.
    format: description of the format, for messages.
    convention: the meaning of the four numbers of a box.
    ids: image ids in the order of the proposals; "" if neither the file nor its name contains the id.
    boxes: a function that reads the image ids[index]. It returns the boxes (P, 4) with their numbers unchanged, and the
        scores (P,) or None. It raises UserError with the file and image if the boxes or scores are invalid.
    named: whether the ids are in the file, or are the file names of a folder. If so, the user cannot give other ids.
    """

    paths: tuple[Path, ...]
    format: str
    convention: Convention
    ids: list[str]
    boxes: Callable[[int], Pair] = field(repr=False, compare=False)
    named: bool = True

    @property
    def path(self) -> Path:
        """The first path, which represents all of them in messages."""
        return self.paths[0]

    def half_open(self, index: int) -> Pair:
        """Read the image ids[index]. Return its boxes (P, 4), half-open x1 y1 x2 y2, and their scores (P,) or None."""
        numbers, scores = self.boxes(index)
        return self.convention.read(numbers), scores


def as_boxes(value: object, where: str, columns: tuple[int, ...] = (4,)) -> Pair:
    """Convert an array or a list of rows to boxes (P, 4), and to scores (P,) if there is a fifth column, else None.

    where: the file and image, for messages. columns: the allowed numbers of columns. An empty value gives no boxes.
    Raises UserError if the value is not numeric, or has a different shape.
    """
    wanted = f"expected rows of {' or '.join(map(str, columns))} numbers"
    if isinstance(value, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in value):
        # Check each row before np.array, because nested lists can be far larger than the bytes of the file.
        if not all(len(row) in columns and len(row) == len(value[0]) and _are_numbers(row) for row in value):
            raise UserError(
                f"{where}: {wanted}, but found rows with a different length or with values that are not numbers."
            )
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray):
        raise UserError(f"{where}: {wanted}, but found a value of type {type(value).__name__}.")
    if value.size == 0:
        scored = columns == (5,) or value.shape[1:] == (5,)
        return np.zeros((0, 4)), np.zeros(0) if scored else None
    if value.dtype.kind not in "iuf" or value.ndim != 2 or value.shape[1] not in columns:
        raise UserError(f"{where}: {wanted}, but found a {value.dtype} array with shape {value.shape}.")
    numbers = value.astype(np.float64)
    return numbers[:, :4], numbers[:, 4] if numbers.shape[1] == 5 else None


def as_scores(value: object, boxes: np.ndarray, where: str) -> np.ndarray:
    """Convert an array or a list of one number per box to scores (P,) float64. where: the file and image, for messages.

    Raises UserError for any other value.
    """
    wanted = f"expected one number per box ({len(boxes)} in total)"
    if isinstance(value, (list, tuple)) and _are_numbers(value):
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray):
        raise UserError(f"{where}: {wanted}, but found a value of type {type(value).__name__}.")
    is_row = value.size == len(boxes) and max(value.shape, default=1) == value.size
    if value.size != len(boxes) or (value.size and (value.dtype.kind not in "iuf" or not is_row)):
        raise UserError(f"{where}: {wanted}, but found a {value.dtype} array with shape {value.shape}.")
    return value.astype(np.float64).reshape(-1)


def _are_numbers(row: list | tuple) -> bool:
    return all(type(n) is float or (type(n) is int and abs(n) < 1 << 63) for n in row)
