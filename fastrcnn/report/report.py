"""Write report.html, the report of an evaluation with the results of each class and the errors by kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.evaluation import matches
from fastrcnn.evaluation.evaluate import Evaluation, write_results
from fastrcnn.evaluation.recall import SIZES, size_ap
from fastrcnn.evaluation.result_files import write_comp4
from fastrcnn.evaluation.voc_ap import truth_by_class
from fastrcnn.files import replace_file
from fastrcnn.report.diagnosis import FALSE_KINDS, MISSED_KINDS, Thresholds, at_thresholds, diagnose, gains
from fastrcnn.report.gallery import Case, choose, cut_out
from fastrcnn.report.page import Curve, render, thin_curve

PLOTS, MOST_PLOTS = 24, 200  # number of curves that are shown without a click, and maximum number of curves


@dataclass(frozen=True)
class ClassReport:
    """The results of one class. AP and recall are None if the class has no objects, or only difficult ones."""

    name: str
    ap: float | None  # AP of the metric of the evaluation, as in metrics.json
    ap_50: float | None  # VOC AP at IoU 0.5
    objects: int  # number of objects that are not difficult
    detections: int  # number of detections
    recall: float | None  # recall of all detections, without a score threshold
    ceiling: float | None  # recall of the proposals at IoU 0.5
    sizes: dict[str, float | None]  # AP at IoU 0.5 for each of SIZES
    gains: np.ndarray  # (kinds + 1,) the result of diagnosis.gains
    missed: dict[str, int]  # number of missed objects for each of MISSED_KINDS
    curve: Curve


@dataclass(frozen=True)
class Report:
    """The content of the page: an evaluation and the results that are computed from it."""

    result: Evaluation
    title: str
    about: Sequence[tuple[str, str]]  # titles and texts at the end of the page, such as the command
    classes: list[ClassReport]
    objects: list[int]  # for every class, evaluated or not, the number of objects that are not difficult
    thresholds: Thresholds
    cases: list[Case]


def write_evaluation(
    result: Evaluation,
    folder: Path,
    split: str,
    title: str,
    about: Sequence[tuple[str, str]],
    environment: Mapping[str, Any],
) -> Path:
    """Write the metrics, the report and the detections of an evaluation into `folder`. Return the path of the report.

    split: used in the names of the detection files. about: pairs of title and text for the end of the report, to which
    `environment`, a description of software and hardware, is added. The detections are written last, so that the other
    results exist if a class name is not valid in a file name. Raises UserError if a file cannot be written.
    """
    write_results(result, folder)
    about = [*about, ("Environment", json.dumps(environment, indent=2, ensure_ascii=False))]
    path = write_report(result, folder, title, about)
    write_comp4(folder, split, result.detections, [s.image_id for s in result.samples])
    return path


def run_title(run: Path, split: str) -> str:
    """Return the title of the report: the last two parts of the path of the run, and the split."""
    return f"{'/'.join(run.resolve().parts[-2:])} on {split}"


def training_texts(run: Path) -> list[tuple[str, str]]:
    """Return the command and the configuration of a run as pairs of title and text, if its folder contains them."""
    files = (("Training command", "command.txt"), ("Training configuration", "config.yaml"))
    return [
        (name, (run / file).read_text(encoding="utf-8", errors="replace"))
        for name, file in files
        if (run / file).is_file()
    ]


def write_report(result: Evaluation, folder: Path, title: str, about: Sequence[tuple[str, str]]) -> Path:
    """Write report.html into `folder` and return its path. about: pairs of title and text for the end of the report.

    Raises UserError if the file cannot be written.
    """
    html = page(make_report(result, title, about))
    return replace_file(folder / "report.html", html.encode("utf-8", errors="replace"))


def make_report(result: Evaluation, title: str, about: Sequence[tuple[str, str]]) -> Report:
    """Compute the report of an evaluation. Only images with examples of errors are read. about: see write_report."""
    truth = truth_by_class(result.samples, result.classes)
    curves, rule = result.curves(), result.rule
    diagnoses = diagnose(result.detections, truth, curves, _proposal_overlaps(result))
    classes = []
    for name, curve in curves.items():
        found, d = result.detections[name], diagnoses[name]
        missed = np.bincount(d.missed[d.missed >= 0], minlength=len(MISSED_KINDS)).tolist()
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
                gains=gains(curve, d, rule),
                missed=dict(zip(MISSED_KINDS, missed, strict=True)),
                curve=thin_curve(curve.recall, curve.precision),
            )
        )
    return Report(
        result=result,
        title=title,
        about=about,
        classes=classes,
        objects=[int(np.count_nonzero(~t.difficult)) for t in truth.values()],
        thresholds=at_thresholds(list(result.classes), result.detections, diagnoses),
        cases=cut_out(choose(result.detections, truth, diagnoses), result.samples),
    )


def _proposal_overlaps(result: Evaluation) -> Mapping[str, np.ndarray] | None:
    """Return the IoU (G,) of every object and its best proposal, by class and in the order of truth_by_class.

    The value of a difficult object is 0. Returns None if the evaluation has no recall of proposals.
    """
    if result.recall is None:
        return None
    labels = np.concatenate([np.zeros(0, np.int64), *(s.labels for s in result.samples)])
    counted = ~np.concatenate([np.zeros(0, bool), *(s.difficult for s in result.samples)])
    overlaps = np.zeros(len(labels))
    overlaps[counted] = result.recall.overlaps
    return {name: overlaps[labels == k] for k, name in enumerate(result.classes, 1)}


def page(report: Report) -> str:
    """Return the report as an HTML page."""
    result, t, classes = report.result, report.thresholds, report.classes
    counted = [c for c in classes if c.objects]
    evaluated = [k for k, name in enumerate(t.names) if name in result.ap.ap]
    plotted, order = counted, ""
    if len(counted) > PLOTS:
        plotted = sorted(counted, key=lambda c: c.ap_50 or 0.0)[:MOST_PLOTS]
        least = f"Only the {MOST_PLOTS} classes with the lowest AP are shown. " if len(counted) > MOST_PLOTS else ""
        order = f"{least}Classes are sorted by AP, lowest first."
    shown = {c.shown_kind for c in report.cases}
    return render(
        "report.html",
        title=report.title,
        report=report,
        plotted=plotted,
        plot_order=order,
        few_plots=PLOTS,
        false_kinds=FALSE_KINDS,
        missed_kinds=MISSED_KINDS,
        counted=counted,
        mean_gains=np.mean([c.gains for c in counted], axis=0) if counted else np.zeros(len(FALSE_KINDS) + 1),
        evaluated=evaluated,
        best_threshold=t.best(sum(c.objects for c in classes)),
        case_classes=[c.name for c in classes if any(case.name == c.name for case in report.cases)],
        case_kinds=[k for k in (*FALSE_KINDS, *(f"missed: {m}" for m in MISSED_KINDS)) if k in shown],
        unread=list(dict.fromkeys(c.problem for c in report.cases if c.problem)),
        size_means={size: _mean([c.sizes[size] for c in classes]) for size in SIZES},
        data_hash=matches.data_hash(result.samples, result.classes),
        data={
            "names": t.names,
            "evaluated": [k in evaluated for k in range(len(t.names))],
            "objects": report.objects,
            "thresholds": [round(float(v), 4) for v in t.values],
            "kinds": list(FALSE_KINDS),
            "right": [_sparse(row) for row in t.right],
            "wrong": [[_sparse(row) for row in kinds] for kinds in t.false],
            "confusions": [[truth, detected, _sparse(row)] for (truth, detected), row in t.confusions.items()],
        },
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _sparse(counts: np.ndarray) -> list[int]:
    """Return [index, count, index, count, ...] for the counts that are not 0."""
    bins = np.flatnonzero(counts)
    return np.stack((bins, counts[bins]), axis=1).ravel().tolist()
