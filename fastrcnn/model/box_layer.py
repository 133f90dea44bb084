"""The box layer between training and other programs: the same deltas, normalised by other statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrcnn.model.fast_rcnn import FastRCNN


def box_layer_for(model: FastRCNN, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (4 K, D) and bias (4 K,) of the box layer whose deltas, times `std` plus `mean`, are the model's.

    mean, std: (classes + 1, 4). K: classes + 1, or 1 in a class-agnostic model, whose statistics are one row for all.
    With mean 0 and std 1 this is what `snapshot` in the author's lib/fast_rcnn/train.py saves.
    """
    rows = model.bbox_pred.out_features // 4
    old_mean, old_std, mean, std = (
        t[-rows:].to(model.delta_mean.device, torch.float64).flatten()
        for t in (model.delta_mean, model.delta_std, mean, std)
    )
    weight = model.bbox_pred.weight.detach().double() * (old_std / std)[:, None]
    bias = (model.bbox_pred.bias.detach().double() * old_std + old_mean - mean) / std
    return weight.float(), bias.float()


@torch.no_grad()
def normalise_box_layer(model: FastRCNN, mean: Tensor, std: Tensor) -> None:
    """Makes `mean` and `std` (classes + 1, 4) the model's statistics; what it detects stays the same."""
    weight, bias = box_layer_for(model, mean, std)
    model.bbox_pred.weight.copy_(weight)
    model.bbox_pred.bias.copy_(bias)
    model.delta_mean.copy_(mean)
    model.delta_std.copy_(std)
