"""What is left of detections above a threshold of the score: right and false ones, and what is taken for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastrcnn.evaluation.voc_ap import ClassDetections
from fastrcnn.report.diagnosis import CONFUSION, FALSE_KINDS, RIGHT, Diagnosis

NUMBER = 50  # thresholds
MOST_PAIRS = 3000  # pairs of classes whose confusions are kept, those with most of them


@dataclass(frozen=True)
class Thresholds:
    """Counts between each threshold and the next (T,), so that those above one are the sum from there on.

    Classes are numbered from 0 along `names`; one that was not evaluated has no counts of its own.
    """

    names: list[str]
    values: np.ndarray  # (T,) float64, rising
    right: np.ndarray  # (classes, T) int64
    false: np.ndarray  # (classes, kinds, T) int64, along FALSE_KINDS
    confusions: dict[tuple[int, int], np.ndarray]  # (true class, detected class) -> (T,) int64
    left_out_confusions: int  # those of the pairs beyond MOST_PAIRS

    def best(self, objects: int) -> int:
        """The number of the threshold at which F1 over all classes is best; objects: of them, that count."""
        right = self.right.sum(axis=0)[::-1].cumsum()[::-1]
        false = self.false.sum(axis=(0, 1))[::-1].cumsum()[::-1]
        return int(np.argmax(right / np.maximum(right + false + objects, 1)))  # F1 / 2


def threshold_values(detections: Mapping[str, ClassDetections]) -> np.ndarray:
    """0, .02, ..., .98 where scores are probabilities; else NUMBER steps from the least score to the greatest."""
    scores = [d.scores for d in detections.values() if len(d)]
    least = min((s.min() for s in scores), default=0.0)
    most = max((s.max() for s in scores), default=1.0)
    if least >= 0 and most <= 1:
        return np.arange(NUMBER) / NUMBER
    return np.linspace(least, most, NUMBER)


def at_thresholds(
    names: list[str], detections: Mapping[str, ClassDetections], diagnoses: Mapping[str, Diagnosis]
) -> Thresholds:
    """The counts of all classes; names: of all classes, along which Diagnosis.others counts."""
    values = threshold_values(detections)
    right = np.zeros((len(names), len(values)), np.int64)
    false = np.zeros((len(names), len(FALSE_KINDS), len(values)), np.int64)
    confusions: dict[tuple[int, int], np.ndarray] = {}
    for k, name in enumerate(names):
        if name not in diagnoses:
            continue
        kinds, others = diagnoses[name].kinds, diagnoses[name].others
        bins = np.searchsorted(values, detections[name].scores, side="right") - 1
        right[k] = np.bincount(bins[kinds == RIGHT], minlength=len(values))
        for kind in range(len(FALSE_KINDS)):
            false[k, kind] = np.bincount(bins[kinds == kind], minlength=len(values))
        confused = kinds == CONFUSION
        cells = np.bincount(others[confused] * len(values) + bins[confused], minlength=len(names) * len(values))
        table = cells.reshape(len(names), len(values))
        confusions |= {(int(t), k): table[t] for t in np.flatnonzero(table.any(axis=1))}
    ranked = sorted(confusions, key=lambda pair: -int(confusions[pair].sum()))
    dropped = sum(int(confusions[pair].sum()) for pair in ranked[MOST_PAIRS:])
    return Thresholds(names, values, right, false, {p: confusions[p] for p in ranked[:MOST_PAIRS]}, dropped)
