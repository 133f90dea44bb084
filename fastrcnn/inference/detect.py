"""Detection: batches of pictures through the network to objects in each picture's own pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.errors import UserError
from fastrcnn.inference.onnx_network import OnnxNetwork
from fastrcnn.memory import advising, detection_advice
from fastrcnn.model.fast_rcnn import FastRCNN, distinct_rois, nearest_level, scaled_rois
from fastrcnn.model.postprocess import best_boxes, entering_scores
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Batch, Detections, Sample

AnyNetwork: TypeAlias = FastRCNN | OnnxNetwork


@dataclass
class Stopwatch:
    """Seconds spent in each stage of detection; a stage begins and ends when the device has done all it was given."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Mixed precision in `dtype`; float32 turns it off. For the forward pass, within `full_precision`."""
    with full_precision(dtype), torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield


@contextmanager
def full_precision(dtype: torch.dtype) -> Iterator[None]:
    """Where `dtype` is float32, convolutions on a GPU compute in it, and not in TF32, of 10 bits, as they do otherwise.
    A backward pass needs this as well. The flags are the process's; afterwards they are as before."""
    if dtype != torch.float32:
        yield
        return
    flags: Any = torch.backends.cudnn
    before = flags.conv.fp32_precision, flags.rnn.fp32_precision
    try:
        old = flags.allow_tf32  # torch.export reads it, and it must agree with the others
    except RuntimeError:  # as it does where the caller set one of the others alone
        old = None
    if old is not None:
        flags.allow_tf32 = False
    flags.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        if old is not None:
            flags.allow_tf32 = old
        flags.conv.fp32_precision, flags.rnn.fp32_precision = before


@torch.no_grad()
def detect_batch(
    model: AnyNetwork,
    pyramid: Sequence[Batch],
    settings: DetectionSettings,
    dtype: torch.dtype = torch.float32,
    watch: Stopwatch | None = None,
) -> list[Detections]:
    """Detections, on the CPU, for each picture of a batch. The model should be in eval mode.

    pyramid: the same pictures at one or more scales; each RoI is pooled at the one that `nearest_level` says.
    dtype: of the network; an OnnxNetwork computes in its own. watch: is told what the stages "network" and "nms" take.
    """
    watch = watch or Stopwatch(torch.device("cpu"))
    with watch.stage("network"):
        if isinstance(model, OnnxNetwork):
            outputs = [onnx_outputs(model, pyramid, i, settings) for i in range(len(pyramid[0].samples))]
        else:
            outputs = network_outputs(model, pyramid, settings, dtype)
    with watch.stage("nms"):
        for sample, (scores, boxes) in zip(pyramid[0].samples, outputs, strict=True):
            if not (scores.isfinite().all() and boxes.isfinite().all()):
                raise UserError(
                    f"{sample.image_id}: the network gives scores or boxes that are not finite numbers, so its weights "
                    "are damaged or far too large. Use another checkpoint, or runtime.precision=float32."
                )
        return [_detections(scores, boxes, settings) for scores, boxes in outputs]


def _detections(scores: Tensor, boxes: Tensor, settings: DetectionSettings) -> Detections:
    limits = (settings.score_threshold, settings.nms_iou, settings.max_per_class, settings.max_per_image)
    found = best_boxes(scores, boxes, *limits)
    entered = None
    if settings.average_per_class is not None:
        entered = entering_scores(scores, settings.max_per_class).cpu()
    return Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu(), entered)


def network_outputs(
    model: FastRCNN, pyramid: Sequence[Batch], settings: DetectionSettings, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """For each picture of a batch class scores (P, classes + 1) and boxes (P, classes + 1, 4), in its own pixels and
    cut off at its border."""
    device = model.delta_mean.device
    with autocast(device, dtype):
        maps = [model.features(level.images.to(device), level.sizes.to(device)) for level in pyramid]
    results = []
    for i, sample in enumerate(pyramid[0].samples):
        rois = pyramid[0].proposals[i]  # (P, 4), on the CPU: to tell them apart on a GPU is to wait for it many times
        scales = torch.stack([level.scales[i] for level in pyramid])
        own = [[m[i : i + 1] for m in level] for level in maps]
        scores, deltas = pyramid_outputs(model, own, scales, rois, settings, dtype)
        if not settings.box_regression:
            deltas = torch.zeros_like(deltas)
        boxes = box_ops.decode(rois.to(device, non_blocking=True), deltas)
        results.append((scores, box_ops.clip(boxes, sample.height, sample.width)))
    return results


def onnx_outputs(
    model: OnnxNetwork, pyramid: Sequence[Batch], i: int, settings: DetectionSettings
) -> tuple[Tensor, Tensor]:
    """What `network_outputs` gives, for picture number `i`."""
    sample, rois = pyramid[0].samples[i], pyramid[0].proposals[i]

    def at(level: int, some: Tensor) -> tuple[Tensor, Tensor]:
        batch = pyramid[level]
        height, width = batch.sizes[i].tolist()
        image = batch.images[i, :, :height, :width].permute(1, 2, 0)
        return model(image, some[:, 1:], float(batch.scales[i]), (sample.height, sample.width))

    scores, boxes = at_levels(rois, torch.stack([level.scales[i] for level in pyramid]), at)
    if not settings.box_regression:
        boxes = box_ops.clip(box_ops.decode(rois, torch.zeros_like(boxes)), sample.height, sample.width)
    return scores, boxes


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
    chunks = rois[rows].to(maps[0].device, non_blocking=True).chunk(max(1, -(-len(rows) // settings.rois_per_chunk)))
    with autocast(maps[0].device, dtype):  # around all chunks: at its end autocast forgets the weights it has rounded
        for chunk in chunks:
            outputs.append(model.classify(maps, chunk))
    logits = torch.cat([logits for logits, _ in outputs])
    scores = logits if model.classifier == "svm" else logits.softmax(dim=1)
    deltas = torch.cat([d for _, d in outputs]) * model.delta_std + model.delta_mean
    return scores[place], deltas[place]


def detect(
    model: AnyNetwork,
    pyramids: Iterable[Sequence[Batch]],
    settings: DetectionSettings,
    dtype: torch.dtype = torch.float32,
    watch: Stopwatch | None = None,
) -> Iterator[tuple[Sample, Detections]]:
    """Each picture with its detections, in order. Leaves the model in eval mode. pyramids, watch: see detect_batch."""
    device = torch.device("cpu")
    if not isinstance(model, OnnxNetwork):
        model.eval()
        device = model.delta_mean.device
    for pyramid in pyramids:
        with advising("detection", device, lambda p=pyramid: memory_advice(p, settings)):  # type: ignore[misc]
            found = detect_batch(model, pyramid, settings, dtype, watch)
        yield from zip(pyramid[0].samples, found, strict=True)


def memory_advice(pyramid: Sequence[Batch], settings: DetectionSettings) -> str:
    """What to turn down where memory does not suffice for a batch of pictures."""
    scales = [(level.images.shape[2], level.images.shape[3]) for level in pyramid]
    rois = max(len(p) for p in pyramid[0].proposals)
    return detection_advice(scales, len(pyramid[0].samples), rois, settings.rois_per_chunk)
