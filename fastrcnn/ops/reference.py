"""The specification of RoI pooling in plain loops. All other backends must return exactly the same bits.

The sign of zero and gradients on CUDA are exceptions. By default, CUDA sums gradients in an arbitrary order.
Coordinates are float32, as in Caffe and torchvision. With 7 bins, the last bin of an RoI of 57 cells extends one cell
beyond the RoI; exact arithmetic would not reproduce this.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

VARIANTS = ("fast_rcnn", "partition", "truncate")
FAR = float(2**28)  # cell coordinates are clamped to -FAR .. FAR, to avoid int overflow; no map is this large

Bins = list[tuple[int, int]]


def round_half_away(x: float) -> int:
    """Round half away from zero, like round() in C. Python and torch round half to even."""
    whole = math.trunc(x)
    return whole + int(math.copysign(1, x)) if abs(x - whole) >= 0.5 else whole


def extent(start: float, end: float, scale: float, variant: str) -> tuple[int, int]:
    """Return the first cell and the number of cells of an RoI along one axis, before clipping to the map.

    start, end: the coordinates of the RoI. scale: cells per pixel. Raises ValueError if the variant is unknown.
    """
    a, b, s = np.float32(start), np.float32(end), np.float32(scale)
    with np.errstate(over="ignore"):  # overflow gives infinity, which `far` clamps
        if variant == "fast_rcnn":  # the end is inclusive
            first = round_half_away(far(a * s))
            return first, max(round_half_away(far(b * s)) - first + 1, 1)
        if variant == "partition":  # the end is exclusive
            first = math.floor(far(a * s))
            return first, max(math.floor(far(b * s)) - first, 1)
        if variant == "truncate":  # the length is scaled and rounded separately
            return math.floor(far(a * s)), max(math.floor(far((b - a) * s)), 1)
    raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")


def far(x: np.float32) -> float:
    """Clamp `x` to -FAR .. FAR. The conversion from float32 to float is exact."""
    return min(max(float(x), -FAR), FAR)


def bins(first: int, length: int, parts: int, cells: int, variant: str) -> Bins:
    """Return the half-open cell ranges of `parts` bins along one axis, clipped to a map of `cells` cells.

    first, length: the first cell and the number of cells of the RoI, from `extent`. A range can be empty.
    """
    ranges = []
    for i in range(parts):
        if variant == "fast_rcnn":
            step = np.float32(length) / np.float32(parts)
            start = math.floor(float(np.float32(i) * step))
            stop = math.ceil(float(np.float32(i + 1) * step))
        elif variant == "partition":
            start = i * length // parts
            stop = max((i + 1) * length // parts, start + 1)
        else:
            whole = max(length // parts, 1)
            start = min(i * whole, length - 1)
            stop = min(start + whole, length)
        ranges.append((min(max(first + start, 0), cells), min(max(first + stop, 0), cells)))
    return ranges


def roi_bins(
    roi: list[float], scale: float, size: tuple[int, int], height: int, width: int, variant: str
) -> tuple[Bins, Bins]:
    """Return the row and column ranges of the bins of one RoI [batch index, x1, y1, x2, y2] on a map of this size."""
    _, x1, y1, x2, y2 = roi
    rows = bins(*extent(y1, y2, scale, variant), size[0], height, variant)
    return rows, bins(*extent(x1, x2, scale, variant), size[1], width, variant)


def forward(features: Tensor, rois: Tensor, scale: float, variant: str, out: Tensor, argmax: Tensor | None) -> None:
    """Pool `features` (N, C, H, W). Writes `out` (K, C, PH, PW) and, if given, `argmax` (K, PH, PW, C) int32.

    rois: (K, 5) float32 [batch index, x1, y1, x2, y2]. scale: cells per pixel. The argmax is row * W + column of the
    cell with the maximum, or -1 for an empty bin. If several cells are equal, the first one in row-major order is used.
    NaN is greater than every number, and the first NaN is used.
    """
    height, width = features.shape[2:]
    size = (out.shape[2], out.shape[3])
    exact = torch.float64 if features.dtype == torch.float64 else torch.float32  # numpy has no bfloat16
    maps = features.detach().to("cpu", exact).numpy()
    values = np.zeros(tuple(out.shape), maps.dtype)
    where = np.full((len(rois), *size, features.shape[1]), -1, np.int32)
    for k, roi in enumerate(rois.tolist()):
        rows, columns = roi_bins(roi, scale, size, height, width, variant)
        for i, (y1, y2) in enumerate(rows):
            for j, (x1, x2) in enumerate(columns):
                if y1 >= y2 or x1 >= x2:
                    continue  # an empty bin has the value 0 and no gradient
                cells = maps[int(roi[0]), :, y1:y2, x1:x2].reshape(maps.shape[1], (y2 - y1) * (x2 - x1))
                best = cells.argmax(axis=1)  # numpy also returns the first maximum and treats NaN as the greatest
                values[k, :, i, j] = np.take_along_axis(cells, best[:, None], axis=1)[:, 0]
                where[k, i, j] = (y1 + best // (x2 - x1)) * width + x1 + best % (x2 - x1)
    out.copy_(torch.from_numpy(values))
    if argmax is not None:
        argmax.copy_(torch.from_numpy(where))


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, scale: float, variant: str, grad_features: Tensor) -> None:
    """Sum `grad` (K, C, PH, PW) into `grad_features` (N, C, H, W), float32 or float64, at the cells in `argmax`.

    The order of the additions affects floating-point sums. It is fixed: RoI by RoI, and the bins in row-major order.
    """
    images, channels, height, width = grad_features.shape
    flow = grad.detach().to("cpu", grad_features.dtype).numpy()
    where = argmax.cpu().numpy()
    total = np.zeros((images, channels, height * width), flow.dtype)
    every = np.arange(channels)
    for k, image in enumerate(rois[:, 0].tolist()):
        for i in range(grad.shape[2]):
            for j in range(grad.shape[3]):
                cell = where[k, i, j]
                hit = cell >= 0
                total[int(image), every[hit], cell[hit]] += flow[k, hit, i, j]
    grad_features.copy_(torch.from_numpy(total.reshape(images, channels, height, width)))
