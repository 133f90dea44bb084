"""What the four numbers of a box may mean in a file, and the way from there to half-open x1 y1 x2 y2 and back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from fastrcnn.errors import UserError, nearest

# Where x y x y, or x y width height, stand among the four numbers; each is its own inverse.
ORDERS = {"xyxy": (0, 1, 2, 3), "yxyx": (1, 0, 3, 2), "xxyy": (0, 2, 1, 3), "xywh": (0, 1, 2, 3), "yxhw": (1, 0, 3, 2)}


@dataclass(frozen=True)
class Convention:
    """How a box is written.

    order: xyxy, yxyx or xxyy for two corners, xywh or yxhw for a corner and a size.
    base: coordinate of the first pixel, 0 or 1.
    inclusive: whether x2, y2 are those of the last pixel in the box, or of the one after it. A size is always
        the number of pixels, and says nothing of either.
    """

    order: str
    base: int
    inclusive: bool

    def __str__(self) -> str:
        return f"{self.order}-{self.base}" + ("" if self.sized else "-inclusive" if self.inclusive else "-halfopen")

    @property
    def sized(self) -> bool:
        """Whether the last two numbers are a width and a height."""
        return self.order in ("xywh", "yxhw")

    def read(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (P, 4) of a file as half-open x1 y1 x2 y2 (P, 4) float64; nothing is clipped and nothing wraps."""
        numbers = np.array(boxes, dtype=np.float64).reshape(-1, 4)[:, ORDERS[self.order]]
        if self.sized:
            numbers[:, 2:] += numbers[:, :2]
        elif self.inclusive:
            numbers[:, 2:] += 1
        return numbers - self.base

    def write(self, boxes: np.ndarray) -> np.ndarray:
        """Half-open boxes x1 y1 x2 y2 (P, 4) as a file of this convention has them, (P, 4) float64."""
        numbers = np.array(boxes, dtype=np.float64).reshape(-1, 4) + self.base
        if self.sized:
            numbers[:, 2:] -= numbers[:, :2]
        elif self.inclusive:
            numbers[:, 2:] -= 1
        return numbers[:, ORDERS[self.order]]


_ALL = [Convention(*each) for each in product(ORDERS, (0, 1), (False, True))]
CONVENTIONS = {str(c): c for c in _ALL if not (c.sized and c.inclusive)}
HALF_OPEN = CONVENTIONS["xyxy-0-halfopen"]  # that of this program


def convention(text: str) -> Convention:
    """The convention that `text` names, such as yxyx-1-inclusive. Raises UserError with those there are."""
    if text not in CONVENTIONS:
        raise UserError(f"convention={text}: unknown.{nearest(text, CONVENTIONS)} There are: {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[text]
