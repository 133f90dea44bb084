"""The multi-task loss (section 2.3 of the paper, equations 1 to 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastrcnn.structures import RoITargets


@dataclass(frozen=True)
class Losses:
    """The losses of a batch; all tensors are scalars."""

    classification: Tensor
    box: Tensor  # not multiplied by box_weight
    total: Tensor


def fast_rcnn_loss(logits: Tensor, deltas: Tensor, targets: RoITargets, box_weight: float = 1.0) -> Losses:
    """Compute the cross-entropy over all RoIs, plus `box_weight` times the smooth L1 loss over foreground RoIs.

    logits: (K, classes + 1). deltas: (K, classes + 1, 4); only the deltas of the target class are used.
    Both sums are divided by the number of RoIs K, as in the author's Caffe layers. For K = 0, the losses are 0, and
    gradients can still be computed.
    """
    k = max(len(logits), 1)
    classification = functional.cross_entropy(logits, targets.labels, reduction="sum") / k
    own = deltas[torch.arange(len(deltas), device=deltas.device), targets.labels]  # (K, 4)
    foreground = (targets.labels > 0)[:, None]
    per_term = functional.smooth_l1_loss(own, targets.deltas, reduction="none")  # (K, 4)
    box = torch.where(foreground, per_term, torch.zeros_like(per_term)).sum() / k
    return Losses(classification, box, classification + box_weight * box)
