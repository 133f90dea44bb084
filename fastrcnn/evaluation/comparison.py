"""Evaluations of the same images side by side: AP of each class, and how sure the differences to the first are.

The paired bootstrap over images says how sure. A resample draws as many images as there are, with replacement, and is
the same for all that is compared. Drawing an image w times means that each of its detections and objects counts w
times, so a resample is a row of weights, and the AP of all resamples comes from sums along each class's ranking.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.evaluation.matches import ClassMatches, Matches
from fastrcnn.evaluation.voc_ap import ELEVEN_POINTS, VocMetric, envelope
from fastrcnn.settings import Metric

LETTERS = "ABCDE"  # of the runs; as many as there are styles of lines
LEVEL = 0.95  # of the intervals
RESAMPLES = 1000
CELLS = 4_000_000  # of the largest array at a time


@dataclass(frozen=True)
class Difference:
    """How much higher an AP is than the first run's."""

    value: float
    low: float  # ends of the interval
    high: float

    @property
    def verdict(self) -> str:
        """What the interval says."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not certain"


@dataclass(frozen=True)
class Row:
    """One class, or the mean over them. Lists are along the runs."""

    name: str
    objects: int
    ap: list[float | None]  # at IoU .5
    differences: list[Difference | None]  # of the second run and those after it


@dataclass(frozen=True)
class Comparison:
    """Everything that is shown."""

    runs: list[str]
    metric: Metric
    coco: list[float | None]  # COCO's AP of each run, where the metric is coco; else empty
    images: int
    resamples: int
    mean: Row
    classes: list[Row]
    curves: dict[str, list[ClassMatches]]  # of each class with objects


def compare_runs(runs: Mapping[str, Matches], resamples: int, seed: int) -> Comparison:
    """The comparison of evaluations, named as they were given. Raises UserError where they cannot be compared."""
    if not 2 <= len(runs) <= len(LETTERS):
        raise UserError(f"compare takes 2 to {len(LETTERS)} different runs, not {len(runs)}: fastrcnn compare RUN RUN")
    names, found = list(runs), list(runs.values())
    for name, other in zip(names[1:], found[1:], strict=True):
        check_alike(names[0], found[0], name, other)
    first = found[0]
    rule: VocMetric = "voc10" if first.metric == "coco" else first.metric
    everything = np.ones((1, len(first.image_ids)), np.int16)
    weights = resample(len(first.image_ids), resamples, seed)
    points = [ap_samples(m.classes, everything, rule) for m in found]
    samples = [ap_samples(m.classes, weights, rule) for m in found]

    def row(key: str, name: str, objects: int) -> Row:
        ap = [None if np.isnan(p[key][0]) else float(p[key][0]) for p in points]
        differences = [_difference(ap[0], ap[i], samples[i][key] - samples[0][key]) for i in range(1, len(found))]
        return Row(name, objects, ap, differences)

    objects = {name: len(c.objects) for name, c in first.classes.items()}
    return Comparison(
        runs=names,
        metric=first.metric,
        coco=[m.mean for m in found] if first.metric == "coco" else [],
        images=len(first.image_ids),
        resamples=resamples,
        mean=row("", "mAP", sum(objects.values())),
        classes=[row(name, name, n) for name, n in objects.items()],
        curves={name: [m.classes[name] for m in found] for name, n in objects.items() if n},
    )


def _difference(first: float | None, other: float | None, samples: np.ndarray) -> Difference | None:
    ends = interval(samples)
    return None if first is None or other is None or ends is None else Difference(other - first, *ends)


def check_alike(name: str, first: Matches, other_name: str, other: Matches) -> None:
    """Raises UserError, saying what differs, unless both evaluations asked the same of the same images."""
    both = f"{name} and {other_name} were evaluated on"
    if first.metric != other.metric:
        raise UserError(
            f"{name} was evaluated by metric={first.metric}, {other_name} by metric={other.metric}. Evaluate one of "
            f"them again, with metric={first.metric}."
        )
    if list(first.ap) != list(other.ap):
        what = _lacking(name, list(first.ap), other_name, list(other.ap)) or "the same, in another order"
        raise UserError(
            f"{both} different classes: {what}. Evaluate both with the same data.classes; of saved detections every "
            "class needs a file."
        )
    if what := _lacking(name, first.image_ids, other_name, other.image_ids):
        number, other_number = len(first.image_ids), len(other.image_ids)
        raise UserError(f"{both} {number} and {other_number} images: {what}. Evaluate both with the same split=.")
    if first.truth != other.truth:
        raise UserError(
            f"{both} the same {len(first.image_ids)} images, but with different truth: boxes, classes, difficult "
            "marks, sizes or their order have changed. Evaluate both again on the data as they are."
        )


def _lacking(name: str, has: Sequence[str], other_name: str, other_has: Sequence[str], most: int = 5) -> str:
    """Words about what one of two lists lacks, or empty."""
    found = []
    for lacks, missing in ((other_name, set(has) - set(other_has)), (name, set(other_has) - set(has))):
        if missing:
            listed = [n for n in (*has, *other_has) if n in missing]
            more = f" and {len(listed) - most} more" if len(listed) > most else ""
            found.append(f"{lacks} lacks {', '.join(listed[:most])}{more}")
    return "; ".join(found)


def fraction(value: float | None, digits: int = 3) -> str:
    """A fraction as text; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_sign(value: float) -> str:
    """A difference as text; one that rounds to nothing has no sign."""
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text


def span(difference: Difference | None) -> str:
    """The interval as text."""
    return "–" if difference is None else f"{with_sign(difference.low)} … {with_sign(difference.high)}"


def table(found: Comparison) -> str:
    """The comparison as people read it on a terminal."""
    letters = LETTERS[: len(found.runs)]
    lines = [f"{letter}  {run}" for letter, run in zip(letters, found.runs, strict=True)]
    level = f"{100 * LEVEL:.0f} % interval"
    width = max(5, *(len(r.name) for r in found.classes))
    head = f"{'class':<{width}}  objects" + "".join(f"{letter:>8}" for letter in letters)
    lines += ["", head + "".join(f"{letter + ' - A':>9}   {level:<17}" for letter in letters[1:])]
    for r in (*found.classes, found.mean):
        line = f"{r.name:<{width}}  {r.objects:>7}" + "".join(f"{fraction(v):>8}" for v in r.ap)
        for d in r.differences:
            line += f"{'–' if d is None else with_sign(d.value):>9}   {span(d):<17}"
        lines.append(line)
    if found.coco:
        lines.append("COCO's AP, without interval: " + ", ".join(fraction(v) for v in found.coco))
    return "\n".join([*(line.rstrip() for line in lines), "", textwrap.fill(note(found), 100)])


def note(found: Comparison) -> str:
    """How the numbers came about."""
    how = {"voc07": "VOC07's 11 points", "voc10": "area under the curve", "coco": "area under the curve"}[found.metric]
    return (
        f"AP at IoU .5, {how}. Intervals: paired bootstrap over the {found.images:,} images, {found.resamples:,} "
        "resamples. They hold for other images of the kind, not for another training of the same model; one in twenty "
        "lies off by chance."
    )


def resample(images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each image is drawn (resamples, images) int16, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, images), np.int16)
    for row in weights:
        row += np.bincount(rng.integers(0, images, images), minlength=images).astype(np.int16)
    return weights


def weighted_ap(found: ClassMatches, weights: np.ndarray, metric: VocMetric) -> np.ndarray:
    """AP (R,) of a class where image i counts weights[r, i] times; NaN where no object is left.

    Equals class_ap of the images repeated so often. The curve's envelope is reached after right detections, so it is
    computed there alone: false ones only count.
    """
    hits = np.flatnonzero(found.correct)
    rows = max(1, CELLS // max(len(found.images), len(found.objects), 1))
    result = np.empty(len(weights))
    for start in range(0, len(weights), rows):
        some = weights[start : start + rows]
        positives = some[:, found.objects].sum(axis=1, dtype=np.int64)
        ranked = np.cumsum(some[:, found.images[: hits[-1] + 1 if len(hits) else 0]], axis=1, dtype=np.int32)
        right = np.cumsum(some[:, found.images[hits]], axis=1, dtype=np.int32)  # (r, hits)
        precision = envelope(right / np.maximum(ranked[:, hits], 1))
        recall = right / np.maximum(positives, 1)[:, None]
        if metric == "voc07":
            ap = np.zeros(len(some))
            for point in ELEVEN_POINTS:
                ap += np.max(precision, axis=1, where=recall >= point, initial=0.0)
            ap /= len(ELEVEN_POINTS)
        else:
            ap = (np.diff(recall, prepend=0.0, axis=1) * precision).sum(axis=1)
        result[start : start + rows] = np.where(positives > 0, ap, np.nan)
    return result


def ap_samples(classes: Mapping[str, ClassMatches], weights: np.ndarray, metric: VocMetric) -> dict[str, np.ndarray]:
    """AP (R,) of every class in each resample, and under "" the mean over the classes with objects there."""
    found = {name: weighted_ap(c, weights, metric) for name, c in classes.items()}
    table = np.array(list(found.values())).reshape(len(found), len(weights))
    known = ~np.isnan(table)
    total = np.where(known, table, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    found[""] = np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)
    return found


def interval(differences: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The percentile interval of the differences; None where no resample has one."""
    known = np.asarray(differences)[~np.isnan(differences)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
