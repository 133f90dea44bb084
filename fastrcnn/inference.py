"""Detection: batches of pictures through the network to objects in each picture's own pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrcnn.model.fast_rcnn import FastRCNN, distinct_rois, scaled_rois
from fastrcnn.model.postprocess import entering_scores, postprocess
from fastrcnn.model.vgg16 import stride_of
from fastrcnn.structures import Batch, Detections, Sample


@dataclass(frozen=True)
class DetectionSettings:
    """How scores and boxes become detections; see postprocess.

    average_per_class: see class_thresholds; a matter of a whole set, so evaluation alone heeds it.
    rois_per_chunk: RoIs that go through fc6 and fc7 at a time, which bounds memory.
    """

    score_threshold: float | None = 0.05
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
    model: FastRCNN, batch: Batch, settings: DetectionSettings, dtype: torch.dtype = torch.float32
) -> list[Detections]:
    """Detections, on the CPU, for each picture of a batch. The model should be in eval mode."""
    device = model.delta_mean.device
    with autocast(device, dtype):
        maps = model.features(batch.images.to(device), batch.sizes.to(device))
    results = []
    for i, sample in enumerate(batch.samples):
        rois = batch.proposals[i].to(device)  # (P, 4)
        indexed = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1)
        scaled = scaled_rois(indexed, model.roi_op, batch.scales[i : i + 1].to(device))
        scores, deltas = roi_outputs(model, [m[i : i + 1] for m in maps], scaled, settings, dtype)
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


def roi_outputs(
    model: FastRCNN, maps: list[Tensor], rois: Tensor, settings: DetectionSettings, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Class scores (P, classes + 1) and deltas (P, classes + 1, 4), not normalised, of one picture's RoIs (P, 5) as
    `scaled_rois` gives them. Scores are probabilities or, of a model whose classifier is "svm", margins."""
    outputs = []
    rows, place = distinct_rois(rois, model.roi_op, [stride_of(name) for name in model.roi_features])
    for chunk in rois[rows].split(settings.rois_per_chunk):
        with autocast(rois.device, dtype):
            outputs.append(model.classify(maps, chunk))
    logits = torch.cat([logits for logits, _ in outputs])
    scores = logits if model.classifier == "svm" else logits.softmax(dim=1)
    deltas = torch.cat([d for _, d in outputs]) * model.delta_std + model.delta_mean
    return scores[place], deltas[place]


def detect(
    model: FastRCNN,
    batches: Iterable[Batch],
    settings: DetectionSettings,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Sample, Detections]]:
    """Each picture of the batches with its detections, in order. Leaves the model in eval mode."""
    model.eval()
    for batch in batches:
        yield from zip(batch.samples, detect_batch(model, batch, settings, dtype), strict=True)
