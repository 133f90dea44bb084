"""The specification of RoI pooling as plain loops. Every other backend is compared with this file, bit for bit.

Coordinates are float32, as in Caffe and torchvision: with 7 bins, an RoI of 57 cells ends one cell outside
itself, and exact arithmetic would not reproduce that.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

VARIANTS = ("fast_rcnn", "partition", "truncate")
FAR = float(2**28)  # cell coordinates beyond this are cut off, lest they overflow an int; no map is that large

Bins = list[tuple[int, int]]


def round_half_away(x: float) -> int:
    """C's round(): halves go away from zero. Python's and torch's go to the even neighbour."""
    whole = math.trunc(x)
    return whole + int(math.copysign(1, x)) if abs(x - whole) >= 0.5 else whole


def extent(start: float, end: float, scale: float, variant: str) -> tuple[int, int]:
    """First cell and number of cells of an RoI along one axis, before it is clipped to the map."""
    a, b, s = np.float32(start), np.float32(end), np.float32(scale)
    with np.errstate(over="ignore"):  # to infinity, which `far` cuts off
        if variant == "fast_rcnn":  # the end is inclusive
            first = round_half_away(far(a * s))
            return first, max(round_half_away(far(b * s)) - first + 1, 1)
        if variant == "partition":  # the end is exclusive
            first = math.floor(far(a * s))
            return first, max(math.floor(far(b * s)) - first, 1)
        if variant == "truncate":  # the length is scaled by itself
            return math.floor(far(a * s)), max(math.floor(far((b - a) * s)), 1)
    raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")


def far(x: np.float32) -> float:
    """`x`, a float32 and thus exact as a float, within -FAR .. FAR."""
    return min(max(float(x), -FAR), FAR)


def bins(first: int, length: int, parts: int, cells: int, variant: str) -> Bins:
    """Half-open ranges of cells of the `parts` bins, clipped to a map of `cells`; an empty range is an empty bin."""
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
    """Rows and columns of the bins of one RoI [batch index, x1, y1, x2, y2] on a map of `height` x `width` cells."""
    _, x1, y1, x2, y2 = roi
    rows = bins(*extent(y1, y2, scale, variant), size[0], height, variant)
    return rows, bins(*extent(x1, x2, scale, variant), size[1], width, variant)


def forward(features: Tensor, rois: Tensor, scale: float, variant: str, out: Tensor, argmax: Tensor | None) -> None:
    """Fills `out` (K, C, PH, PW) and, where given, `argmax` (K, PH, PW, C) int32 from `features` (N, C, H, W).

    The argmax is row * W + column of the cell that a value came from, -1 for an empty bin. Of equal cells the
    first in row-major order wins; a NaN is larger than everything, and the first NaN wins.
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
                    continue  # an empty bin: 0, and no gradient
                cells = maps[int(roi[0]), :, y1:y2, x1:x2].reshape(maps.shape[1], (y2 - y1) * (x2 - x1))
                best = cells.argmax(axis=1)  # numpy's takes the first of equals, and NaN for the largest
                values[k, :, i, j] = np.take_along_axis(cells, best[:, None], axis=1)[:, 0]
                where[k, i, j] = (y1 + best // (x2 - x1)) * width + x1 + best % (x2 - x1)
    out.copy_(torch.from_numpy(values))
    if argmax is not None:
        argmax.copy_(torch.from_numpy(where))


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, scale: float, variant: str, grad_features: Tensor) -> None:
    """Adds `grad` (K, C, PH, PW) into `grad_features` (N, C, H, W), float32 or float64, at the cells of `argmax`.

    RoIs in their order, and the bins of an RoI in row-major order, on which sums of floats depend.
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
