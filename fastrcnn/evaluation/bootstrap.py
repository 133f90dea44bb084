"""How sure a difference in AP is: the paired bootstrap over images.

A resample draws as many images as there are, with replacement, and is the same for all that is compared. Drawing an
image w times means that each of its detections and objects counts w times, so a resample is a row of weights, and the
AP of all resamples comes from sums along each class's ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastrcnn.evaluation.matches import ClassMatches
from fastrcnn.evaluation.voc_ap import ELEVEN_POINTS, VocMetric, envelope

LEVEL = 0.95  # of the intervals
RESAMPLES = 1000
CELLS = 4_000_000  # of the largest array at a time


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
