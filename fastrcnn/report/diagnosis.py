"""What is wrong with detections: every false one, and every missed object, is of exactly one kind.

In the spirit of Hoiem et al. (ECCV 2012) and TIDE (Bolya et al., ECCV 2020), on top of VOC's matching at IoU .5: a
detection is right, left out (it matches a difficult object), or false, and a false one is of the first kind of
FALSE_KINDS that fits. Difficult objects explain false detections as others do; they are never missed. A kind does not
depend on a threshold of the score: a detection keeps it when lower ones are dropped, so that Thresholds only counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastrcnn.evaluation.voc_ap import ClassAP, ClassDetections, ClassTruth, VocMetric, most_overlapped, ranked_ap

FITS = 0.5  # a detection lies on an object: IoU above this
TOUCHES = 0.1  # it has to do with an object: IoU of at least this

FALSE_KINDS = {  # in the order in which they are tried
    "duplicate": "IoU above .5 with an object of its class that a detection of higher score has found already.",
    "confusion": "IoU above .5 with an object of another class, and with none of its own.",
    "localisation": "IoU of .1 to .5 with an object of its class, and above .5 with none of any class.",
    "both": "IoU of .1 to .5 with an object of another class, and below .1 with all of its own.",
    "background": "IoU below .1 with every annotated object.",
}
MISSED_KINDS = {
    "no proposal": "No proposal overlaps the object by an IoU of .5, so the detector had little to work with.",
    "misplaced": "A detection of its class overlaps it by .1 to .5, and no other object of that class more.",
    "taken for another": "A detection of another class lies on it with an IoU above .5.",
    "unseen": "Nothing of the above: no detection accounts for it.",
}
NUMBER = 50  # thresholds of the score
MOST_PAIRS = 3000  # pairs of classes whose confusions are kept, those with most of them
RIGHT, LEFT_OUT = -1, -2  # in place of a kind: right, and not counted
DUPLICATE, CONFUSION, LOCALISATION, BOTH, BACKGROUND = range(5)
NO_PROPOSAL, MISPLACED, TAKEN, UNSEEN = range(4)


@dataclass(frozen=True)
class Diagnosis:
    """What became of the detections (D,) and the objects (G,) of one class, in the order they were given in."""

    kinds: np.ndarray  # (D,) int8: number of a kind in FALSE_KINDS, RIGHT or LEFT_OUT
    objects: np.ndarray  # (D,) int64: the object of the own class overlapped most, by TOUCHES at least, or -1
    others: np.ndarray  # (D,) int64: number of the class of the object behind a confusion (or "both"), from 0, or -1
    other_objects: np.ndarray  # (D,) int64: that object's number in its class, or -1
    overlaps: np.ndarray  # (D,) float64: IoU with the object that explains the kind; 0 for background
    missed: np.ndarray  # (G,) int8: number of a kind in MISSED_KINDS; -1 for what is found or difficult


def diagnose(
    detections: Mapping[str, ClassDetections],
    truth: Mapping[str, ClassTruth],
    curves: Mapping[str, ClassAP],
    proposals: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Diagnosis]:
    """The diagnosis of every class of `detections`.

    truth: of these and all other classes, which confusions are looked for in. curves: what class_ap says at IoU .5.
    proposals: of each class (G,), the IoU of every object with its best proposal, difficult ones included; without
    them no object is missed for that reason.
    """
    names = list(truth)
    images, boxes = (np.concatenate([getattr(t, column) for t in truth.values()]) for column in ("images", "boxes"))
    owner = np.repeat(np.arange(len(names)), [len(t) for t in truth.values()])
    number = np.concatenate([np.arange(len(t)) for t in truth.values()])  # of each object in its class
    taken = np.zeros(len(owner), bool)  # a detection of another class lies on it
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
        unknown = np.full(len(truth[name]), -1, np.int8)  # what is missed and why is known when all classes are
        found[name] = Diagnosis(kinds, objects, others, other_objects, overlaps, unknown)
    best = proposals or {}
    return {
        name: replace(d, missed=_missed(d, truth[name], taken[owner == names.index(name)], best.get(name)))
        for name, d in found.items()
    }


def _missed(found: Diagnosis, truth: ClassTruth, taken: np.ndarray, proposals: np.ndarray | None) -> np.ndarray:
    """The kind of miss of each object (G,) of a class, -1 where it is none."""
    misplaced = np.zeros(len(truth), bool)
    misplaced[found.objects[found.kinds == LOCALISATION]] = True
    beyond = np.zeros(len(truth), bool) if proposals is None else proposals < FITS
    kinds = np.select([beyond, misplaced, taken], [NO_PROPOSAL, MISPLACED, TAKEN], UNSEEN).astype(np.int8)
    kinds[truth.difficult] = -1
    kinds[found.objects[found.kinds == RIGHT]] = -1
    return kinds


def gains(curve: ClassAP, found: Diagnosis, metric: VocMetric) -> np.ndarray:
    """What the AP of a class at IoU .5 would gain (kinds + 1,) if all mistakes of one kind were fixed.

    The kinds are FALSE_KINDS', then missed objects. False detections are dropped; a poorly placed one takes its object
    instead, where nothing else found that and no poorly placed one of higher score did. Missed objects are not
    asked for any more; where none is left to ask for, the AP is taken to become 1. curve: what class_ap says.
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
