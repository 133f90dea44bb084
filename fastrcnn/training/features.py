"""The features of fc7 that SVMs are trained on, picture by picture, as the network in detection computes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastrcnn.inference.network import at_levels, autocast
from fastrcnn.model.fast_rcnn import FastRCNN, scaled_rois
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Batch


@dataclass(frozen=True)
class PictureFeatures:
    """One picture: what the network sees in its RoIs, and its truth. Boxes are half-open pixels of the picture."""

    features: np.ndarray  # (R, D) float32
    rois: Tensor  # (R, 4) float32, the truth boxes first
    boxes: Tensor  # (G, 4) float32, the truth
    labels: np.ndarray  # (G,) int64, 1 .. number of classes


@torch.no_grad()
def picture_features(
    model: FastRCNN,
    pyramids: Iterable[Sequence[Batch]],
    proposals: bool = True,
    rois_per_chunk: int = DetectionSettings.rois_per_chunk,
    dtype: torch.dtype = torch.float32,
) -> Iterator[PictureFeatures]:
    """Features of each picture's truth boxes and, where `proposals`, of its proposals. Leaves the model in eval mode,
    in which there is no dropout.

    Boxes of the same cells each have their row, as with DEDUP_BOXES = 0 in the author's tools/train_svms.py. A picture
    without any RoI has (0, D) features. pyramids: see Network.outputs.
    """
    model.eval()
    for pyramid in pyramids:
        for i, (boxes, labels) in enumerate(zip(pyramid[0].boxes, pyramid[0].labels, strict=True)):
            rois = torch.cat((boxes, pyramid[0].proposals[i])) if proposals else boxes
            features = np.zeros((0, model.head.out_features), np.float32)
            if len(rois):
                features = _vectors(model, pyramid, i, rois, rois_per_chunk, dtype).cpu().numpy()
            yield PictureFeatures(features, rois, boxes, labels.numpy())


def _vectors(
    model: FastRCNN, pyramid: Sequence[Batch], i: int, rois: Tensor, rois_per_chunk: int, dtype: torch.dtype
) -> Tensor:
    """Features (R, D) of RoIs (R, 4) of picture number `i`."""
    device = model.delta_mean.device
    scales = torch.stack([level.scales[i] for level in pyramid])  # (L,)

    def at(level: int, some: Tensor) -> tuple[Tensor]:
        images, sizes = (t[i : i + 1].to(device) for t in (pyramid[level].images, pyramid[level].sizes))
        scaled = scaled_rois(some, model.roi_op, scales[level : level + 1]).to(device)
        with autocast(device, dtype):
            maps = model.features(images, sizes)
            return (torch.cat([model.roi_vectors(maps, c).float() for c in scaled.split(rois_per_chunk)]),)

    return at_levels(rois, scales, at)[0]


def mean_length(pictures: Iterable[PictureFeatures]) -> float:
    """Mean Euclidean length of the features of all RoIs; 0 where there is none."""
    total, count = 0.0, 0
    for picture in pictures:
        total += float(np.linalg.norm(picture.features.astype(np.float64), axis=1).sum())
        count += len(picture.features)
    return total / max(count, 1)
