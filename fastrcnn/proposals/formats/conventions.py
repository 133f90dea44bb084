"""Box conventions of proposal files, and conversion to and from half-open x1 y1 x2 y2."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from fastrcnn.errors import UserError, nearest

# Positions of x1 y1 x2 y2, or of x y width height, among the four numbers. Each permutation is its own inverse.
ORDERS = {"xyxy": (0, 1, 2, 3), "yxyx": (1, 0, 3, 2), "xxyy": (0, 2, 1, 3), "xywh": (0, 1, 2, 3), "yxhw": (1, 0, 3, 2)}


@dataclass(frozen=True)
class Convention:
    """The meaning of the four numbers of a box.

    order: xyxy, yxyx or xxyy for two corners; xywh or yxhw for a corner and a size.
    base: the coordinate of the first pixel, 0 or 1.
    inclusive: whether x2, y2 are the last pixel in the box (inclusive) or the pixel after it (half-open). A width or
        height is always the number of pixels, so this field is unused for xywh and yxhw.
    """

    order: str
    base: int
    inclusive: bool

    def __str__(self) -> str:
        return f"{self.order}-{self.base}" + ("" if self.sized else "-inclusive" if self.inclusive else "-halfopen")

    @property
    def sized(self) -> bool:
        """Whether two of the numbers are a width and a height."""
        return self.order in ("xywh", "yxhw")

    def read(self, boxes: np.ndarray) -> np.ndarray:
        """Convert boxes (P, 4) in this convention to zero-based half-open x1 y1 x2 y2 in float64, without clipping."""
        numbers = np.array(boxes, dtype=np.float64).reshape(-1, 4)[:, ORDERS[self.order]]
        if self.sized:
            numbers[:, 2:] += numbers[:, :2]
        elif self.inclusive:
            numbers[:, 2:] += 1
        return numbers - self.base

    def write(self, boxes: np.ndarray) -> np.ndarray:
        """Convert zero-based half-open boxes x1 y1 x2 y2 (P, 4) to this convention, as (P, 4) float64."""
        numbers = np.array(boxes, dtype=np.float64).reshape(-1, 4) + self.base
        if self.sized:
            numbers[:, 2:] -= numbers[:, :2]
        elif self.inclusive:
            numbers[:, 2:] -= 1
        return numbers[:, ORDERS[self.order]]


_ALL = [Convention(*each) for each in product(ORDERS, (0, 1), (False, True))]
CONVENTIONS = {str(c): c for c in _ALL if not (c.sized and c.inclusive)}
HALF_OPEN = CONVENTIONS["xyxy-0-halfopen"]  # the convention of fastrcnn


def convention(text: str) -> Convention:
    """Return the convention with the name `text`, such as yxyx-1-inclusive. Raises UserError for an unknown name."""
    if text not in CONVENTIONS:
        raise UserError(
            f"convention={text}: unknown convention.{nearest(text, CONVENTIONS)} Use one of: {', '.join(CONVENTIONS)}."
        )
    return CONVENTIONS[text]
