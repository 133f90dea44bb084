"""Which reading of a proposal file fits the truth: convention, scale and ids (see readings.py).

How it is decided, in two steps:

1. Order, scale and ids, by overlap. A wrong one puts boxes where no object is, and the best overlap of each object
   falls towards what the boxes of another image give it. What it has above that is compared, not the overlap itself,
   in which a reading gains that merely makes boxes larger. Of two readings one is better if the mean over the objects
   of the difference is at least OVERLAP, and at least SIGMAS of its standard errors. Where none is better so, the
   borders decide, as below.
2. First pixel, and inclusive or half-open, by the borders. A pixel more or less hardly shows in the overlap, and what
   shows there says more about how tightly a method frames its objects. But boxes end at the border of the image and so
   pile up exactly there: read rightly, the outermost box touches the side; read wrongly, it stands a pixel off or a
   pixel out. Each side of each image votes on each reading, 1 if it is touched, -1 if boxes stand out of it, else 0.
   Of two readings one is better if it wins more sides than it loses, by SIGMAS standard deviations of chance. (Or wins
   FEW at least and loses none, where the proposals touch half of all sides: then a few images are enough.) Where boxes
   stand out of more sides than they touch, as those of methods that do not clip, the borders say nothing.

The file's own reading is kept unless another one is better, and what is not told apart is given back as such. Nothing
fits if the best reading is no better than the boxes of other images, in the sense of step 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastrcnn.progress import progress
from fastrcnn.proposals.fit_measures import Borders, Fit, Images, mended
from fastrcnn.proposals.formats.conventions import ORDERS, Convention
from fastrcnn.proposals.readings import AS_IS, PIXELS, Reading, Scale, conventions, placements, scales
from fastrcnn.structures import Sample

OVERLAP, SIGMAS, FEW = 0.02, 3.0, 4
LOOK_IMAGES, LOOK_BOXES = 60, 300  # of each, that all combinations of order, scale and ids are tried on at first
CLOSE = 6  # combinations that are then looked at closely, with all images and boxes


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


@dataclass(frozen=True)
class Group:
    """Readings that differ only by a pixel: one order, one scale, one place of each image's boxes."""

    order: str
    scale: Scale
    ids: str
    at: np.ndarray  # (N,) the file's entry for each image


def find_fit(
    ids: Sequence[str],
    boxes_of: Callable[[int], np.ndarray],
    own: Convention,
    samples: Sequence[Sample],
    entries: Sequence[int],
    listed: Iterable[int] = (),
) -> Outcome:
    """Tries the readings of a proposal file against the truth.

    ids: of the file's entries, in its order. boxes_of: numbers (P, 4) of an entry as they stand in the file.
    own: the convention of the file's format. samples: N images with their truth, some object that is not difficult
    among it. entries: (N,) the file's entries of these images. listed: the entries in the order of the data set's
    lists, where the file has no others.
    """
    where = placements(ids, np.array(entries), listed)
    first = np.unique(np.linspace(0, len(samples) - 1, min(LOOK_IMAGES, len(samples))).astype(int))
    kept: dict[int, np.ndarray] = {}
    wrapped = not_finite = 0

    def fetch(wanted: Iterable[int]) -> None:
        nonlocal wrapped, not_finite
        new = [entry for entry in dict.fromkeys(wanted) if entry not in kept]
        for entry in progress(new, len(new), "reading proposals"):
            kept[entry], signs, lost = mended(boxes_of(entry))
            wrapped, not_finite = wrapped + signs, not_finite + lost

    fetch([*where[AS_IS].tolist(), *(e for at in where.values() for e in at[first].tolist())])
    images = Images(samples, kept)
    close = _promising(images, samples, first, where, own)
    fetch(e for group in close for e in group.at.tolist())
    lowest = min((float(b.min()) for b in kept.values() if len(b)), default=0.0)

    leaders: list[Fit] = []  # of each group the one that meets the borders best
    group_of: dict[Reading, Group] = {}
    for group in progress(close, len(close), "comparing", unit="reading"):
        found = [
            (reading, images.borders(reading, group.scale, group.at))
            for reading in (Reading(c, group.scale.name, group.ids) for c in conventions(group.order, lowest))
        ]
        reading, borders = max(found, key=lambda f: (f[1].votes, f[0].convention == own))
        leaders.append(_fit(images, reading, group, borders))
        group_of[reading] = group
    leader = _choose(leaders, own, clearly_overlaps_more)
    group = group_of[leader.reading]
    members = [_fit(images, Reading(c, group.scale.name, group.ids), group) for c in conventions(group.order, lowest)]
    winner = _choose(members, own, clearly_meets_borders_better)
    own_group = next(g for g in close if (g.order, g.scale.name, g.ids) == (own.order, PIXELS, AS_IS))
    as_own = next((m for m in members if m.reading == Reading(own)), None) or _fit(images, Reading(own), own_group)

    equal = [m for m in members if m is not winner and not clearly_meets_borders_better(winner, m)]
    rivals = [f for f in leaders if f is not leader and not _better(winner, f)]
    equal += sorted(rivals, key=lambda f: -f.best.mean())
    rest = sorted((m for m in members if m is not winner and m not in equal), key=lambda m: -m.borders.votes)
    others = [f for f in leaders if f is not leader and f not in equal and f.reading != as_own.reading]
    if as_own not in [winner, *equal, *rest]:
        others.append(as_own)
    rest += sorted(others, key=lambda f: -f.best.mean())
    return Outcome(
        [winner, *equal, *rest],
        1 + len(equal),
        as_own,
        len(samples) == 1 or _clear(_above_chance(winner)),
        len(samples),
        sum(len(kept[e]) for e in set(where[AS_IS].tolist())),
        wrapped,
        not_finite,
    )


def _promising(
    images: Images, samples: Sequence[Sample], first: np.ndarray, where: dict[str, np.ndarray], own: Convention
) -> list[Group]:
    """The combinations of order, scale and ids that are best by a first look, and the file's own."""
    look = Images([samples[i] for i in first], {e: _some(b) for e, b in images.entries.items()})
    found: list[tuple[float, Group]] = []
    for order in ORDERS:
        plain = Convention(order, 0, False)
        for scale in scales(images.extents(Reading(plain), where[AS_IS]), images.sizes):
            reading, part = Reading(plain, scale.name), Scale(scale.name, scale.frames[first])
            chance = look.chance(reading, part, where[AS_IS][first]).mean()
            for name, at in where.items():
                above = float(look.best(reading, part, at[first]).mean() - chance)
                found.append((above, Group(order, scale, name, at)))
    found.sort(key=lambda f: -f[0])
    is_own = [(g.order, g.scale.name, g.ids) == (own.order, PIXELS, AS_IS) for _, g in found]
    return [g for n, (_, g) in enumerate(found) if n < CLOSE or is_own[n]]


def _fit(images: Images, reading: Reading, group: Group, borders: Borders | None = None) -> Fit:
    return Fit(
        reading,
        images.best(reading, group.scale, group.at),
        images.chance(reading, group.scale, group.at),
        borders or images.borders(reading, group.scale, group.at),
    )


def clearly_overlaps_more(a: Fit, b: Fit) -> bool:
    """Whether `a` has more overlap above chance than `b`; step 1 above."""
    return _clear(_above_chance(a) - _above_chance(b))


def clearly_meets_borders_better(a: Fit, b: Fit) -> bool:
    """Whether `a` meets the images' borders better than `b`; step 2 above."""
    if a.borders.votes <= 0:
        return False
    won, lost = int((a.borders.sides > b.borders.sides).sum()), int((a.borders.sides < b.borders.sides).sum())
    return won - lost >= SIGMAS * max(won + lost, 1) ** 0.5 or (lost == 0 and won >= FEW and a.borders.touched >= 0.5)


def _above_chance(fit: Fit) -> np.ndarray:
    return fit.best - fit.chance


def _clear(difference: np.ndarray) -> bool:
    """Whether the mean of (G,) differences in overlap is clearly above zero."""
    error = max(float(difference.std()), 0.1) / len(difference) ** 0.5  # not below 0.1: a few objects may agree
    return bool(difference.mean() >= max(OVERLAP, SIGMAS * error))


def _better(a: Fit, b: Fit) -> bool:
    return clearly_overlaps_more(a, b) or (not clearly_overlaps_more(b, a) and clearly_meets_borders_better(a, b))


def _choose(fits: list[Fit], own: Convention, better: Callable[[Fit, Fit], bool]) -> Fit:
    """The one that none is better than; of several the one closest to the file's own reading."""
    top = [f for f in fits if not any(better(other, f) for other in fits)] or fits
    top = [f for f in top if not any(_better(other, f) for other in top)] or top

    def distance(f: Fit) -> tuple[bool | float, ...]:
        r = f.reading
        departures = r.ids != AS_IS, r.scale != PIXELS, r.convention.order != own.order, r.convention != own
        return *departures, -float(_above_chance(f).mean())

    return min(top, key=distance)


def _some(numbers: np.ndarray) -> np.ndarray:
    """At most LOOK_BOXES rows of the numbers, evenly spaced."""
    if len(numbers) <= LOOK_BOXES:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, LOOK_BOXES).astype(int)]
