"""Clip boxes to their image, and drop and count invalid boxes."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np


@dataclass(frozen=True)
class BoxCounts:
    """The numbers of boxes that `clean` kept and dropped.

    kept: all kept boxes. clipped: kept boxes that were clipped. far: kept boxes that were clipped by more than a pixel.
    not_finite, inverted, outside: dropped boxes by reason (see `clean`). Empty boxes count as inverted.
    """

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
    """Clip half-open boxes (P, 4) x1 y1 x2 y2 to an image of `height` x `width` pixels, and drop invalid boxes.

    A box is dropped if a coordinate is NaN or infinite, if x2 <= x1 or y2 <= y1, or if it is outside the image.
    Returns the remaining boxes (R, 4) float32 in input order, their indices (R,) int64 in the input, and the
    numbers of kept, clipped and dropped boxes.
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
