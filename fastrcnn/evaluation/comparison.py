"""Compare the AP of evaluations on the same images, with confidence intervals of the differences from the first one.

The intervals are computed with the paired bootstrap over images. Each resample draws N of the N images with
replacement, and the same resamples are used for all evaluations. If an image is drawn w times, each of its detections
and objects counts w times. A resample is therefore stored as N weights w, and the AP of all resamples is computed from
cumulative sums of the weights of the detections of each class, by descending score.
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

LETTERS = "ABCDE"  # labels of the compared runs; plots have a line style for each
LEVEL = 0.95  # confidence level of the intervals
RESAMPLES = 1000
CELLS = 4_000_000  # maximum number of elements of a temporary array


@dataclass(frozen=True)
class Difference:
    """The AP of a run minus the AP of the first run, with a confidence interval."""

    value: float
    low: float  # lower bound of the interval
    high: float  # upper bound

    @property
    def verdict(self) -> str:
        """Return "higher" or "lower" if the interval does not contain 0, otherwise "not certain"."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not certain"


@dataclass(frozen=True)
class Row:
    """The results of all compared runs for one class, or the means over the classes."""

    name: str
    objects: int  # number of objects that are not difficult
    ap: list[float | None]  # of each run, at IoU 0.5
    differences: list[Difference | None]  # for the second and later runs


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_runs`."""

    runs: list[str]  # names
    metric: Metric
    coco: list[float | None]  # COCO AP of each run if the metric is coco, otherwise empty
    images: int  # number of images
    resamples: int  # number of resamples
    mean: Row
    classes: list[Row]
    curves: dict[str, list[ClassMatches]]  # for each class with objects, one entry per run


def compare_runs(runs: Mapping[str, Matches], resamples: int, seed: int) -> Comparison:
    """Compare the AP of two to five runs with the AP of the first one.

    runs: the evaluation of each run, by name. resamples: number of bootstrap resamples. seed: seed of their random
    numbers. Raises UserError if the number of runs is not 2 to 5, or if `check_alike` raises it for two of the runs.
    """
    if not 2 <= len(runs) <= len(LETTERS):
        raise UserError(
            f"compare needs 2 to {len(LETTERS)} different runs, but got {len(runs)}. Usage: fastrcnn compare RUN RUN"
        )
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
    """Raise UserError with the difference if two runs differ in metric, classes, images or ground truth."""
    both = f"{name} and {other_name} were evaluated on"
    if first.metric != other.metric:
        raise UserError(
            f"{name} was evaluated with metric={first.metric}, but {other_name} with metric={other.metric}. Evaluate "
            f"{other_name} again with metric={first.metric}."
        )
    if list(first.ap) != list(other.ap):
        what = _lacking(name, list(first.ap), other_name, list(other.ap)) or "the order of the classes differs"
        raise UserError(
            f"{both} different classes: {what}. Evaluate both with the same data.classes. If `fastrcnn reval` "
            "evaluated saved detections, they must include a file for every class."
        )
    if what := _lacking(name, first.image_ids, other_name, other.image_ids):
        number, other_number = len(first.image_ids), len(other.image_ids)
        raise UserError(
            f"{both} different images ({number} and {other_number}): {what}. Evaluate both with the same value of "
            "`split`."
        )
    if first.truth != other.truth:
        raise UserError(
            f"{both} the same images ({len(first.image_ids)}), but the ground truth differs (boxes, classes, difficult "
            "flags or image sizes), or the images are in a different order. Evaluate both again on the current data."
        )


def _lacking(name: str, has: Sequence[str], other_name: str, other_has: Sequence[str], most: int = 5) -> str:
    """Describe which entries are in only one of two lists, at most `most` per list. Returns "" if there are none."""
    found = []
    for lacks, missing in ((other_name, set(has) - set(other_has)), (name, set(other_has) - set(has))):
        if missing:
            listed = [n for n in (*has, *other_has) if n in missing]
            more = f" and {len(listed) - most} more" if len(listed) > most else ""
            found.append(f"{lacks} does not include {', '.join(listed[:most])}{more}")
    return "; ".join(found)


def fraction(value: float | None, digits: int = 3) -> str:
    """Format a fraction with `digits` decimals. None becomes a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_sign(value: float) -> str:
    """Format a difference with its sign and three decimals. If it rounds to zero, the sign is omitted."""
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text


def span(difference: Difference | None) -> str:
    """Format the confidence interval of a difference. None becomes a dash."""
    return "–" if difference is None else f"{with_sign(difference.low)} … {with_sign(difference.high)}"


def table(found: Comparison) -> str:
    """Format the comparison as a table for the terminal."""
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
        lines.append("COCO AP (without intervals): " + ", ".join(fraction(v) for v in found.coco))
    return "\n".join([*(line.rstrip() for line in lines), "", textwrap.fill(note(found), 100)])


def note(found: Comparison) -> str:
    """Return a text that explains to users how the AP and the intervals of a comparison were computed."""
    how = {"voc07": "VOC07, 11 points", "voc10": "area under the curve", "coco": "area under the curve"}[found.metric]
    return (
        f"AP at IoU 0.5 ({how}). Intervals: paired bootstrap over images ({found.images:,} images, "
        f"{found.resamples:,} resamples). They show how much the differences vary with the choice of images, but not "
        "how much they vary if a model is trained again. By chance, about 1 in 20 intervals does not contain the true "
        "difference."
    )


def resample(images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return an int16 array (resamples, images): how often each image is drawn in each bootstrap resample.

    The result depends only on the arguments.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, images), np.int16)
    for row in weights:
        row += np.bincount(rng.integers(0, images, images), minlength=images).astype(np.int16)
    return weights


def weighted_ap(found: ClassMatches, weights: np.ndarray, metric: VocMetric) -> np.ndarray:
    """Return the AP (R,) float64 of a class in R resamples. In resample r, image i counts weights[r, i] times.

    The AP is NaN if a resample contains no object of the class. The result equals that of `class_ap` on images that are
    repeated accordingly. The envelope of the precision-recall curve is computed only at correct detections, because it
    changes only there. False detections only contribute to the counts.
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
    """Return `weighted_ap` (R,) of every class by name, and under "" the mean over the classes with objects."""
    found = {name: weighted_ap(c, weights, metric) for name, c in classes.items()}
    table = np.array(list(found.values())).reshape(len(found), len(weights))
    known = ~np.isnan(table)
    total = np.where(known, table, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    found[""] = np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)
    return found


def interval(differences: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the bounds (low, high) of the percentile interval of the differences, or None if all are NaN.

    NaNs are ignored.
    """
    known = np.asarray(differences)[~np.isnan(differences)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
