"""Classify detection errors: each false detection and each missed object is assigned exactly one kind of error.

The kinds follow Hoiem et al. (ECCV 2012) and TIDE (Bolya et al., ECCV 2020). Detections are matched to objects as in
VOC, at IoU 0.5. A detection is correct, ignored (it matches a difficult object) or false. A false detection is assigned
the first kind in FALSE_KINDS that applies, and a missed object is assigned the first kind in MISSED_KINDS that applies.
Difficult objects are also considered when the kind of a false detection is determined, but an undetected difficult
object does not count as missed. The kind of a detection stays the same if detections with lower scores are removed. The
kinds are therefore determined once, and `Thresholds` only counts detections by score threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastrcnn.evaluation.voc_ap import ClassAP, ClassDetections, ClassTruth, VocMetric, most_overlapped, ranked_ap

FITS = 0.5  # a detection covers an object if their IoU is above this value
TOUCHES = 0.1  # a detection is related to an object if their IoU is at least this value

FALSE_KINDS = {  # in the order in which they are tested
    "duplicate": "The IoU is above 0.5 with an object of its class that a detection with a higher score matches.",
    "confusion": "The IoU is above 0.5 with an object of another class, but with no object of its own class.",
    "localisation": "The IoU with an object of its class is 0.1 to 0.5. No object has an IoU above 0.5.",
    "both": "Class and position are wrong. The IoU is 0.1 to 0.5 with an object of another class, and below 0.1 "
    "with all objects of its own class.",
    "background": "The IoU is below 0.1 with all annotated objects.",
}
MISSED_KINDS = {
    "no proposal": "No proposal has an IoU of 0.5 or more with the object.",
    "misplaced": "A detection of the object's class has an IoU of only 0.1 to 0.5 with the object.",
    "wrong class": "A detection of another class has an IoU above 0.5 with the object.",
    "not detected": "None of the other reasons applies.",
}
NUMBER = 50  # number of score thresholds
MOST_PAIRS = 3000  # maximum number of class pairs whose confusions are kept; the most frequent pairs are kept
RIGHT, LEFT_OUT = -1, -2  # instead of a kind: a correct detection, an ignored detection
DUPLICATE, CONFUSION, LOCALISATION, BOTH, BACKGROUND = range(5)
NO_PROPOSAL, MISPLACED, TAKEN, UNSEEN = range(4)


@dataclass(frozen=True)
class Diagnosis:
    """The kinds of error of the D detections and the G objects of one class, in input order."""

    kinds: np.ndarray  # (D,) int8: index in FALSE_KINDS, RIGHT or LEFT_OUT
    objects: np.ndarray  # (D,) int64: the object of the class with the largest IoU, or -1 if that is below TOUCHES
    others: np.ndarray  # (D,) int64: index of the other class if the kind is "confusion" or "both", else -1
    other_objects: np.ndarray  # (D,) int64: index of the object within the other class, or -1
    overlaps: np.ndarray  # (D,) float64: IoU with the object that explains the kind; 0 for background
    missed: np.ndarray  # (G,) int8: index in MISSED_KINDS; -1 for detected and difficult objects


def diagnose(
    detections: Mapping[str, ClassDetections],
    truth: Mapping[str, ClassTruth],
    curves: Mapping[str, ClassAP],
    proposals: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Diagnosis]:
    """Return the kinds of error of every class of `detections`, by class name.

    truth: ground truth of all classes. Classes without detections are included, because they can be confused too.
    curves: the result of class_ap at IoU 0.5 for each class.
    proposals: for each class, the IoU (G,) of every object and its best proposal. Values of difficult objects are not
        used. If None, the kind "no proposal" is not used.
    """
    names = list(truth)
    images, boxes = (np.concatenate([getattr(t, column) for t in truth.values()]) for column in ("images", "boxes"))
    owner = np.repeat(np.arange(len(names)), [len(t) for t in truth.values()])
    number = np.concatenate([np.arange(len(t)) for t in truth.values()])  # index of each object in its class
    taken = np.zeros(len(owner), bool)  # whether a detection of another class covers the object
    found: dict[str, Diagnosis] = {}
    for k, name in enumerate(names):
        if name not in detections:
            continue
        own, curve = detections[name], curves[name]
        kinds = np.where(curve.ignored, LEFT_OUT, RIGHT).astype(np.int8)
        others = np.full(len(own), -1)
        other_objects = np.full(len(own), -1)
        objects, overlaps = curve.matches.copy(), curve.overlaps.copy()
        false = ~curve.correct & ~curve.ignored
        kinds[false & (curve.matches >= 0)] = DUPLICATE
        rest = np.flatnonzero(false & (curve.matches < 0))
        part = own.images[rest], own.boxes[rest]
        nearest, near = most_overlapped(*part, truth[name].images, truth[name].boxes)
        strangers = np.flatnonzero(owner != k)
        stranger, beside = most_overlapped(*part, images[strangers], boxes[strangers])
        conditions = [beside > FITS, near >= TOUCHES, beside >= TOUCHES]
        kinds[rest] = np.select(conditions, [CONFUSION, LOCALISATION, BOTH], BACKGROUND)
        objects[rest[near >= TOUCHES]] = nearest[near >= TOUCHES]
        strange = np.isin(kinds[rest], (CONFUSION, BOTH))
        if strange.any():
            culprit = strangers[stranger[strange]]
            others[rest[strange]], other_objects[rest[strange]] = owner[culprit], number[culprit]
            taken[culprit[beside[strange] > FITS]] = True
        overlaps[rest] = np.select([strange, kinds[rest] == LOCALISATION], [beside, near], 0.0)
        unknown = np.full(len(truth[name]), -1, np.int8)  # set after all classes have been processed
        found[name] = Diagnosis(kinds, objects, others, other_objects, overlaps, unknown)
    best = proposals or {}
    return {
        name: replace(d, missed=_missed(d, truth[name], taken[owner == names.index(name)], best.get(name)))
        for name, d in found.items()
    }


def _missed(found: Diagnosis, truth: ClassTruth, taken: np.ndarray, proposals: np.ndarray | None) -> np.ndarray:
    """Return for each object (G,) of a class why it was missed (an index in MISSED_KINDS), or -1 if it was not."""
    misplaced = np.zeros(len(truth), bool)
    misplaced[found.objects[found.kinds == LOCALISATION]] = True
    beyond = np.zeros(len(truth), bool) if proposals is None else proposals < FITS
    kinds = np.select([beyond, misplaced, taken], [NO_PROPOSAL, MISPLACED, TAKEN], UNSEEN).astype(np.int8)
    kinds[truth.difficult] = -1
    kinds[found.objects[found.kinds == RIGHT]] = -1
    return kinds


def gains(curve: ClassAP, found: Diagnosis, metric: VocMetric) -> np.ndarray:
    """Return the increase in the AP of a class at IoU 0.5 if all errors of one kind were fixed, for each kind.

    The array (kinds + 1,) has an entry for each of FALSE_KINDS, and one for missed objects. False detections are fixed
    by removing them. However, if localisation errors are fixed, the one with the highest score on each missed object
    becomes correct. Missed objects are fixed by removing them from the ground truth. If no object remains, the AP
    becomes 1. curve: the result of class_ap. found: the diagnosis of the class.
    """
    positives = curve.positives
    if not positives:
        return np.zeros(len(FALSE_KINDS) + 1)
    kinds, objects = found.kinds[curve.order], found.objects[curve.order]
    right = kinds == RIGHT
    after = []
    for kind in range(len(FALSE_KINDS)):
        fixed = right.copy()
        if kind == LOCALISATION:
            candidates = np.flatnonzero((kinds == kind) & (np.append(found.missed, -1)[objects] >= 0))
            fixed[candidates[np.unique(objects[candidates], return_index=True)[1]]] = True
        after.append(ranked_ap(fixed[fixed | (kinds != kind)], positives, metric))
    hits = int(right.sum())
    after.append(ranked_ap(right, hits, metric) if hits else 1.0)
    return np.array(after) - ranked_ap(right, positives, metric)


@dataclass(frozen=True)
class Thresholds:
    """For T score thresholds, the number of detections with a score from each threshold up to the next one (excluded).

    The number of detections with a score of at least `values[t]` is the sum from index t to the end. Class indices are
    positions in `names`. In `right` and `false`, a class that was not evaluated has only zeros.
    """

    names: list[str]  # of all classes
    values: np.ndarray  # (T,) float64, ascending
    right: np.ndarray  # (classes, T) int64
    false: np.ndarray  # (classes, kinds, T) int64, in the order of FALSE_KINDS
    confusions: dict[tuple[int, int], np.ndarray]  # (ground-truth class, detected class) -> (T,) int64
    left_out_confusions: int  # number of confusions of class pairs that are not in `confusions`

    def best(self, objects: int) -> int:
        """Return the index of the best threshold by F1 over all classes. objects: number of non-difficult objects."""
        right = self.right.sum(axis=0)[::-1].cumsum()[::-1]
        false = self.false.sum(axis=(0, 1))[::-1].cumsum()[::-1]
        return int(np.argmax(right / np.maximum(right + false + objects, 1)))  # F1 / 2


def threshold_values(detections: Mapping[str, ClassDetections]) -> np.ndarray:
    """Return 0, 0.02, ..., 0.98 if all scores are from 0 to 1, else NUMBER equidistant values over the score range."""
    scores = [d.scores for d in detections.values() if len(d)]
    least = min((s.min() for s in scores), default=0.0)
    most = max((s.max() for s in scores), default=1.0)
    if least >= 0 and most <= 1:
        return np.arange(NUMBER) / NUMBER
    return np.linspace(least, most, NUMBER)


def at_thresholds(
    names: list[str], detections: Mapping[str, ClassDetections], diagnoses: Mapping[str, Diagnosis]
) -> Thresholds:
    """Count the correct and false detections of each class at each score threshold.

    names: the names of all classes. Diagnosis.others contains indices into this list.
    """
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
