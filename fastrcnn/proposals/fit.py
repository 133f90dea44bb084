"""Find out which interpretation of the numbers in a proposal file fits the ground truth.

An interpretation, called a reading, is a box convention and a unit (see Reading). All conventions are tried in every
unit that the magnitude of the numbers permits. The best reading is chosen in two steps:

1. The order of the numbers and the unit are chosen by the overlap above chance. This is the IoU of each object with its
   best box, minus its IoU with the best box of another image. The subtraction is needed because a reading that only
   enlarges boxes increases both IoUs. One reading is better than another if its mean overlap above chance is higher by
   at least OVERLAP and by at least SIGMAS standard errors. If several readings remain, the image borders are also used
   for this choice, as in step 2.
2. The coordinate of the first pixel, and whether boxes are inclusive or half-open, are chosen by the image borders,
   because one pixel hardly changes the overlap. Boxes often end at the border of the image. With the correct reading,
   the outermost box touches the side; with a wrong reading, it ends a pixel inside or outside the image. One reading
   wins a side of an image against another if it fits that side better. A reading is better than another if it wins more
   sides than it loses, and the difference is at least SIGMAS times its standard deviation by chance (the square root of
   the number of sides won or lost). A reading whose boxes touch at least half of all sides is also better if it wins at
   least FEW sides and loses none. If boxes cross at least as many sides as they touch, as is typical of methods that do
   not clip, the borders are no evidence.

The reading that the file's format specifies is kept unless another one is better. All readings that the data cannot
distinguish from the best one are reported. No reading fits if the mean overlap above chance of the best reading is less
than OVERLAP, or less than SIGMAS standard errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastrcnn import boxes
from fastrcnn.progress import progress
from fastrcnn.proposals.formats.conventions import CONVENTIONS, ORDERS, Convention
from fastrcnn.structures import Sample

OVERLAP, SIGMAS, FEW = 0.02, 3.0, 4
COMMON_FACTORS = (1 / 4, 1 / 2, 2, 4)  # an estimated factor close to one of these is replaced by it
PIXELS, SHARES, SHORT_SIDE = "pixels", "0..1", "short side 600"


@dataclass(frozen=True)
class Reading:
    """A way to interpret the numbers of a proposal file.

    unit: PIXELS; SHARES (fractions of the image width and height); SHORT_SIDE (pixels of the image resized as in the
        paper, to a short side of 600 and a long side of at most 1000); or `times FACTOR` (pixels of the image resized
        by this factor).
    """

    convention: Convention
    unit: str = PIXELS

    def __str__(self) -> str:
        if self.unit == PIXELS:
            return f"{self.convention}, in pixels"
        if self.unit == SHARES:
            return f"{self.convention}, as fractions of the image width and height"
        return f"{self.convention}, in pixels of resized images ({self.unit})"


@dataclass(frozen=True, eq=False)
class Fit:
    """Measurements of how well a reading (convention and unit) fits N images with G objects (no difficult objects).

    Boxes are clipped to their image before the IoU is computed.
    best: (G,) IoU of each object with the best box of its image.
    chance: (G,) IoU of each object with the best box of another image, scaled to the size of the object's image; zeros
        if there is only one image.
    sides: (N, 4) for the left, top, right and bottom side of each image: 1 if the outermost box ends within half a
        pixel of the side, -1 if it ends further outside, otherwise 0.
    """

    reading: Reading
    best: np.ndarray
    chance: np.ndarray
    sides: np.ndarray

    def recall(self, threshold: float) -> float:
        """Return the fraction of objects whose best box has an IoU of at least `threshold`."""
        return float((self.best >= threshold).mean())

    @property
    def touched(self) -> float:
        """Return the fraction of image sides with an outermost box that ends within half a pixel of the side."""
        return float((self.sides == 1).mean())


@dataclass(frozen=True)
class Outcome:
    """The result of `find_fit`.

    tried: the fits of all readings (box conventions and units). The best one (the winner) is first, followed by those
        that the data cannot distinguish from it, and by the others in descending order of mean IoU.
    equal: the number of fits at the start of `tried` that the data cannot distinguish, including the winner.
    own: the fit of the convention that the file's format specifies, in pixels.
    fits: whether the winner is clearly better than the boxes of other images; always true for a single image.
    """

    tried: list[Fit]
    equal: int
    own: Fit
    fits: bool
    wrapped: int  # number of negative coordinates that were stored as unsigned integers
    not_finite: int  # number of boxes with a NaN or infinite coordinate

    @property
    def winner(self) -> Fit:
        return self.tried[0]


def find_fit(numbers: Sequence[np.ndarray], own: Convention, samples: Sequence[Sample]) -> Outcome:
    """Compare all readings (box conventions and units) of a proposal file with the ground truth.

    numbers: an array (P, 4) for each image, with the numbers of its boxes as they are in the file.
    own: the convention that the file's format specifies.
    samples: the images with their ground truth. At least one object must not be difficult.
    """
    found, wrapped, not_finite = _usable(numbers)
    frames = _frames(found, np.array([(s.width, s.height) for s in samples], np.float64))
    groups = [[Reading(c, u) for c in CONVENTIONS.values() if c.order == order] for u in frames for order in ORDERS]
    measured = [
        [_measure(found, samples, r, frames[r.unit]) for r in group]
        for group in progress(groups, len(groups), "Comparing", unit="order")
    ]
    # For each order and unit, take the reading that fits the borders best.
    leaders = [max(group, key=lambda f: (f.sides.sum(), f.reading.convention == own)) for group in measured]
    leader = _choose(leaders, own, overlaps_more)
    members = measured[leaders.index(leader)]
    winner = _choose(members, own, meets_borders_better)
    equal = [f for f in members if f is not winner and not meets_borders_better(winner, f)]
    equal += [f for f in leaders if f is not leader and not _better(winner, f)]
    fits = [f for group in measured for f in group]
    rest = [f for f in fits if f is not winner and f not in equal]
    return Outcome(
        [winner, *equal, *sorted(rest, key=lambda f: -f.best.mean())],
        1 + len(equal),
        next(f for f in fits if f.reading == Reading(own)),
        len(samples) == 1 or _is_clear(winner.best - winner.chance),
        wrapped,
        not_finite,
    )


def overlaps_more(a: Fit, b: Fit) -> bool:
    """Return whether the mean overlap above chance is clearly higher for `a` than for `b`; see step 1 of the module."""
    return _is_clear(a.best - a.chance - (b.best - b.chance))


def meets_borders_better(a: Fit, b: Fit) -> bool:
    """Return whether `a` fits the image borders clearly better than `b`; see step 2 in the docstring of the module."""
    if a.sides.sum() <= 0:
        return False
    won, lost = int((a.sides > b.sides).sum()), int((a.sides < b.sides).sum())
    return won - lost >= SIGMAS * max(won + lost, 1) ** 0.5 or (lost == 0 and won >= FEW and a.touched >= 0.5)


def _better(a: Fit, b: Fit) -> bool:
    return overlaps_more(a, b) or (not overlaps_more(b, a) and meets_borders_better(a, b))


def _is_clear(difference: np.ndarray) -> bool:
    """Return whether the mean of the overlap differences (G,) is clearly above zero."""
    # The standard deviation is set to at least 0.1, because a few objects can agree by chance.
    error = max(float(difference.std()), 0.1) / len(difference) ** 0.5
    return bool(difference.mean() >= max(OVERLAP, SIGMAS * error))


def _choose(fits: list[Fit], own: Convention, better: Callable[[Fit, Fit], bool]) -> Fit:
    """Return the fit that no other fit beats. better: a function that returns whether its first argument wins.

    Of several such fits, those that are best by overlap and borders are preferred, then the one whose reading is
    closest to the file's own convention (`own`) in pixels.
    """
    top = [f for f in fits if not any(better(other, f) for other in fits)] or fits
    top = [f for f in top if not any(_better(other, f) for other in top)] or top

    def distance(f: Fit) -> tuple[bool | float, ...]:
        r = f.reading
        return r.unit != PIXELS, r.convention.order != own.order, r.convention != own, float((f.chance - f.best).mean())

    return min(top, key=distance)


def _usable(numbers: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int, int]:
    """Remove boxes that are not finite, and restore numbers from -4 to -1 that were stored as unsigned integers.

    For example, 65535 becomes -1. Returns the boxes (P, 4) of each image, the number of restored numbers, and the
    number of removed boxes.
    """
    usable, wrapped, not_finite = [], 0, 0
    for given in numbers:
        found = np.array(given, np.float64).reshape(-1, 4)
        finite = np.isfinite(found).all(axis=1)
        found = found[finite]
        not_finite += int((~finite).sum())
        for bits in (16, 32):
            negative = (found >= 2**bits - 4) & (found < 2**bits)
            found[negative] -= 2**bits
            wrapped += int(negative.sum())
        usable.append(found)
    return usable, wrapped, not_finite


def _frames(numbers: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Return a dictionary from each unit that the size of the numbers allows to the image sizes (N, 2) in this unit.

    For SHARES, the sizes are in pixels. PIXELS is always included. Other units are derived from the largest number of
    each image, which is close to the longer side in any order of the numbers. sizes: (N, 2) width and height in pixels.
    """
    found = {PIXELS: sizes}
    largest = np.array([n.max(initial=0.0) for n in numbers])
    short, long = sizes.min(axis=1, keepdims=True), sizes.max(axis=1, keepdims=True)
    ratios = (largest / long[:, 0])[largest > 0]
    if not len(ratios):
        return found
    if np.quantile(largest, 0.9) <= 1.5:
        return found | {SHARES: sizes}
    factor = float(np.quantile(ratios, 0.9))
    factor = next((common for common in COMMON_FACTORS if abs(factor / common - 1) <= 0.03), factor)
    resized = {SHORT_SIDE: sizes * np.minimum(600 / short, 1000 / long), f"times {factor:.4g}": sizes * factor}
    for unit, frames in resized.items():
        differs = all(np.abs(frames / other - 1).max() > 0.05 for other in found.values())
        if differs and 0.35 < np.median(largest / frames.max(axis=1)) < 1.5:
            found[unit] = frames
    return found


def _measure(numbers: list[np.ndarray], samples: Sequence[Sample], reading: Reading, frames: np.ndarray) -> Fit:
    """Measure how well a reading fits. numbers: (P, 4) per image. frames: (N, 2), the image sizes from `_frames`."""
    convention = reading.convention
    axes = [0 if letter in "xw" else 1 for letter in convention.order]
    shares, sides = [], []  # boxes as fractions of the width and height; see Fit for the sides
    for found, frame in zip(numbers, frames, strict=True):
        half_open = convention.read(found * frame[axes] if reading.unit == SHARES else found)
        gaps = np.concatenate((half_open[:, :2], frame - half_open[:, 2:]), axis=1).min(axis=0, initial=np.inf)
        sides.append(np.where(np.abs(gaps) <= 0.5, 1, np.where(gaps < 0, -1, 0)))
        shares.append(np.clip(half_open / np.tile(frame, 2), 0, 1))
    half = len(samples) // 2
    others = [shares[n - half] for n in range(len(shares))] if half else [np.zeros((0, 4))]
    return Fit(reading, _overlaps(samples, shares), _overlaps(samples, others), np.array(sides))


def _overlaps(samples: Sequence[Sample], shares: list[np.ndarray]) -> np.ndarray:
    """Return, for each object that is not difficult, the IoU (G,) with the best box of its image.

    shares: for each image, boxes (P, 4) as fractions of the width and height.
    """
    found = []
    for s, share in zip(samples, shares, strict=True):
        truth = np.asarray(s.boxes[~s.difficult], np.float64).reshape(-1, 4)
        of_image = torch.from_numpy(share * [s.width, s.height, s.width, s.height])
        found.append(boxes.iou(torch.from_numpy(truth), of_image).numpy().max(axis=1, initial=0.0))
    return np.concatenate(found)
