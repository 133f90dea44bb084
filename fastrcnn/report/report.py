"""What the report on an evaluation says: numbers of each class and of all, mistakes and their kinds, by threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastrcnn.evaluation import matches
from fastrcnn.evaluation.evaluate import Evaluation
from fastrcnn.evaluation.metric import Metric
from fastrcnn.evaluation.recall import ProposalRecall
from fastrcnn.evaluation.sizes import size_ap
from fastrcnn.evaluation.voc_ap import truth_by_class
from fastrcnn.report.diagnosis import MISSED_KINDS, diagnose, gains
from fastrcnn.report.gallery import Case, choose, with_pictures
from fastrcnn.report.plots import Curve, thinned
from fastrcnn.report.thresholds import Thresholds, at_thresholds


@dataclass(frozen=True)
class ClassReport:
    """One class. AP and recall are shares from 0 to 1, None where the class has no object that counts."""

    name: str
    ap: float | None  # by the metric, as in metrics.json
    ap_50: float | None  # at IoU .5 by VOC's rule
    objects: int  # that are not difficult
    detections: int
    recall: float | None  # of all detections, whatever their score
    ceiling: float | None  # recall of the proposals at IoU .5
    sizes: dict[str, float | None]  # AP at IoU .5 of each of SIZES
    gains: np.ndarray  # (kinds + 1,) of AP at IoU .5: see diagnosis.gains
    missed: np.ndarray  # (kinds,) missed objects, along MISSED_KINDS
    curve: Curve


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    metric: Metric
    mean: float | None
    figures: dict[str, float | None]  # the metric's others, such as COCO's AP50
    images: int
    seconds_per_image: float | None
    classes: list[ClassReport]
    not_evaluated: list[str]  # classes that the detections leave out
    objects: np.ndarray  # (all classes,) objects that count, also of classes that were not evaluated
    proposals: ProposalRecall | None
    thresholds: Thresholds
    cases: list[Case]
    data: str  # matches.data_hash
    about: list[tuple[str, str]]  # titles and texts: command, configuration, environment


def make_report(result: Evaluation, title: str, about: Sequence[tuple[str, str]]) -> Report:
    """The report on an evaluation; reads the few pictures that the gallery shows."""
    truth = truth_by_class(result.samples, result.classes)
    curves, rule = result.curves(), result.rule
    diagnoses = diagnose(result.detections, truth, curves, _proposal_overlaps(result))
    classes = []
    for name, curve in curves.items():
        found, d = result.detections[name], diagnoses[name]
        classes.append(
            ClassReport(
                name=name,
                ap=result.ap.ap[name],
                ap_50=curve.ap,
                objects=curve.positives,
                detections=len(found),
                recall=float(np.count_nonzero(curve.correct) / curve.positives) if curve.positives else None,
                ceiling=result.recall.classes[name].at_50 if result.recall else None,
                sizes=size_ap(found, truth[name], curve, rule),
                gains=gains(found.scores, d, curve.positives, rule),
                missed=np.bincount(d.missed[d.missed >= 0], minlength=len(MISSED_KINDS)),
                curve=thinned(curve.recall, curve.precision),
            )
        )
    return Report(
        title=title,
        metric=result.metric,
        mean=result.ap.mean,
        figures=result.ap.figures,
        images=len(result.samples),
        seconds_per_image=result.seconds_per_image,
        classes=classes,
        not_evaluated=[name for name in result.classes if name not in curves],
        objects=np.array([np.count_nonzero(~t.difficult) for t in truth.values()]),
        proposals=result.recall,
        thresholds=at_thresholds(list(result.classes), result.detections, diagnoses),
        cases=with_pictures(choose(result.detections, truth, diagnoses), result.samples),
        data=matches.data_hash(result.samples, result.classes),
        about=list(about),
    )


def _proposal_overlaps(result: Evaluation) -> Mapping[str, np.ndarray] | None:
    """IoU of every object with its best proposal, class by class as truth_by_class has them; 0 for difficult ones."""
    if result.recall is None:
        return None
    labels = np.concatenate([np.zeros(0, np.int64), *(s.labels for s in result.samples)])
    counted = ~np.concatenate([np.zeros(0, bool), *(s.difficult for s in result.samples)])
    overlaps = np.zeros(len(labels))
    overlaps[counted] = result.recall.overlaps
    return {name: overlaps[labels == k] for k, name in enumerate(result.classes, 1)}
