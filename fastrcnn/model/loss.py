"""The multi-task loss (section 2.3 of the paper, equations 1 to 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastrcnn.structures import RoITargets


@dataclass(frozen=True)
class Losses:
    """Scalars."""

    classification: Tensor
    box: Tensor  # before its weight
    total: Tensor


def fast_rcnn_loss(logits: Tensor, deltas: Tensor, targets: RoITargets, box_weight: float = 1.0) -> Losses:
    """Cross-entropy over all RoIs, plus `box_weight` times smooth L1 over the foreground.

    logits: (K, classes + 1); deltas: (K, classes + 1, 4), of which only the true class's count.
    Both sums are divided by K, the number of RoIs, as the author's Caffe layers do. K = 0 gives 0, with gradients.
    """
    k = max(len(logits), 1)
    classification = functional.cross_entropy(logits, targets.labels, reduction="sum") / k
    own = deltas[torch.arange(len(deltas), device=deltas.device), targets.labels]  # (K, 4)
    foreground = (targets.labels > 0)[:, None]
    per_term = functional.smooth_l1_loss(own, targets.deltas, reduction="none")  # (K, 4)
    box = torch.where(foreground, per_term, torch.zeros_like(per_term)).sum() / k
    return Losses(classification, box, classification + box_weight * box)
