"""Selective search as its papers tell it, a pixel and a segment at a time, in float32: what the kernel must give.

Slow and plain on purpose. The order of float operations is the kernel's, as sums in another order would decide ties
in another way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

F = np.float32
COLOUR, TEXTURE, SIZE, FILL = 1, 2, 4, 8


def gaussian(sigma: float) -> np.ndarray:
    """Weights (taps,) float32, of a sum of 1."""
    taps = round(8 * sigma + 1) | 1
    weights = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * sigma**2))
    return (weights / weights.sum()).astype(F)


def blur(plane: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(H, W) float32: along the rows from left to right, then along the columns from the middle outwards."""
    radius = len(weights) // 2
    h, w = plane.shape
    rows = np.zeros((h, w), F)
    for t, weight in enumerate(weights):
        shifted = plane[:, [reflect(x + t - radius, w) for x in range(w)]].astype(F)
        rows = shifted * weight if t == 0 else rows + shifted * weight
    out = rows * weights[radius]
    for t in range(1, radius + 1):
        above, below = (rows[[reflect(y + s * t, h) for y in range(h)]] for s in (-1, 1))
        out = out + (above + below) * weights[radius + t]
    return out


def reflect(i: int, n: int) -> int:
    period = max(1, 2 * (n - 1))
    i = abs(i) % period
    return 0 if n == 1 else min(i, period - i)


STEPS = ((0, 1), (1, 0), (1, 1), (-1, 1))  # down and right to a neighbour; the last two are diagonals


def edges(planes: Sequence[np.ndarray], steps: int) -> list[tuple[F, int, int]]:
    """Weight and both pixels of all edges along the first STEPS, by weight, then by pixel, then by step."""
    h, w = planes[0].shape
    found = []
    for y in range(h):
        for x in range(w):
            for step, (down, right) in enumerate(STEPS[:steps]):
                v, u = y + down, x + right
                if 0 <= v < h and u < w:
                    total = F(0)
                    for plane in planes:
                        total = F(float(total) + float(plane[y, x] - plane[v, u]) ** 2)
                    found.append((np.sqrt(total), y * w + x, v * w + u, step))
    found.sort(key=lambda e: (e[0], e[1], e[3]))
    return [(weight, a, b) for weight, a, b, _ in found]


def segment(planes: Sequence[np.ndarray], k: float, min_size: int, steps: int = 2) -> np.ndarray:
    """Labels (H, W) of Felzenszwalb and Huttenlocher's segments, numbered in the order of their first pixels.

    planes: (H, W) float32 each. steps: 2 for four neighbours of a pixel, 4 for eight.
    """
    h, w = planes[0].shape
    sets = [{i} for i in range(h * w)]
    limits = {id(s): F(k) for s in sets}
    every = edges(planes, steps)

    def join(a: set[int], b: set[int]) -> set[int]:
        if len(a) < len(b):
            a, b = b, a
        a |= b
        for i in b:
            sets[i] = a
        return a

    for weight, i, j in every:
        a, b = sets[i], sets[j]
        if a is not b and weight <= limits[id(a)] and weight <= limits[id(b)]:
            whole = join(a, b)
            limits[id(whole)] = weight + F(k) / F(len(whole))
    for _, i, j in every:
        a, b = sets[i], sets[j]
        if a is not b and min(len(a), len(b)) < min_size:
            join(a, b)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(id(s), len(numbers)) for s in sets]).reshape(h, w)


def scharr(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives (H, W) int64 across and down."""
    h, w = plane.shape
    p = plane.astype(np.int64)[
        np.ix_([reflect(y, h) for y in range(-1, h + 1)], [reflect(x, w) for x in range(-1, w + 1)])
    ]
    across, down = p[:, 2:] - p[:, :-2], p[2:] - p[:-2]
    across = 3 * across[:-2] + 10 * across[1:-1] + 3 * across[2:]
    return across, 3 * down[:, :-2] + 10 * down[:, 1:-1] + 3 * down[:, 2:]


def rotation(degrees: float, x: float, y: float, shift_x: float = 0, shift_y: float = 0) -> np.ndarray:
    """Where a point of the rotated grid lies in the other: (2, 3) float32."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    there = np.array([[c, s, (1 - c) * x - s * y + shift_x], [-s, c, s * x + (1 - c) * y + shift_y]])
    back = np.array([[c, -s], [s, c]])
    return np.column_stack((back, -back @ there[:, 2])).astype(F)


def sample(grid: np.ndarray, m: np.ndarray, width: int, height: int, left: int = 0, top: int = 0) -> np.ndarray:
    """(height, width) float32: the grid between its pixels, nothing outside."""
    padded = np.pad(grid.astype(F), 2)
    out = np.zeros((height, width), F)
    for y in range(height):
        for x in range(width):
            rx, ry = F(x + left), F(y + top)
            px, py = rx * m[0, 0] + (ry * m[0, 1] + m[0, 2]), rx * m[1, 0] + (ry * m[1, 1] + m[1, 2])
            ix, iy = math.floor(px), math.floor(py)
            if not (-1 <= ix < grid.shape[1] and -1 <= iy < grid.shape[0]):
                continue
            ax, ay = F(px - F(ix)), F(py - F(iy))
            p = padded[iy + 2 : iy + 4, ix + 2 : ix + 4]
            row = p[:, 0] + ax * (p[:, 1] - p[:, 0])
            out[y, x] = row[0] + ay * (row[1] - row[0])
    return out


def texture_bins(plane: np.ndarray) -> np.ndarray:
    """Bins 0 to 9 of a plane's eight gradients, (8, H, W)."""
    h, w = plane.shape
    half = F(math.sqrt(0.5)) * F(0.5)
    x0, y0 = (F(n / 2) - half * F(h) - half * F(w) for n in (w, h))
    rw, rh = (math.ceil(F(n) - first) - math.floor(first) + 1 for n, first in ((w, x0), (h, y0)))
    turned = np.rint(sample(plane, rotation(45, w / 2, h / 2, (rw - w) / 2, (rh - h) / 2), rw, rh))
    back = rotation(-45, rw // 2, rh // 2)
    four = [g.astype(F) for g in scharr(plane)]
    four += [sample(g, back, w, h, (rw - w) // 2, (rh - h) // 2) for g in scharr(turned)]
    bins = []
    for gradient in four:
        for half_of in (np.maximum(gradient, 0), np.minimum(gradient, 0)):
            least, most = float(half_of.min()), float(half_of.max())
            if least == most:
                bins.append(np.zeros((h, w), int))
                continue
            scale, shift = F(255 / (most - least)), F(-255 * least / (most - least))
            bins.append((np.rint(half_of * scale + shift).clip(0, 255) / 25.6).astype(int))
    return np.array(bins)


def histograms(planes: Sequence[np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The segments' colours (S, 25 planes) and textures (S, 80 planes), float32, each of a sum of 1."""
    colours, textures = [], []
    bins = [texture_bins(plane) for plane in planes]
    for label in range(labels.max() + 1):
        inside = labels == label
        colour = [np.bincount(plane[inside].astype(int) * 25 // 256, minlength=25) for plane in planes]
        texture = [np.bincount(b[inside], minlength=10) for of_plane in bins for b in of_plane]
        colours.append(np.concatenate(colour).astype(F) / F(inside.sum() * len(planes)))
        textures.append(np.concatenate(texture).astype(F) / F(inside.sum() * len(planes) * 8))
    return np.array(colours), np.array(textures)


def intersection(a: np.ndarray, b: np.ndarray) -> F:
    """The sum of the smaller bins, in sixteen parts."""
    parts = np.zeros(16, F)
    for chunk in np.pad(np.minimum(a, b), (0, -len(a) % 16)).reshape(-1, 16):
        parts = parts + chunk
    while len(parts) > 1:
        parts = parts[: len(parts) // 2] + parts[len(parts) // 2 :]
    return parts[0]


def neighbours(labels: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of segments that touch, left and right, above and below, or from the upper left to the lower right."""
    pairs = set()
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1]), (labels[1:, 1:], labels[:-1, :-1])):
        pairs |= {(min(p), max(p)) for p in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True) if p[0] != p[1]}
    return pairs


def group(planes: Sequence[np.ndarray], labels: np.ndarray, measures: int) -> set[tuple[int, int, int, int]]:
    """Rectangles x y width height of all segments that exist while the most similar neighbours merge."""
    colour, texture = (list(h) for h in histograms(planes, labels))
    size = [int((labels == i).sum()) for i in range(labels.max() + 1)]
    box = []
    for i in range(len(size)):
        ys, xs = np.nonzero(labels == i)
        box.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    pairs, pixels = neighbours(labels), F(labels.size)
    weight = {1: F(1), 2: F(0.5), 3: F(0.3333), 4: F(0.25)}[measures.bit_count()]
    weights = F(0)
    for _ in range(measures.bit_count()):
        weights = weights + weight

    def around(a: int, b: int) -> tuple[int, int, int, int]:
        return (*np.minimum(box[a][:2], box[b][:2]).tolist(), *np.maximum(box[a][2:], box[b][2:]).tolist())

    def similarity(a: int, b: int) -> F:
        total, (x1, y1, x2, y2) = F(0), around(a, b)
        if measures & COLOUR:
            total = total + weight * intersection(colour[a], colour[b])
        if measures & TEXTURE:
            total = total + weight * intersection(texture[a], texture[b])
        if measures & SIZE:
            total = total + weight * max(F(1) - F(size[a] + size[b]) / pixels, F(0))
        if measures & FILL:
            rest = F((x2 - x1) * (y2 - y1) - size[a] - size[b])
            total = total + weight * max(min(F(1) - rest / pixels, F(1)), F(0))
        return total / weights

    def mix(a: np.ndarray, b: np.ndarray, size_a: int, size_b: int) -> np.ndarray:
        return (a * F(size_a) + b * F(size_b)) / F(size_a + size_b)

    alike = {pair: similarity(*pair) for pair in pairs}
    while alike:
        a, b = max(alike, key=lambda p: (alike[p], p[1], p[0]))
        c = len(size)
        box.append(around(a, b))
        colour.append(mix(colour[a], colour[b], size[a], size[b]))
        texture.append(mix(texture[a], texture[b], size[a], size[b]))
        size.append(size[a] + size[b])
        touching = {i for pair in alike if a in pair or b in pair for i in pair} - {a, b}
        alike = {pair: s for pair, s in alike.items() if a not in pair and b not in pair}
        alike |= {(i, c): similarity(i, c) for i in touching}
    return {(int(x1), int(y1), int(x2 - x1), int(y2 - y1)) for x1, y1, x2, y2 in box}
