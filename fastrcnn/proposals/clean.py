"""Boxes are clipped to their image; what is no box in it is dropped and counted."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np


@dataclass(frozen=True)
class BoxCounts:
    """How many boxes were kept, how many of those had to be clipped (`far`: by more than a pixel), and how many were
    dropped and why."""

    kept: int = 0
    clipped: int = 0
    not_finite: int = 0
    inverted: int = 0
    outside: int = 0
    far: int = 0

    def __add__(self, other: BoxCounts) -> BoxCounts:
        return BoxCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        far = f" ({self.far:,} by more than a pixel)" if self.far else ""
        why = {"not finite": self.not_finite, "inverted or empty": self.inverted, "outside": self.outside}
        reasons = f" ({', '.join(f'{n} {what}' for what, n in why.items() if n)})" if self.dropped else ""
        return f"{self.kept:,} boxes kept, {self.clipped:,} of them clipped{far}; {self.dropped:,} dropped{reasons}"

    @property
    def dropped(self) -> int:
        return self.not_finite + self.inverted + self.outside


def clean(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, BoxCounts]:
    """Clips boxes (P, 4) to an image of `height` x `width` pixels and drops those that are none.

    Dropped are boxes with a NaN or infinite number, inverted or empty ones, and ones outside the image.
    Returns the boxes left (R, 4) float32 in their order, their rows in the input (R,) int64, and the counts.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    finite = np.isfinite(boxes).all(axis=1)
    upright = finite & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    limit = np.array([width, height, width, height], dtype=np.float32)
    with np.errstate(invalid="ignore"):
        clipped = np.clip(boxes, np.float32(0), limit)
        inside = upright & (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    rows = np.flatnonzero(inside)
    kept = clipped[rows]
    counts = BoxCounts(
        kept=len(rows),
        clipped=int((kept != boxes[rows]).any(axis=1).sum()),
        not_finite=int((~finite).sum()),
        inverted=int((finite & ~upright).sum()),
        outside=int((upright & ~inside).sum()),
        far=int((np.abs(kept - boxes[rows]) > 1.001).any(axis=1).sum()),
    )
    return kept, rows, counts
