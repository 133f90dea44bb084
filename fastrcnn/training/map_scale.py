"""How large the maps are that RoIs are pooled from, and the factors that make them fit a new layer above."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import collate
from fastrcnn.model.fast_rcnn import FastRCNN, pool_rois, scaled_rois

log = logging.getLogger(__name__)
IMAGES, ROIS = 16, 64  # of the training set, and of each image, that are looked at


@torch.no_grad()
def measure_map_scale(model: FastRCNN, images: DetectionDataset) -> Tensor:
    """Factors (maps,) that give what is pooled from each map a mean square of 1/2, so that a layer above with He's
    initialisation begins with outputs of variance 1. A map that is 0 everywhere has the factor 1.

    The images are evenly spaced in the training set, and so are the RoIs among the proposals of an image. Data decide
    as in Krähenbühl and others, Data-dependent initializations of convolutional neural networks, 2016; but a factor on
    the weights alone would leave inputs of tens or hundreds, on which a step of the solver depends by their square.
    """
    squares, training, device = [], model.training, model.delta_mean.device
    model.eval()
    for index in np.unique(np.linspace(0, len(images) - 1, IMAGES).astype(int)).tolist():
        batch = collate([images[0, index]])
        boxes = batch.proposals[0]
        boxes = boxes[:: max(1, len(boxes) // ROIS)][:ROIS]
        rois = torch.cat((boxes.new_zeros(len(boxes), 1), boxes), dim=1)
        rois = scaled_rois(rois, model.roi_op, batch.scales).to(device)
        maps = model.features(batch.images.to(device), batch.sizes.to(device))
        pooled = [
            pool_rois(m, rois, model.roi_size, 1 / stride, model.roi_op)
            for m, stride in zip(maps, model.strides, strict=True)
        ]
        squares.append(torch.stack([p.double().square().mean() for p in pooled]))
    model.train(training)
    size = torch.stack(squares).nanmean(dim=0).cpu()  # an image without proposals has none
    scale = torch.where((size > 0) & size.isfinite(), (2 * size).rsqrt(), 1.0)
    for name, square, factor in zip(model.roi_features, size.tolist(), scale.tolist(), strict=True):
        log.info("%s: RoIs pool values of root mean square %.3g; multiplied by %.3g", name, square**0.5, factor)
    return scale.float()
