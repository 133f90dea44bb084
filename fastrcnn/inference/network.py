"""What detection asks of a network, and FastRCNN behind that interface; onnx_network.py has ONNX Runtime behind it."""

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

Inputs = Callable[[Batch], Tensor | Sequence[Tensor]]  # the images, or their `frozen_maps`, on the model's device
Outputs = tuple[Tensor, Tensor]  # scores (P, classes + 1) and boxes (P, classes + 1, 4)


class Network(Protocol):
    """A trained network with its weights, ready to detect.

    classifier: "softmax" or "svm", what the scores are: probabilities or margins. device: where its outputs are, and
    whose memory it needs. runs_on: where it computes, in words.
    """

    classifier: Classifier
    device: torch.device
    runs_on: str

    def outputs(
        self, pyramid: Sequence[Batch], rois_per_chunk: int = 500, box_regression: bool = True
    ) -> list[Outputs]:
        """For each image of a batch its proposals' scores, background first, and boxes, in the image's own pixels and
        cut off at its border.

        pyramid: the same images at one or more scales; each RoI is pooled at the one that `nearest_level` says.
        rois_per_chunk: RoIs that go through fc6 and fc7 at a time, at most, which bounds memory.
        box_regression: whether RoIs are moved as the network says; else the boxes are the RoIs.
        """
        ...


def images_on(device: torch.device) -> Inputs:
    """The images of a batch, on the device, which may still be computing."""
    return lambda batch: batch.images.to(device, non_blocking=True)


class TorchNetwork:
    """FastRCNN as a Network, which computes in `dtype`. Leaves the model in eval mode."""

    def __init__(
        self,
        model: FastRCNN,
        dtype: torch.dtype = torch.float32,
        inputs: Inputs | None = None,
    ) -> None:
        """inputs: what the model is given of a batch; None: its images."""
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
            rois = pyramid[0].proposals[i]  # (P, 4), on the CPU: to compare them on a GPU is to wait for it many times
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
        """Class scores (P, classes + 1) and deltas (P, classes + 1, 4), not normalised, of one image's RoIs (P, 5) as
        `scaled_rois` gives them."""
        model, outputs = self.model, []
        rows, place = distinct_rois(rois, model.roi_op, model.strides)
        chunks = rois[rows].to(maps[0].device, non_blocking=True).chunk(max(1, -(-len(rows) // rois_per_chunk)))
        with autocast(maps[0].device, self.dtype):  # around all chunks: at its end autocast forgets the rounded weights
            for chunk in chunks:
                outputs.append(model.classify(maps, chunk))
        logits = torch.cat([logits for logits, _ in outputs])
        scores = logits if model.classifier == "svm" else logits.softmax(dim=1)
        deltas = torch.cat([d for _, d in outputs]) * model.delta_std + model.delta_mean
        return scores[place], deltas[place]


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


def at_levels(rois: Tensor, scales: Tensor, compute: Callable[[int, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `compute` gives for one image's RoIs (P, 4), in its own pixels, each at its level of the scales (L,).

    compute: takes the number of a level and RoIs (R, 5) in pixels of the image, returns tensors with R rows. It is
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
