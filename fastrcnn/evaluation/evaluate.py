"""An evaluation: detections and truth of a data set, their AP by a metric, and its files."""

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
    """The outcome of one evaluation."""

    ap: MeanAP
    metric: Metric
    classes: Sequence[str]  # all; label k of the truth is classes[k - 1]
    samples: list[Sample]
    detections: Mapping[str, ClassDetections]  # by class; images counted along `samples`
    recall: ProposalRecall | None  # of the proposals, which is the most that any detector of them can find
    seconds_per_image: float | None = None  # of the network and what follows it; reading images is not in it

    @property
    def rule(self) -> VocMetric:
        """How the AP at IoU .5 is computed: as the metric says, the area under the curve where that is COCO's."""
        return "voc10" if self.metric == "coco" else self.metric

    def curves(self) -> Mapping[str, ClassAP]:
        """Every class that was evaluated at IoU .5, by VOC's matching."""
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
    """AP of detections, images counted along `samples`, against the samples' truth.

    Label k of the truth is classes[k - 1]. A class that `detections` lacks is left out, as competitions allow; one
    of which nothing was found has an entry, an empty one, and AP 0. Raises ValueError for detections of a class that
    `classes` lacks.
    """
    truth = {name: t for name, t in truth_by_class(samples, classes).items() if name in detections}
    return Evaluation(average_precision(detections, truth, metric), metric, classes, samples, detections, recall)


def average_precision(
    detections: Mapping[str, ClassDetections], truth: Mapping[str, ClassTruth], metric: Metric
) -> MeanAP:
    """AP of each class of `truth`, the mean, and the metric's other figures; see mean_ap and coco_ap.

    What holds for all metrics, also where there is nothing to count:

    - A class without an object that counts, because no image has one or all are difficult, has no AP: None. It is
      left out of the mean, whatever was detected of it.
    - A class that has objects and of which nothing was detected has AP 0, and counts in the mean.
    - Without any class that has an AP the mean is None; without any detection it is 0.
    - A detection in an image that has no object of its class is false, also where the image has no object at all.
    - A missed difficult object costs nothing, and a detection of one is left out.

    Raises ValueError for detections of a class that `truth` lacks.
    """
    if unknown := sorted(set(detections) - set(truth)):
        raise ValueError(f"detections of classes that the truth lacks: {', '.join(unknown)}")
    return coco_ap(detections, truth) if metric == "coco" else mean_ap(detections, truth, metric)


def write_results(result: Evaluation, folder: Path) -> None:
    """Writes matches.npz for comparisons, timing.json and metrics.json into `folder`. Raises UserError where it cannot
    be written to."""
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
    if result.seconds_per_image is not None:  # by itself, so that the same run gives the same metrics.json
        timing = {"seconds_per_image": result.seconds_per_image}
        replace_file(folder / "timing.json", (json.dumps(timing) + "\n").encode())
    replace_file(folder / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())  # last: all is there then


def table(result: Evaluation) -> str:
    """The outcome as people read it: AP of each class, beside the objects there are and the proposals' recall."""
    counted = [name for name, value in result.ap.ap.items() if value is not None]
    width = max([5, *(len(name) for name in counted)])
    lines = [f"{'class':<{width}}  objects      AP" + ("   proposals' recall at .5" if result.recall else "")]
    for name in counted:
        line = f"{name:<{width}}  {result.ap.objects[name]:>7}  {result.ap.ap[name]:6.3f}"
        if result.recall and (found := result.recall.classes[name].at_50) is not None:
            line += f"   {found:6.3f}"
        lines.append(line)
    mean = "no class has truth" if result.ap.mean is None else f"{result.ap.mean:6.3f}"
    lines.append(f"{'mAP':<{width}}  {'':>7}  {mean}   ({result.metric}, {len(result.samples)} images)")
    if result.ap.figures:
        shown = [f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in result.ap.figures.items()]
        lines += [", ".join(text for text in shown if text.startswith(kind)) for kind in ("AP", "AR")]
    if without := [name for name in result.ap.ap if name not in counted]:
        lines.append(f"without truth in these images: {', '.join(without)}")
    return "\n".join(lines)
