"""Detection: batches of pictures through the network to objects in each picture's own pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrcnn.memory import advising, detection_advice
from fastrcnn.model.fast_rcnn import FastRCNN, distinct_rois, nearest_level, scaled_rois
from fastrcnn.model.postprocess import entering_scores, postprocess
from fastrcnn.structures import Batch, Detections, Sample


@dataclass(frozen=True)
class DetectionSettings:
    """How scores and boxes become detections; see postprocess.

    box_regression: whether RoIs are moved as the network says; else they are the detections' boxes.
    average_per_class: see class_thresholds; a matter of a whole set, so evaluation alone heeds it.
    rois_per_chunk: RoIs that go through fc6 and fc7 at a time, which bounds memory.
    """

    score_threshold: float | None = 0.05
    box_regression: bool = True
    nms_iou: float = 0.3
    max_per_class: int | None = None
    max_per_image: int | None = 100
    average_per_class: int | None = None
    rois_per_chunk: int = 1000


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Mixed precision in `dtype`; float32 turns it off."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


@torch.no_grad()
def detect_batch(
    model: FastRCNN, pyramid: Sequence[Batch], settings: DetectionSettings, dtype: torch.dtype = torch.float32
) -> list[Detections]:
    """Detections, on the CPU, for each picture of a batch. The model should be in eval mode.

    pyramid: the same pictures at one or more scales; each RoI is pooled at the one that `nearest_level` says.
    """
    device = model.delta_mean.device
    with autocast(device, dtype):
        maps = [model.features(level.images.to(device), level.sizes.to(device)) for level in pyramid]
    results = []
    for i, sample in enumerate(pyramid[0].samples):
        rois = pyramid[0].proposals[i].to(device)  # (P, 4)
        scales = torch.stack([level.scales[i] for level in pyramid]).to(device)
        own = [[m[i : i + 1] for m in level] for level in maps]
        scores, deltas = pyramid_outputs(model, own, scales, rois, settings, dtype)
        if not settings.box_regression:
            deltas = torch.zeros_like(deltas)
        found = postprocess(
            scores,
            deltas,
            rois,
            sample.height,
            sample.width,
            settings.score_threshold,
            settings.nms_iou,
            settings.max_per_class,
            settings.max_per_image,
        )
        entered = None
        if settings.average_per_class is not None:
            entered = entering_scores(scores, settings.max_per_class).cpu()
        results.append(Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu(), entered))
    return results


def pyramid_outputs(
    model: FastRCNN,
    maps: Sequence[list[Tensor]],
    scales: Tensor,
    rois: Tensor,
    settings: DetectionSettings,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """What `roi_outputs` gives for one picture's RoIs (P, 4), in its own pixels, from its maps at L scales (L,)."""

    def at(level: int, some: Tensor) -> tuple[Tensor, Tensor]:
        return roi_outputs(
            model, maps[level], scaled_rois(some, model.roi_op, scales[level : level + 1]), settings, dtype
        )

    return at_levels(rois, scales, at)


def at_levels(rois: Tensor, scales: Tensor, compute: Callable[[int, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `compute` gives for one picture's RoIs (P, 4), in its own pixels, each at its level of the scales (L,).

    compute: takes the number of a level and RoIs (R, 5) in pixels of the picture, returns tensors with R rows. It is
    called for every level that has RoIs, and for the first in any case.
    """
    level = nearest_level(rois, scales)
    indexed = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1)
    parts, order = [], []
    for j in range(len(scales)):
        rows = torch.nonzero(level == j).flatten()
        if len(rows) or j == 0:
            parts.append(compute(j, indexed[rows]))
            order.append(rows)
    back = torch.cat(order).argsort()
    return tuple(torch.cat(part)[back] for part in zip(*parts, strict=True))


def roi_outputs(
    model: FastRCNN, maps: list[Tensor], rois: Tensor, settings: DetectionSettings, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Class scores (P, classes + 1) and deltas (P, classes + 1, 4), not normalised, of one picture's RoIs (P, 5) as
    `scaled_rois` gives them. Scores are probabilities or, of a model whose classifier is "svm", margins."""
    outputs = []
    rows, place = distinct_rois(rois, model.roi_op, model.strides)
    for chunk in rois[rows].split(settings.rois_per_chunk):
        with autocast(rois.device, dtype):
            outputs.append(model.classify(maps, chunk))
    logits = torch.cat([logits for logits, _ in outputs])
    scores = logits if model.classifier == "svm" else logits.softmax(dim=1)
    deltas = torch.cat([d for _, d in outputs]) * model.delta_std + model.delta_mean
    return scores[place], deltas[place]


def detect(
    model: FastRCNN,
    pyramids: Iterable[Sequence[Batch]],
    settings: DetectionSettings,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Sample, Detections]]:
    """Each picture with its detections, in order. Leaves the model in eval mode. pyramids: see detect_batch."""
    model.eval()
    for pyramid in pyramids:
        with advising("detection", model.delta_mean.device, lambda p=pyramid: memory_advice(p, settings)):  # type: ignore[misc]
            found = detect_batch(model, pyramid, settings, dtype)
        yield from zip(pyramid[0].samples, found, strict=True)


def memory_advice(pyramid: Sequence[Batch], settings: DetectionSettings) -> str:
    """What to turn down where memory does not suffice for a batch of pictures."""
    scales = [(level.images.shape[2], level.images.shape[3]) for level in pyramid]
    rois = max(len(p) for p in pyramid[0].proposals)
    return detection_advice(scales, len(pyramid[0].samples), rois, settings.rois_per_chunk)
