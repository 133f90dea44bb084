"""Run a network on a data set and evaluate the detections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from fastrcnn.evaluation.evaluate import Evaluation, compare
from fastrcnn.evaluation.recall import proposal_recall
from fastrcnn.evaluation.voc_ap import ClassDetections, detections_by_class
from fastrcnn.inference.detect import detect
from fastrcnn.inference.network import Network
from fastrcnn.model.postprocess import class_thresholds
from fastrcnn.parallel import distributed
from fastrcnn.progress import progress
from fastrcnn.settings import DetectionSettings, Metric
from fastrcnn.structures import Batch, Detections, Sample


def evaluate(
    network: Network,
    pyramids: Iterable[Sequence[Batch]],
    images: int,
    classes: Sequence[str],
    metric: Metric,
    settings: DetectionSettings,
    detected: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """Run the network on batches of images, and evaluate the detections.

    pyramids: each batch at one or more scales, see Network.outputs. images: total number of images. classes: class
    names. detected: called after the last batch. In distributed evaluation, each process passes its part of the images.
    Rank 0 returns the result, and the other processes return None.
    """
    seconds = 0.0
    proposals: list[np.ndarray] = []

    def timed() -> Iterable[Sequence[Batch]]:
        nonlocal seconds
        for pyramid in pyramids:
            proposals.extend(p.numpy() for p in pyramid[0].proposals)
            start = time.perf_counter()
            yield pyramid  # until the generator resumes, the caller detects objects in this pyramid
            seconds += time.perf_counter() - start

    samples, detections = detect_all(network, timed(), images, classes, settings, detected)
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
    """Run the network on batches of images. Return the images, and the detections with an entry for every class.

    In distributed evaluation, rank 0 returns the images and detections of all processes. The other processes return no
    images and no detections.
    pyramids, images, classes: see evaluate. detected: called after the last batch, before the detections of all
    processes are gathered. It can raise an exception to abort.
    """
    own = -(-images // distributed.size())
    part = list(progress(detect(network, pyramids, settings), own, "detect"))
    detected()
    both = distributed.in_order(part)
    samples, found = [sample for sample, _ in both], [of_image for _, of_image in both]
    if settings.average_per_class is not None:
        found = above_thresholds(found, settings.average_per_class)
    return samples, detections_by_class(found, classes)


def above_thresholds(found: Sequence[Detections], average: int) -> list[Detections]:
    """Return the best detections of each image, on average `average` per class and image (see class_thresholds)."""
    thresholds = class_thresholds([d.entered for d in found if d.entered is not None], average)
    kept = [d.scores > thresholds[d.labels - 1] for d in found]
    return [Detections(d.boxes[k], d.scores[k], d.labels[k]) for d, k in zip(found, kept, strict=True)]
