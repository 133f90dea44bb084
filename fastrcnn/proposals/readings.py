"""The ways in which the numbers of a proposal file can be read: convention, scale, and whose boxes they are.

They are the mistakes that happen: another order of the four numbers, another first pixel, sizes for corners, boxes of
a picture that was scaled, boxes kept in another order than the ids. What the readings are worth, fit.py finds out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastrcnn.proposals.formats.conventions import Convention

PIXELS = "pixels"
RELATIVE = "0..1"
AS_IS = "as they are"
NICE = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 2, 3, 4)  # common factors, preferred to an estimate that is close to one

MANY = 5  # images whose largest coordinates agree, before they are taken for the size that all were resized to


@dataclass(frozen=True, eq=False)
class Scale:
    """What the unit of the numbers is.

    frames: (N, 2) width and height that each image has in the numbers' unit; for RELATIVE, numbers that are shares
        of the width and the height, those of the image itself.
    """

    name: str
    frames: np.ndarray


@dataclass(frozen=True)
class Reading:
    """A way to read a file."""

    convention: Convention
    scale: str = PIXELS
    ids: str = AS_IS

    def __str__(self) -> str:
        """The convention, readable also where the first pixel is -1, which only a mistake makes."""
        c = self.convention
        name = str(c)
        return name if c.base >= 0 else f"{Convention(c.order, 0, c.inclusive)} less 1"


def read(numbers: np.ndarray, reading: Reading, frame: np.ndarray) -> np.ndarray:
    """Numbers (P, 4) of a file as half-open x1 y1 x2 y2 (P, 4) in units of `frame`, (2,) a width and a height."""
    if reading.scale == RELATIVE:
        numbers = numbers * frame[[0 if letter in "xw" else 1 for letter in reading.convention.order]]
    return reading.convention.read(numbers)


def conventions(order: str, lowest: float) -> list[Convention]:
    """The conventions of an order to try; with first pixel -1 too where that is the `lowest` number of the file."""
    bases = (0, 1, -1) if -1.5 <= lowest <= -0.5 else (0, 1)
    both = [Convention(order, base, inclusive) for base in bases for inclusive in (False, True)]
    return [c for c in both if not (c.sized and c.inclusive)]


def scales(extents: np.ndarray, sizes: np.ndarray) -> list[Scale]:
    """The scales that the largest coordinates speak for, pixels of the image always among them.

    extents: (N, 2) largest x and y among the boxes of each image, in the file's unit; NaN where there is no box.
    sizes: (N, 2) width and height of the images.
    """
    found = [Scale(PIXELS, sizes.astype(np.float64))]
    known = (extents > 0).all(axis=1)  # not of NaN either
    extents = extents[known]
    if not len(extents):
        return found
    if np.quantile(extents, 0.9) <= 1.5:
        return [*found, Scale(RELATIVE, found[0].frames)]
    short, long = sizes.min(axis=1, keepdims=True), sizes.max(axis=1, keepdims=True)
    candidates = [
        Scale("short side 600", sizes * np.minimum(600 / short, 1000 / long)),  # the paper's
        Scale("short side 800", sizes * np.minimum(800 / short, 1333 / long)),
    ]
    factor = _nice(float(np.quantile(extents / sizes[known], 0.9)))
    candidates.append(Scale(f"times {factor:.4g}", sizes * factor))
    width, height = (round(float(v)) for v in np.quantile(extents, 0.9, axis=0))
    width, height = (32 * round(v / 32) if abs(v - 32 * round(v / 32)) <= 1 else v for v in (width, height))
    if len(extents) >= MANY:
        candidates.append(Scale(f"{width} x {height}", np.tile([float(width), float(height)], (len(sizes), 1))))
    for candidate in candidates:
        new = all(np.abs(candidate.frames / other.frames - 1).max() > 0.05 for other in found)
        if new and 0.35 < np.median((extents / candidate.frames[known]).max(axis=1)) < 1.5:
            found.append(candidate)
    return found


def _nice(factor: float) -> float:
    """The factor, or one of NICE within three hundredths of it."""
    return next((n for n in NICE if abs(factor / n - 1) <= 0.03), factor)


def placements(ids: Sequence[str], entries: np.ndarray, listed: Iterable[int]) -> dict[str, np.ndarray]:
    """Where the boxes of some images may really stand in the file, by what would have gone wrong.

    ids: of the file's entries, in its order. entries: (N,) the entries that bear the images' ids. listed: the entries
    in the order of the data set's lists. Gives arrays (N,) of entries; no two are equal, the first is `entries`.
    """
    n = len(ids)
    by_text = np.array(sorted(range(n), key=lambda i: ids[i]))  # entries, sorted by their ids
    orders = {"text": by_text}
    if all(i.isdigit() for i in ids):
        orders["number"] = np.array(sorted(range(n), key=lambda i: int(ids[i])))
    orders["list"] = np.array(list(listed))
    found = {
        AS_IS: entries,
        "1 later": (entries + 1) % n,
        "1 earlier": (entries - 1) % n,
        "reversed": n - 1 - entries,
    }
    for name, order in orders.items():
        if sorted(order.tolist()) != list(range(n)):
            continue  # the file has images that the data set has not
        rank = np.empty(n, np.int64)
        rank[order] = np.arange(n)
        found[f"sorted by {name}"] = rank[entries]
        found[f"1 later by {name}"] = order[(rank[entries] + 1) % n]
        found[f"1 earlier by {name}"] = order[(rank[entries] - 1) % n]
    unique: dict[str, np.ndarray] = {}
    for name, where in found.items():
        if not any((where == other).all() for other in unique.values()):
            unique[name] = where
    return unique
