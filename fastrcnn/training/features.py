"""The features of fc7 that SVMs are trained on, picture by picture, as the network in detection computes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastrcnn.inference import autocast
from fastrcnn.model.fast_rcnn import FastRCNN, scaled_rois
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
    batches: Iterable[Batch],
    proposals: bool = True,
    rois_per_chunk: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Iterator[PictureFeatures]:
    """Features of each picture's truth boxes and, where `proposals`, of its proposals. Leaves the model in eval mode,
    in which there is no dropout.

    Boxes of the same cells each have their row, as with DEDUP_BOXES = 0 in the author's tools/train_svms.py. A picture
    without any RoI has (0, D) features.
    """
    model.eval()
    device = model.delta_mean.device
    for batch in batches:
        for i, (boxes, labels) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
            rois = torch.cat((boxes, batch.proposals[i])) if proposals else boxes
            features = np.zeros((len(rois), model.head.out_features), np.float32)
            if len(rois):
                images, sizes = batch.images[i : i + 1].to(device), batch.sizes[i : i + 1].to(device)
                indexed = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1).to(device)
                scaled = scaled_rois(indexed, model.roi_op, batch.scales[i : i + 1].to(device))
                with autocast(device, dtype):
                    maps = model.features(images, sizes)
                    parts = [model.roi_vectors(maps, chunk).float().cpu() for chunk in scaled.split(rois_per_chunk)]
                features = torch.cat(parts).numpy()
            yield PictureFeatures(features, rois, boxes, labels.numpy())


def mean_length(pictures: Iterable[PictureFeatures]) -> float:
    """Mean Euclidean length of the features of all RoIs; 0 where there is none."""
    total, count = 0.0, 0
    for picture in pictures:
        total += float(np.linalg.norm(picture.features.astype(np.float64), axis=1).sum())
        count += len(picture.features)
    return total / max(count, 1)
