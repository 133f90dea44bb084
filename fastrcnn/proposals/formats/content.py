"""What a reader of one proposal format finds in a file, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.conventions import Convention

Reader = Callable[[int], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Content:
    """format, convention: see ProposalFile. ids: None where the file names no images, of which it has `count`.

    read: boxes (P, 4) float64 as they stand in the file, and scores (P,) float64 or None, of the image of an index.
    """

    format: str
    convention: Convention
    count: int
    ids: list[str] | None
    read: Reader


def as_boxes(value: object, where: str, columns: tuple[int, ...] = (4,)) -> np.ndarray:
    """Numbers (P, one of `columns`) float64 out of an array or a list of rows; (0, 4) for whatever is empty.

    Raises UserError, which begins with `where`, for anything else.
    """
    wanted = " or ".join(f"(P, {n})" for n in columns)
    if isinstance(value, (list, tuple)):
        # Rows are looked at one by one, since lists within lists may be far larger than the bytes that hold them.
        if not all(isinstance(row, (list, tuple)) and len(row) in columns and _plain(row) for row in value):
            raise UserError(f"{where}: should be numbers of shape {wanted}.")
        if len({len(row) for row in value}) > 1:
            raise UserError(f"{where}: rows of different lengths, where numbers of shape {wanted} should be.")
        return np.array(value, np.float64) if value else np.zeros((0, 4))
    if not isinstance(value, np.ndarray):
        raise UserError(f"{where}: {type(value).__name__} where numbers of shape {wanted} should be.")
    if value.size == 0:
        return np.zeros((0, 4))
    if value.dtype.kind not in "iuf" or value.ndim != 2 or value.shape[1] not in columns:
        raise UserError(f"{where}: {value.dtype} of shape {value.shape}; it must be numbers of shape {wanted}.")
    return value.astype(np.float64)


def as_scores(value: object, boxes: np.ndarray, where: str) -> np.ndarray:
    """Scores (P,) float64, one for each box (P, 4), out of an array or a list. Raises UserError for anything else."""
    if isinstance(value, (list, tuple)) and _plain(value):
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray) or (value.size and value.dtype.kind not in "iuf"):
        raise UserError(f"{where}: should be numbers, one for each box.")
    if value.size != len(boxes) or (value.size and max(value.shape, default=1) != value.size):
        raise UserError(
            f"{where}: {value.dtype} of shape {value.shape} for {len(boxes)} boxes; one for each is wanted."
        )
    return value.astype(np.float64).reshape(-1)


def _plain(row: list | tuple) -> bool:
    return all(type(n) is float or (type(n) is int and abs(n) < 1 << 63) for n in row)
