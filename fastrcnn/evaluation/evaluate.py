"""Evaluate the detections of a data set against its ground truth, and write the results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrcnn.evaluation import matches
from fastrcnn.evaluation.coco_ap import coco_ap
from fastrcnn.evaluation.recall import ProposalRecall
from fastrcnn.evaluation.voc_ap import (
    ClassAP,
    ClassDetections,
    ClassTruth,
    MeanAP,
    VocMetric,
    class_ap,
    mean_ap,
    truth_by_class,
)
from fastrcnn.files import replace_file
from fastrcnn.settings import Metric
from fastrcnn.structures import Sample


@dataclass(frozen=True)
class Evaluation:
    """The images and detections of an evaluation, and its results."""

    ap: MeanAP
    metric: Metric
    classes: Sequence[str]  # all classes; label k of the ground truth is classes[k - 1]
    samples: list[Sample]  # the images and their ground truth
    detections: Mapping[str, ClassDetections]  # by class; image indices are positions in `samples`
    recall: ProposalRecall | None  # recall of the proposals, if they are known
    seconds_per_image: float | None = None  # network and postprocessing, without reading images; None: not measured

    @property
    def rule(self) -> VocMetric:
        """The rule for AP at IoU 0.5: the metric itself, or voc10 (area under the curve) if the metric is coco."""
        return "voc10" if self.metric == "coco" else self.metric

    def curves(self) -> Mapping[str, ClassAP]:
        """Return the precision-recall curve of each evaluated class at IoU 0.5, with VOC's matching rules."""
        if self.metric != "coco":
            return self.ap.classes
        truth = truth_by_class(self.samples, self.classes)
        return {name: class_ap(self.detections[name], truth[name], self.rule) for name in self.ap.ap}


def compare(
    detections: Mapping[str, ClassDetections],
    samples: list[Sample],
    classes: Sequence[str],
    metric: Metric,
    recall: ProposalRecall | None = None,
) -> Evaluation:
    """Evaluate detections against the ground truth of `samples`.

    detections: by class name. Image indices are positions in `samples`. A class without an entry is excluded, because
        VOC results can be for only some of the classes. A class with objects and an empty entry has AP 0.
    classes: all class names. Label k of the ground truth is classes[k - 1].
    recall: the recall of the proposals, which is stored in the result.

    Raises ValueError if `detections` has a class that is not in `classes`.
    """
    truth = {name: t for name, t in truth_by_class(samples, classes).items() if name in detections}
    return Evaluation(average_precision(detections, truth, metric), metric, classes, samples, detections, recall)


def average_precision(
    detections: Mapping[str, ClassDetections], truth: Mapping[str, ClassTruth], metric: Metric
) -> MeanAP:
    """Compute the AP of each class of `truth`, the mean over the classes, and the other values of the metric.

    See `mean_ap` (voc07, voc10) and `coco_ap` (coco). The following rules apply to all metrics:

    - If a class has no objects, or only difficult ones, its AP is None. It is excluded from the mean, even if there are
      detections of the class.
    - If a class has objects but no detections, its AP is 0, and it is included in the mean.
    - If no class has an AP, the mean is None.
    - A detection in an image without objects of its class counts as a false positive.
    - A missed difficult object does not count as an error, and a detection of a difficult object is ignored.

    Raises ValueError if `detections` has a class that is not in `truth`.
    """
    if unknown := sorted(set(detections) - set(truth)):
        raise ValueError(f"there are detections of classes that are not in the ground truth: {', '.join(unknown)}")
    return coco_ap(detections, truth) if metric == "coco" else mean_ap(detections, truth, metric)


def write_results(result: Evaluation, folder: Path) -> None:
    """Write matches.npz (for comparisons), timing.json (if the time was measured) and metrics.json to `folder`.

    Raises UserError if a file cannot be written.
    """
    truth = truth_by_class(result.samples, result.classes)
    found = matches.Matches(
        metric=result.metric,
        mean=result.ap.mean,
        ap=result.ap.ap,
        image_ids=[s.image_id for s in result.samples],
        truth=matches.data_hash(result.samples, result.classes),
        classes={n: matches.class_matches(result.detections[n], truth[n], c) for n, c in result.curves().items()},
    )
    matches.write(folder / matches.FILE, found)
    metrics: dict[str, Any] = {
        "mAP": result.ap.mean,
        **result.ap.figures,
        "ap": result.ap.ap,
        "metric": result.metric,
        "images": len(result.samples),
        "objects": result.ap.objects,
    }
    if result.recall:
        metrics["proposals"] = {
            "per_image": result.recall.proposals,
            "recall_50": {name: r.at_50 for name, r in result.recall.classes.items()},
            "recall_70": {name: r.at_70 for name, r in result.recall.classes.items()},
        }
    if result.seconds_per_image is not None:  # separate, so that metrics.json is reproducible
        timing = {"seconds_per_image": result.seconds_per_image}
        replace_file(folder / "timing.json", (json.dumps(timing) + "\n").encode())
    replace_file(folder / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())  # written last


def table(result: Evaluation) -> str:
    """Format the results for the terminal: the number of objects, AP and proposal recall of each class, and the mAP."""
    counted = [name for name, value in result.ap.ap.items() if value is not None]
    width = max([5, *(len(name) for name in counted)])
    lines = [f"{'class':<{width}}  objects      AP" + ("   proposal recall at IoU 0.5" if result.recall else "")]
    for name in counted:
        line = f"{name:<{width}}  {result.ap.objects[name]:>7}  {result.ap.ap[name]:6.3f}"
        if result.recall and (found := result.recall.classes[name].at_50) is not None:
            line += f"   {found:6.3f}"
        lines.append(line)
    mean = "no class has ground truth" if result.ap.mean is None else f"{result.ap.mean:6.3f}"
    lines.append(f"{'mAP':<{width}}  {'':>7}  {mean}   ({result.metric}, {len(result.samples)} images)")
    if result.ap.figures:
        shown = [f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in result.ap.figures.items()]
        lines += [", ".join(text for text in shown if text.startswith(kind)) for kind in ("AP", "AR")]
    if without := [name for name in result.ap.ap if name not in counted]:
        lines.append(f"classes without AP (no objects, or only difficult ones): {', '.join(without)}")
    return "\n".join(lines)
