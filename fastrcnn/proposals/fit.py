"""Which reading of a proposal file fits the truth: what its numbers mean, in which unit, and whose boxes they are.

Readings are the mistakes that happen: another order of the four numbers, another first pixel, sizes for corners, boxes
of an image that was scaled, boxes kept under the next id. How it is decided, in two steps:

1. Order, unit and ids, by overlap. A wrong one puts boxes where no object is, and the best overlap of each object
   falls towards what the boxes of another image give it. What it has above that is compared, not the overlap itself,
   in which a reading gains that merely makes boxes larger. Of two readings one is better if the mean over the objects
   of the difference is at least OVERLAP, and at least SIGMAS of its standard errors. Where none is better so, the
   borders decide, as below.
2. First pixel, and inclusive or half-open, by the borders. A pixel more or less hardly shows in the overlap. But boxes
   end at the border of the image and so pile up exactly there: read rightly, the outermost box touches the side; read
   wrongly, it stands a pixel off or a pixel out. Of two readings one is better if it wins more sides than it loses, by
   SIGMAS standard deviations of chance. (Or wins FEW at least and loses none, where the proposals touch half of all
   sides: then a few images are enough.) Where boxes stand out of more sides than they touch, as those of methods that
   do not clip, the borders say nothing.

The file's own reading is kept unless another one is better, and what is not told apart is given back as such. Nothing
fits if the best reading is no better than the boxes of other images, in the sense of step 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fastrcnn import boxes
from fastrcnn.progress import progress
from fastrcnn.proposals.formats.conventions import ORDERS, Convention
from fastrcnn.structures import Sample

OVERLAP, SIGMAS, FEW = 0.02, 3.0, 4
CLOSE = 6  # combinations of order, unit and ids that are looked at closely
MANY = 5  # images whose largest coordinates agree, before they are taken for the size that all were resized to
NICE = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 2, 3, 4)  # common factors, preferred to an estimate that is close to one
PIXELS, RELATIVE, AS_IS = "pixels", "0..1", "as they are"


@dataclass(frozen=True)
class Reading:
    """A way to read a file. unit: of the numbers, a name that `_frames` gives. ids: a name that `_placements` gives.

    frames: (N, 2) width and height that each image has in the numbers' unit; those of the image for RELATIVE.
    at: (N,) the file's entry for each image.
    """

    convention: Convention
    unit: str = PIXELS
    ids: str = AS_IS
    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), compare=False)
    at: np.ndarray = field(default_factory=lambda: np.zeros(0, int), compare=False)

    def __str__(self) -> str:
        """The convention, readable also where the first pixel is -1, which only a mistake makes."""
        c = self.convention
        return str(c) if c.base >= 0 else f"{Convention(c.order, 0, c.inclusive)} less 1"


@dataclass(frozen=True, eq=False)
class Fit:
    """How well a reading fits N images with G objects. Boxes are clipped to their image before overlaps are taken.

    best: (G,) IoU of each object with the best box of its image.
    chance: (G,) the same with the boxes of another image, stretched to the size of this one; zeros for one image.
    sides: (N, 4) left, top, right, bottom: 1 where the outermost box ends within half a pixel of the side, -1 where it
        stands out further, else 0.
    """

    reading: Reading
    best: np.ndarray
    chance: np.ndarray
    sides: np.ndarray

    def recall(self, threshold: float) -> float:
        """Share of the objects that some box overlaps by at least the threshold."""
        return float((self.best >= threshold).mean())

    @property
    def touched(self) -> float:
        """Share of the sides that some box ends at."""
        return float((self.sides == 1).mean())


@dataclass(frozen=True)
class Outcome:
    """What was found.

    tried: readings, the winner first, then those not told apart from it, then the rest.
    equal: how many of `tried`, from the start, the data do not tell apart.
    own: the file's own reading. fits: whether the winner is better than the boxes of other images.
    """

    tried: list[Fit]
    equal: int
    own: Fit
    fits: bool
    images: int
    boxes: int
    wrapped: int  # numbers that were negative before they were kept without a sign
    not_finite: int  # boxes with a NaN or infinite number

    @property
    def winner(self) -> Fit:
        return self.tried[0]


class Entries:
    """Numbers (P, 4) of the file's entries, each read once: those that are finite, with the sign that unsigned integers
    lost (65535 for -1, and the like). wrapped, not_finite: see Outcome."""

    def __init__(self, boxes_of: Callable[[int], np.ndarray]) -> None:
        self.boxes_of, self.wrapped, self.not_finite = boxes_of, 0, 0
        self.kept: dict[int, np.ndarray] = {}

    def __getitem__(self, entry: int) -> np.ndarray:
        if entry not in self.kept:
            numbers = np.array(self.boxes_of(entry), np.float64).reshape(-1, 4)
            finite = np.isfinite(numbers).all(axis=1)
            numbers = numbers[finite]
            for bits in (16, 32):
                negative = (numbers >= 2**bits - 4) & (numbers < 2**bits)
                numbers[negative] -= 2**bits
                self.wrapped += int(negative.sum())
            self.not_finite += int((~finite).sum())
            self.kept[entry] = numbers
        return self.kept[entry]


def find_fit(
    ids: Sequence[str],
    boxes_of: Callable[[int], np.ndarray],
    own: Convention,
    samples: Sequence[Sample],
    entries: Sequence[int],
) -> Outcome:
    """Tries the readings of a proposal file against the truth.

    ids: of the file's entries, in its order. boxes_of: numbers (P, 4) of an entry as they stand in the file.
    own: the convention of the file's format. samples: N images with their truth, some object that is not difficult
    among it. entries: (N,) the file's entries of these images.
    """
    file, at = Entries(boxes_of), np.array(entries)
    own_boxes = [file[e] for e in progress(entries, len(entries), "reading proposals")]
    lowest = min((float(b.min()) for b in own_boxes if len(b)), default=0.0)
    sizes = np.array([(s.width, s.height) for s in samples], np.float64)
    own_reading = Reading(own, PIXELS, AS_IS, sizes, at)
    promising = _promising(file, samples, _placements(ids, at), sizes)
    fits: dict[Reading, Fit] = {}

    def measure(reading: Reading) -> Fit:
        if reading not in fits:
            fits[reading] = _measure(file, samples, reading)
        return fits[reading]

    leaders: list[Fit] = []  # of each order, unit and ids the reading that meets the borders best
    for group in progress([own_reading, *promising], 1 + len(promising), "comparing", unit="reading"):
        sides = {r: _sides(_read(file, r), r.frames).sum() for r in _members(group, lowest)}
        leaders.append(measure(max(sides, key=lambda r: (sides[r], r.convention == own))))
    leaders = list(dict.fromkeys(leaders))  # the file's own may be among the promising
    leader = _choose(leaders, own, overlaps_more)
    members = [measure(reading) for reading in _members(leader.reading, lowest)]
    winner = _choose(members, own, meets_borders_better)
    as_own = measure(own_reading)

    equal = [f for f in members if f is not winner and not meets_borders_better(winner, f)]
    equal += [f for f in leaders if f is not leader and not _better(winner, f)]
    rest = [f for f in fits.values() if f is not winner and f not in equal]
    return Outcome(
        [winner, *equal, *sorted(rest, key=lambda f: -f.best.mean())],
        1 + len(equal),
        as_own,
        len(samples) == 1 or _clear(winner.best - winner.chance),
        len(samples),
        sum(map(len, own_boxes)),
        file.wrapped,
        file.not_finite,
    )


def overlaps_more(a: Fit, b: Fit) -> bool:
    """Whether `a` has clearly more overlap above chance than `b`; step 1 above."""
    return _clear(a.best - a.chance - (b.best - b.chance))


def meets_borders_better(a: Fit, b: Fit) -> bool:
    """Whether `a` clearly meets the images' borders better than `b`; step 2 above."""
    if a.sides.sum() <= 0:
        return False
    won, lost = int((a.sides > b.sides).sum()), int((a.sides < b.sides).sum())
    return won - lost >= SIGMAS * max(won + lost, 1) ** 0.5 or (lost == 0 and won >= FEW and a.touched >= 0.5)


def _better(a: Fit, b: Fit) -> bool:
    return overlaps_more(a, b) or (not overlaps_more(b, a) and meets_borders_better(a, b))


def _clear(difference: np.ndarray) -> bool:
    """Whether the mean of (G,) differences in overlap is clearly above zero."""
    error = max(float(difference.std()), 0.1) / len(difference) ** 0.5  # not below 0.1: a few objects may agree
    return bool(difference.mean() >= max(OVERLAP, SIGMAS * error))


def _choose(fits: list[Fit], own: Convention, better: Callable[[Fit, Fit], bool]) -> Fit:
    """The one that none is better than; of several the one closest to the file's own reading."""
    top = [f for f in fits if not any(better(other, f) for other in fits)] or fits
    top = [f for f in top if not any(_better(other, f) for other in top)] or top

    def distance(f: Fit) -> tuple[bool | float, ...]:
        r = f.reading
        departures = r.ids != AS_IS, r.unit != PIXELS, r.convention.order != own.order, r.convention != own
        return *departures, -float((f.best - f.chance).mean())

    return min(top, key=distance)


def _promising(
    file: Entries, samples: Sequence[Sample], places: dict[str, np.ndarray], sizes: np.ndarray
) -> list[Reading]:
    """The combinations of order, unit and ids that have most overlap above chance. places: see _placements."""
    found: list[tuple[float, Reading]] = []
    for order in ORDERS:
        plain = Convention(order, 0, False)
        extents = [plain.read(file[e]).max(axis=0, initial=-np.inf)[2:] for e in places[AS_IS].tolist()]
        for unit, frames in _frames(np.array(extents), sizes).items():
            for ids, at in places.items():
                reading = Reading(plain, unit, ids, frames, at)
                shares = _shares(_read(file, reading), frames)
                if ids == AS_IS:
                    chance = _chance(samples, shares).mean()  # for all placements
                found.append((float(_overlaps(samples, shares).mean() - chance), reading))
    found.sort(key=lambda f: -f[0])
    return [reading for _, reading in found[:CLOSE]]


def _members(reading: Reading, lowest: float) -> list[Reading]:
    """The readings that differ by a pixel; with first pixel -1 too where that is the `lowest` number of the file."""
    bases = (0, 1, -1) if -1.5 <= lowest <= -0.5 else (0, 1)
    both = [Convention(reading.convention.order, base, inclusive) for base in bases for inclusive in (False, True)]
    return [replace(reading, convention=c) for c in both if not (c.sized and c.inclusive)]


def _frames(extents: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """The frames (N, 2) of the units that the largest coordinates speak for, pixels of the image always among them.

    extents: (N, 2) largest x and y among the boxes of each image, in the file's unit; -inf where there is no box.
    sizes: (N, 2) width and height of the images.
    """
    found = {PIXELS: sizes}
    known = (extents > 0).all(axis=1)
    extents = extents[known]
    if not len(extents):
        return found
    if np.quantile(extents, 0.9) <= 1.5:
        return found | {RELATIVE: sizes}
    short, long = sizes.min(axis=1, keepdims=True), sizes.max(axis=1, keepdims=True)
    factor = float(np.quantile(extents / sizes[known], 0.9))
    factor = next((n for n in NICE if abs(factor / n - 1) <= 0.03), factor)
    candidates = {
        "short side 600": sizes * np.minimum(600 / short, 1000 / long),
        "short side 800": sizes * np.minimum(800 / short, 1333 / long),
        f"times {factor:.4g}": sizes * factor,
    }
    if len(extents) >= MANY:
        side = [round(float(v)) for v in np.quantile(extents, 0.9, axis=0)]
        side = [32 * round(v / 32) if abs(v - 32 * round(v / 32)) <= 1 else v for v in side]
        candidates[f"{side[0]} x {side[1]}"] = np.tile(np.array(side, np.float64), (len(sizes), 1))
    for name, frames in candidates.items():
        new = all(np.abs(frames / other - 1).max() > 0.05 for other in found.values())
        if new and 0.35 < np.median((extents / frames[known]).max(axis=1)) < 1.5:
            found[name] = frames
    return found


def _placements(ids: Sequence[str], entries: np.ndarray) -> dict[str, np.ndarray]:
    """Where the boxes of some images may really stand in the file, by what would have gone wrong.

    ids: of the file's entries, in its order. entries: (N,) the entries that bear the images' ids. Gives arrays (N,) of
    entries; no two are equal, the first is `entries`.
    """
    n = len(ids)
    rank = np.argsort(np.array(sorted(range(n), key=lambda i: ids[i])))  # of each entry among the sorted ids
    found = {
        AS_IS: entries,
        "1 later": (entries + 1) % n,
        "1 earlier": (entries - 1) % n,
        "reversed": n - 1 - entries,
        "sorted": rank[entries],
    }
    unique: dict[str, np.ndarray] = {}
    for name, where in found.items():
        if not any((where == other).all() for other in unique.values()):
            unique[name] = where
    return unique


def _read(file: Entries, reading: Reading) -> list[np.ndarray]:
    """Each image's boxes as half-open x1 y1 x2 y2 (P, 4) in units of its frame."""
    found = []
    for entry, frame in zip(reading.at.tolist(), reading.frames, strict=True):
        sides = frame[[0 if letter in "xw" else 1 for letter in reading.convention.order]]
        found.append(reading.convention.read(file[entry] * (sides if reading.unit == RELATIVE else 1)))
    return found


def _shares(found: list[np.ndarray], frames: np.ndarray) -> list[np.ndarray]:
    """Boxes in units of their frames, clipped, as shares of the width and the height."""
    return [np.clip(b / np.tile(frame, 2), 0, 1) for b, frame in zip(found, frames, strict=True)]


def _measure(file: Entries, samples: Sequence[Sample], reading: Reading) -> Fit:
    found = _read(file, reading)
    shares = _shares(found, reading.frames)
    return Fit(reading, _overlaps(samples, shares), _chance(samples, shares), _sides(found, reading.frames))


def _overlaps(samples: Sequence[Sample], shares: list[np.ndarray]) -> np.ndarray:
    """IoU (G,) of each object that is not difficult with the best of its image's boxes."""
    found = []
    for s, share in zip(samples, shares, strict=True):
        truth = np.asarray(s.boxes[~s.difficult], np.float64).reshape(-1, 4)
        of_image = torch.from_numpy(share * [s.width, s.height, s.width, s.height])
        found.append(boxes.iou(torch.from_numpy(truth), of_image).numpy().max(axis=1, initial=0.0))
    return np.concatenate(found)


def _chance(samples: Sequence[Sample], shares: list[np.ndarray]) -> np.ndarray:
    """What `_overlaps` gives if each image gets the boxes of the one half the list away."""
    half = len(samples) // 2
    others = [shares[n - half] for n in range(len(shares))] if half else [np.zeros((0, 4))] * len(shares)
    return _overlaps(samples, others)


def _sides(found: list[np.ndarray], frames: np.ndarray) -> np.ndarray:
    """See Fit. found: boxes in units of their frames."""
    sides = []
    for b, frame in zip(found, frames, strict=True):
        gaps = np.concatenate((b[:, :2], frame - b[:, 2:]), axis=1).min(axis=0, initial=np.inf)
        sides.append(np.where(np.abs(gaps) <= 0.5, 1, np.where(gaps < 0, -1, 0)))
    return np.array(sides)
