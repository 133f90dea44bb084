"""A model and a test set to AP and files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.evaluation import matches
from fastrcnn.evaluation.metric import Metric, average_precision
from fastrcnn.evaluation.recall import ProposalRecall, proposal_recall
from fastrcnn.evaluation.result_files import replace_file
from fastrcnn.evaluation.voc_ap import (
    ClassAP,
    ClassDetections,
    MeanAP,
    VocMetric,
    class_ap,
    detections_by_class,
    truth_by_class,
)
from fastrcnn.inference.detect import DetectionSettings, detect
from fastrcnn.inference.network import Network
from fastrcnn.model.postprocess import class_thresholds
from fastrcnn.parallel import distributed
from fastrcnn.progress import progress
from fastrcnn.structures import Batch, Detections, Sample


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one evaluation."""

    ap: MeanAP
    metric: Metric
    classes: Sequence[str]  # all; label k of the truth is classes[k - 1]
    samples: list[Sample]
    detections: Mapping[str, ClassDetections]  # by class; images counted along `samples`
    recall: ProposalRecall | None  # of the proposals, which is the most that any detector of them can find
    seconds_per_image: float | None = None  # of the network and what follows it; reading pictures is not in it

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


def evaluate(
    network: Network,
    pyramids: Iterable[Sequence[Batch]],
    images: int,
    classes: Sequence[str],
    metric: Metric,
    settings: DetectionSettings,
    detected: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """Runs the network over pyramids of batches (see Network.outputs), `images` pictures in all, and compares what it
    finds with their truth. In a group of processes each gives its share of the pictures, and the first has the outcome;
    the others get None.

    detected: called when the pyramids are at their end, before anything is made of what was found; what it raises
        leaves.
    """
    seconds = 0.0
    proposals: list[np.ndarray] = []

    def remembered() -> Iterable[Sequence[Batch]]:
        nonlocal seconds
        for pyramid in pyramids:
            proposals.extend(p.numpy() for p in pyramid[0].proposals)
            start = time.perf_counter()
            yield pyramid  # until the next one is asked for, this one is detected on
            seconds += time.perf_counter() - start

    samples, detections = detect_all(network, remembered(), images, classes, settings, detected)
    seconds /= max(len(proposals), 1)
    proposals = distributed.in_order(proposals)
    if not distributed.leads():
        return None
    recall = proposal_recall(proposals, samples, classes)
    return replace(compare(detections, samples, classes, metric, recall), seconds_per_image=seconds)


def detect_all(
    network: Network,
    pyramids: Iterable[Sequence[Batch]],
    images: int,
    classes: Sequence[str],
    settings: DetectionSettings,
    detected: Callable[[], None] = lambda: None,
) -> tuple[list[Sample], dict[str, ClassDetections]]:
    """The `images` pictures of the pyramids, and what the network finds in them: an entry for every class, images
    counted along the pictures. In a group of processes the first gets all of it, the others nothing. detected: see
    evaluate."""
    own = -(-images // distributed.size())
    part = list(progress(detect(network, pyramids, settings), own, "detect"))
    detected()
    both = distributed.in_order(part)
    samples = [sample for sample, _ in both]
    found = [of_image for _, of_image in both]
    if settings.average_per_class is not None:
        found = above_thresholds(found, settings.average_per_class)
    return samples, detections_by_class(found, classes)


def above_thresholds(found: Sequence[Detections], average: int) -> list[Detections]:
    """The detections whose score exceeds their class's threshold over the set; see class_thresholds."""
    thresholds = class_thresholds([d.entered for d in found if d.entered is not None], average)
    kept = [d.scores > thresholds[d.labels - 1] for d in found]
    return [Detections(d.boxes[k], d.scores[k], d.labels[k]) for d, k in zip(found, kept, strict=True)]


def compare(
    detections: Mapping[str, ClassDetections],
    samples: list[Sample],
    classes: Sequence[str],
    metric: Metric,
    recall: ProposalRecall | None = None,
) -> Evaluation:
    """AP of detections, images counted along `samples`, against the samples' truth.

    Label k of the truth is classes[k - 1]. A class that `detections` lacks is left out, as competitions allow; one
    of which nothing was found has an entry, an empty one, and AP 0. average_precision says what becomes of classes and
    images without truth. Raises ValueError for detections of a class that `classes` lacks.
    """
    truth = {name: t for name, t in truth_by_class(samples, classes).items() if name in detections}
    return Evaluation(average_precision(detections, truth, metric), metric, classes, samples, detections, recall)


def write_results(result: Evaluation, folder: Path) -> None:
    """Writes matches.npz for comparisons, timing.json and metrics.json into `folder`. Raises UserError where it cannot
    be written to."""
    matches.write(folder / matches.FILE, _matches(result))
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


def _matches(result: Evaluation) -> matches.Matches:
    """What `fastrcnn compare` needs of an evaluation."""
    truth = truth_by_class(result.samples, result.classes)
    return matches.Matches(
        metric=result.metric,
        mean=result.ap.mean,
        ap=result.ap.ap,
        image_ids=[s.image_id for s in result.samples],
        truth=matches.data_hash(result.samples, result.classes),
        classes={n: matches.class_matches(result.detections[n], truth[n], c) for n, c in result.curves().items()},
    )


def table(result: Evaluation) -> str:
    """The outcome as people read it: AP of each class, beside the objects there are and the proposals' recall."""
    counted = [name for name, value in result.ap.ap.items() if value is not None]
    width = max([5, *(len(name) for name in counted)])
    head = f"{'class':<{width}}  objects      AP"
    lines = [head + ("   proposals' recall at .5" if result.recall else "")]
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
