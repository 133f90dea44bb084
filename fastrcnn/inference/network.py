"""The network interface for detection, and its implementation for FastRCNN. onnx_network.py implements it for ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.model.fast_rcnn import FastRCNN, distinct_rois, nearest_level, scaled_rois
from fastrcnn.settings import Classifier
from fastrcnn.structures import Batch

Inputs = Callable[[Batch], Tensor | Sequence[Tensor]]  # the images of a batch, or the model's `frozen_maps` for them
Outputs = tuple[Tensor, Tensor]  # scores (P, classes + 1) and boxes (P, classes + 1, 4)


class Network(Protocol):
    """A trained network with its weights, ready for detection.

    classifier: "softmax" if the scores are probabilities, "svm" if they are margins. device: device of the outputs.
    runs_on: name of the device that runs the network.
    """

    classifier: Classifier
    device: torch.device
    runs_on: str

    def outputs(
        self, pyramid: Sequence[Batch], rois_per_chunk: int = 500, box_regression: bool = True
    ) -> list[Outputs]:
        """Return scores (P, classes + 1) and boxes (P, classes + 1, 4) of the P proposals of each image of a batch.

        Index 0 of the classes is the background. Boxes are half-open x1 y1 x2 y2 in pixels of the original image, and
        clipped to its border.
        pyramid: the images at one or more scales, as one batch per scale. `nearest_level` selects the scale at which
            each RoI is pooled.
        rois_per_chunk: maximum number of RoIs that go through pooling, fc6 and fc7 at a time, to limit memory use.
        box_regression: whether to apply the predicted deltas. If false, the boxes are the clipped proposals.
        """
        ...


def images_on(device: torch.device) -> Inputs:
    """Return a function that copies the images of a batch to the device asynchronously."""
    return lambda batch: batch.images.to(device, non_blocking=True)


class TorchNetwork:
    """A Network that runs a FastRCNN model in `dtype`. The model is set to eval mode."""

    def __init__(
        self,
        model: FastRCNN,
        dtype: torch.dtype = torch.float32,
        inputs: Inputs | None = None,
    ) -> None:
        """inputs: a function that returns the model's inputs for a batch, on its device; by default the images."""
        self.model = model.eval()
        self.dtype = dtype
        self.classifier = model.classifier
        self.device = model.delta_mean.device
        self.inputs = inputs or images_on(self.device)
        self.runs_on = str(self.device)

    @torch.no_grad()
    def outputs(
        self, pyramid: Sequence[Batch], rois_per_chunk: int = 500, box_regression: bool = True
    ) -> list[Outputs]:
        """See Network.outputs."""
        with autocast(self.device, self.dtype):
            maps = [self.model.features(self.inputs(level), level.sizes.to(self.device)) for level in pyramid]
        results = []
        for i, sample in enumerate(pyramid[0].samples):
            rois = pyramid[0].proposals[i]  # (P, 4), on the CPU: comparisons on a GPU would synchronise repeatedly
            scales = torch.stack([level.scales[i] for level in pyramid])

            def at(level: int, some: Tensor, i: int = i, scales: Tensor = scales) -> Outputs:
                scaled = scaled_rois(some, self.model.roi_op, scales[level : level + 1])
                return self.roi_outputs([m[i : i + 1] for m in maps[level]], scaled, rois_per_chunk)

            scores, deltas = at_levels(rois, scales, at)
            if not box_regression:
                deltas = torch.zeros_like(deltas)
            boxes = box_ops.decode(rois.to(self.device, non_blocking=True), deltas)
            results.append((scores, box_ops.clip(boxes, sample.height, sample.width)))
        return results

    def roi_outputs(self, maps: list[Tensor], rois: Tensor, rois_per_chunk: int = 500) -> Outputs:
        """Return scores (P, classes + 1) and box deltas (P, classes + 1, 4), not normalised, of the RoIs of one image.

        maps: the feature maps of the image. rois: (P, 5) [image index, x1, y1, x2, y2], the result of `scaled_rois`.
        """
        model, outputs = self.model, []
        rows, place = distinct_rois(rois, model.roi_op, model.strides)
        chunks = rois[rows].to(maps[0].device, non_blocking=True).chunk(max(1, -(-len(rows) // rois_per_chunk)))
        # All chunks share one context, because autocast clears its cache of cast weights when the context ends.
        with autocast(maps[0].device, self.dtype):
            for chunk in chunks:
                outputs.append(model.classify(maps, chunk))
        logits = torch.cat([logits for logits, _ in outputs])
        scores = logits if model.classifier == "svm" else logits.softmax(dim=1)
        deltas = torch.cat([d for _, d in outputs]) * model.delta_std + model.delta_mean
        place = place.to(scores.device, non_blocking=True)
        return scores[place], deltas[place]


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Context manager for a forward pass in mixed precision if `dtype` is bfloat16, or full precision if float32."""
    with full_precision(dtype), torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield


@contextmanager
def full_precision(dtype: torch.dtype) -> Iterator[None]:
    """Context manager: disable TF32 (10-bit mantissa) for convolutions on a GPU if `dtype` is float32.

    The backward pass must also run in the `with` block. The process-wide flags are restored after the block.
    """
    if dtype != torch.float32:
        yield
        return
    flags: Any = torch.backends.cudnn
    before = flags.conv.fp32_precision, flags.rnn.fp32_precision
    try:
        old = flags.allow_tf32  # torch.export reads this flag; it must agree with the other flags
    except RuntimeError:  # raised if the caller set only one of the other flags
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


def at_levels(rois: Tensor, scales: Tensor, compute: Callable[[int, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Call `compute` for the RoIs of each level of an image pyramid, and return its results in the order of the RoIs.

    rois: (P, 4) in pixels of the original image. `nearest_level` selects their levels. scales: (L,), one per level.
    compute: takes the index of a level and its RoIs (R, 5), batch index 0 and x1 y1 x2 y2 in pixels of the original
    image, and returns tensors with R rows. It is called for every level that has RoIs, and always for the first level.
    """
    indexed = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1)
    if len(scales) == 1:
        return compute(0, indexed)
    level = nearest_level(rois, scales)
    parts, order = [], []
    for j in range(len(scales)):
        rows = torch.nonzero(level == j).flatten()
        if len(rows) or j == 0:
            parts.append(compute(j, indexed[rows]))
            order.append(rows)
    back = torch.cat(order).argsort()
    return tuple(torch.cat(part)[back] for part in zip(*parts, strict=True))
