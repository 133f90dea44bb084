"""Initialise a new run from its training set: the scale of feature maps and the statistics of regression targets."""

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
IMAGES, ROIS = 16, 64  # number of training images, and of RoIs per image, used to measure the scale of feature maps


def initialise(
    model: FastRCNN, images: DetectionDataset, fg_iou: float, started: bool, new_labels: Sequence[int] = ()
) -> None:
    """Set the model's scale of feature maps, and the mean and standard deviation of its regression targets.

    Values that the model already has from another run are kept.
    fg_iou: minimum IoU of a proposal with a ground-truth box for its regression target to be included.
    started: whether the weights of the output layers come from another run or detector.
    new_labels: labels of the classes that the other run did not have. Only their statistics are computed.

    A .caffemodel contains no statistics, because its box layer predicts deltas that are not normalised. Their loss is
    about a hundredth of the loss of normalised deltas. The box layer is therefore converted to predict normalised
    deltas.
    """
    if model.map_scale is not None and (model.map_scale == 1).all():  # otherwise the weights include the scale
        model.map_scale.copy_(distributed.from_first(measure_map_scale(model, images)))
    known = started and bool(model.delta_mean.any() or (model.delta_std != 1).any())
    agnostic = model.bbox_pred.out_features == 4
    if known and (agnostic or not new_labels):
        return
    if known:
        log.info("Computing the mean and standard deviation of the regression targets for the new classes")
    elif started:
        log.info(
            "The box layer predicts deltas that are not normalised. Computing the mean and standard deviation of the "
            "regression targets to normalise them"
        )
    else:
        log.info("Computing the mean and standard deviation of the regression targets of the training images")
    pairs = (images.truth_and_proposals(i) for i in range(len(images)))
    mean, std = delta_statistics(pairs, model.num_classes, fg_iou, images.augmentation.flip, agnostic)
    if known:
        for own, computed in ((model.delta_mean, mean), (model.delta_std, std)):
            own[list(new_labels)] = computed[list(new_labels)].to(own)
        return
    if started:
        normalise_box_layer(model, mean, std)  # does not change the detections
    model.delta_mean.copy_(mean)
    model.delta_std.copy_(std)


@torch.no_grad()
def measure_map_scale(model: FastRCNN, images: DetectionDataset) -> Tensor:
    """Compute a factor for each feature map, so that the scaled values that RoIs pool have a mean square of 1/2.

    Returns (number of maps,) float32 on the CPU. The factor of a map that is 0 everywhere is 1. If the next layer is
    initialised as by He et al., its outputs then have a variance of 1. The values are measured in images that are
    evenly spaced in the training set, with RoIs that are evenly spaced among an image's proposals.

    The factors depend on the data, as in Krähenbühl et al., "Data-dependent initializations of convolutional neural
    networks", 2016. They scale the inputs of the layer instead of its weights, because the effect of a solver step
    depends on the square of the inputs. Without the factors, the inputs could be in the tens or hundreds.
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
    size = torch.stack(squares).nanmean(dim=0).cpu()  # NaN for an image without proposals
    scale = torch.where((size > 0) & size.isfinite(), (2 * size).rsqrt(), 1.0)
    for name, square, factor in zip(model.roi_features, size.tolist(), scale.tolist(), strict=True):
        text = "%s: pooled values have a root mean square of %.3g and are multiplied by %.3g"
        log.info(text, name, square**0.5, factor)
    return scale.float()
