"""What a new run measures in its training set before the first step: the statistics of the regression targets, and how
large the maps are that RoIs are pooled from."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import collate
from fastrcnn.model.fast_rcnn import FastRCNN, normalise_box_layer, pool_rois, scaled_rois
from fastrcnn.model.sampling import delta_statistics
from fastrcnn.parallel import distributed

log = logging.getLogger(__name__)
IMAGES, ROIS = 16, 64  # of the training set, and of each image, that are looked at


def initialise(
    model: FastRCNN, images: DetectionDataset, fg_iou: float, started: bool, new_labels: Sequence[int] = ()
) -> None:
    """Sets the model's scale of maps, and its mean and standard deviation of regression targets.

    fg_iou: least overlap of a proposal whose target counts. started: whether the model has the outputs of another run,
    which bring their statistics; new_labels: the classes that that run did not have, whose statistics are computed. A
    .caffemodel has none: its deltas are as they are, which the loss would count a hundredth of what the recipe means,
    so its box layer is normalised.
    """
    if model.map_scale is not None and (model.map_scale == 1).all():  # else they came with the weights
        model.map_scale.copy_(distributed.from_first(measure_map_scale(model, images)))
    known = started and bool(model.delta_mean.any() or (model.delta_std != 1).any())
    agnostic = model.bbox_pred.out_features == 4
    if known and (agnostic or not new_labels):
        return
    if known:
        log.info("computing the statistics of the regression targets of the new classes")
    elif started:
        log.info("its box layer is not normalised; computing the statistics of the regression targets")
    else:
        log.info("%d training images; computing the statistics of their regression targets", len(images))
    pairs = (images.truth_and_proposals(i) for i in range(len(images)))
    mean, std = delta_statistics(pairs, model.num_classes, fg_iou, images.augmentation.flip, agnostic)
    if known:
        for own, computed in ((model.delta_mean, mean), (model.delta_std, std)):
            own[list(new_labels)] = computed[list(new_labels)].to(own)
        return
    if started:
        normalise_box_layer(model, mean, std)  # what it detects stays the same
    model.delta_mean.copy_(mean)
    model.delta_std.copy_(std)


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
