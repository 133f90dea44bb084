"""Explain RoI pooling of one RoI: compute the pooled values, and the cells that a variant pools, loses and gains.

The real RoI is the RoI on the feature map before its coordinates are quantised to integer cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastrcnn.data.images import read_image
from fastrcnn.errors import UserError
from fastrcnn.ops import roi_pool
from fastrcnn.ops.reference import Bins, extent, roi_bins

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """An RoI on a feature map, whose pooling is to be explained."""

    grid: np.ndarray  # (H, W) float32, one channel of a feature map
    roi: Box  # x1 y1 x2 y2 in pixels of the image
    stride: float  # pixels of the image per cell
    size: tuple[int, int]  # (PH, PW), number of rows and columns of bins

    @property
    def outline(self) -> Box:
        """Return the RoI on the feature map, x1 y1 x2 y2 in cells, without rounding."""
        x1, y1, x2, y2 = (v / self.stride for v in self.roi)
        return x1, y1, x2, y2

    def number(self) -> Callable[[float], str]:
        """Return a function that formats a value of the map, without decimals if all values are integers."""
        digits = 0 if (self.grid == self.grid.round()).all() else 2
        return lambda value: f"{value:.{digits}f}"


@dataclass(frozen=True)
class Answer:
    """The result of pooling the RoI with one variant of roi_pool. Cells are numbered from 0 at the top left."""

    variant: str
    x: int  # leftmost cell of the quantised RoI, before it is clipped to the map
    y: int  # topmost cell
    width: int  # cells
    height: int
    rows: Bins  # PH half-open ranges of cells
    columns: Bins  # PW half-open ranges of cells
    values: np.ndarray  # (PH, PW)
    uses: np.ndarray  # (H, W) int, number of bins that pool each cell
    lost: np.ndarray  # (H, W) bool, whether a cell of the real RoI is not pooled
    gained: np.ndarray  # (H, W) bool, whether a cell outside the real RoI is pooled
    quantised_share: float  # share of the real RoI's area that the quantised RoI covers
    pooled_share: float  # share of the real RoI's area that the bins cover


def explain(q: Question, variant: str) -> Answer:
    """Pool the RoI of `q` with a variant of roi_pool. Raises ValueError if the variant is unknown."""
    height, width = q.grid.shape
    roi = [0.0, *q.roi]
    x, wide = extent(q.roi[0], q.roi[2], 1 / q.stride, variant)
    y, high = extent(q.roi[1], q.roi[3], 1 / q.stride, variant)
    rows, columns = roi_bins(roi, 1 / q.stride, q.size, height, width, variant)
    values = roi_pool(torch.from_numpy(q.grid)[None, None], torch.tensor([roi]), q.size, 1 / q.stride, variant)
    uses = np.zeros(q.grid.shape, int)
    for y1, y2 in rows:
        for x1, x2 in columns:
            uses[y1:y2, x1:x2] += 1
    real = _covered(q.outline, height, width)
    total = max(real.sum(), 1e-12)
    quantised = real[max(y, 0) : max(y + high, 0), max(x, 0) : max(x + wide, 0)].sum()
    return Answer(
        variant, x, y, wide, high, rows, columns, values[0, 0].numpy(), uses,
        (real > 0) & (uses == 0), (real == 0) & (uses > 0), quantised / total, real[uses > 0].sum() / total,
    )  # fmt: skip


def _covered(box: Box, height: int, width: int) -> np.ndarray:
    """Return the area of each cell (H, W) that is inside `box`. box: x1 y1 x2 y2, in cells."""
    x1, y1, x2, y2 = box
    i, j = np.arange(height), np.arange(width)
    down = np.clip(np.minimum(y2, i + 1) - np.maximum(y1, i), 0, None)
    across = np.clip(np.minimum(x2, j + 1) - np.maximum(x1, j), 0, None)
    return down[:, None] * across[None, :]


def table(q: Question, answers: list[Answer]) -> str:
    """Format the results of all variants as text."""
    x1, y1, x2, y2 = q.outline
    number = q.number()
    lines = [
        f"map of {q.grid.shape[0]} x {q.grid.shape[1]} cells, {q.stride:g} pixels each; output"
        f" {q.size[0]} x {q.size[1]}",
        f"RoI in the image: x {q.roi[0]:g} to {q.roi[2]:g}, y {q.roi[1]:g} to {q.roi[3]:g}",
        f"RoI on the map:   x {x1:.4g} to {x2:.4g}, y {y1:.4g} to {y2:.4g}: {(x2 - x1) * (y2 - y1):.2f} cells",
    ]
    for a in answers:
        lines += [
            "",
            a.variant,
            f"  quantised: x {a.x}, y {a.y}, {a.width} wide, {a.height} high, {a.quantised_share:.1%} of the real RoI",
            f"  rows of the bins:    {_ranges(a.rows)}",
            f"  columns of the bins: {_ranges(a.columns)}",
            f"  cells: {(a.uses > 0).sum()} pooled ({(a.uses > 1).sum()} of them by several bins),"
            f" {a.lost.sum()} lost, {a.gained.sum()} gained; {a.pooled_share:.1%} of the real RoI is pooled",
            *("  " + "  ".join(number(v) for v in row) for row in a.values),
        ]
    return "\n".join(lines)


def _ranges(ranges: Bins) -> str:
    return "  ".join(f"{a}..{b - 1}" if b > a else "empty" for a, b in ranges)


# Feature maps for explanations.


def number_cells(height: int, width: int) -> np.ndarray:
    """Return a feature map (H, W) whose values number the cells row by row, from 0."""
    return np.arange(height * width, dtype=np.float32).reshape(height, width)


def read_grid(text: str) -> tuple[np.ndarray, str]:
    """Return a feature map and its name. text: HEIGHTxWIDTH for a map of numbered cells, or a text file with the map.

    Raises UserError if the file cannot be read or is not a table of numbers.
    """
    height, by, width = text.partition("x")
    if by and height.isdigit() and width.isdigit():
        return number_cells(int(height), int(width)), text
    try:
        return np.loadtxt(Path(text).expanduser(), dtype=np.float32, ndmin=2), Path(text).stem
    except OSError:
        raise UserError(f"grid={text}: the value must be HEIGHTxWIDTH or a readable text file.") from None
    except ValueError as error:
        raise UserError(f"grid={text}: the file must be a table of numbers separated by spaces ({error}).") from None


def grid_of_image(path: Path, stride: int) -> np.ndarray:
    """Return the mean brightness, from 0 to 1, of each block of stride x stride pixels, as (H, W) float32.

    Incomplete blocks at the right and bottom are dropped. Raises UserError if the image cannot be read.
    """
    pixels = np.asarray(Image.fromarray(read_image(path)).convert("L"), dtype=np.float32) / 255
    height, width = pixels.shape[0] // stride, pixels.shape[1] // stride
    blocks = pixels[: height * stride, : width * stride].reshape(height, stride, width, stride)
    return blocks.mean(axis=(1, 3))


MAP_8X8 = """
    0.88 0.44 0.14 0.16 0.37 0.77 0.96 0.27  0.19 0.45 0.57 0.16 0.63 0.29 0.71 0.70
    0.66 0.26 0.82 0.64 0.54 0.73 0.59 0.26  0.85 0.34 0.76 0.84 0.29 0.75 0.62 0.25
    0.32 0.74 0.21 0.39 0.34 0.03 0.33 0.48  0.20 0.14 0.16 0.13 0.73 0.65 0.96 0.32
    0.19 0.69 0.09 0.86 0.88 0.07 0.01 0.48  0.83 0.24 0.97 0.04 0.24 0.35 0.50 0.91
"""
EXAMPLES = {
    "8x8": Question(np.array(MAP_8X8.split(), np.float32).reshape(8, 8), (0, 3, 7, 8), 1, (2, 2)),
    "16x16": Question(number_cells(16, 16), (296, 192, 496, 337), 32, (3, 3)),
}
