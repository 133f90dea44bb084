"""Sampling of the RoIs of a training step, and their targets (section 2.3 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.settings import SolverSettings
from fastrcnn.structures import RoITargets

PAPER = SolverSettings()


def match(rois: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest IoU (R,) of each RoI (R, 4) with a ground-truth box (G, 4), and the index (R,) of that box.

    If there is no ground truth, all IoUs and indices are 0.
    """
    if len(truth) == 0:
        return rois.new_zeros(len(rois)), rois.new_zeros(len(rois), dtype=torch.long)
    overlap, index = box_ops.iou(rois, truth).max(dim=1)
    return overlap, index


def choose(candidates: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Choose `n` of the `candidates` (M,) at random without replacement; if M <= n, return all in order."""
    if len(candidates) <= n:
        return candidates
    return candidates[torch.randperm(len(candidates), generator=generator)[:n]]


@dataclass(frozen=True)
class RoISampler:
    """Draws RoIs from proposals and ground-truth boxes.

    delta_mean, delta_std: (classes + 1, 4), the mean and standard deviation that normalise regression targets.
    settings: `rois_per_image` is the number of RoIs per image. Fewer are drawn if there are not enough foreground and
        background RoIs. `fg_fraction` is the maximum fraction of foreground RoIs. `fg_iou` and `bg_iou` are the limits
        of the IoU with the ground truth for foreground and background; the upper limit bg_iou[1] is exclusive.
    """

    delta_mean: Tensor
    delta_std: Tensor
    settings: SolverSettings = field(default_factory=SolverSettings)

    def __call__(
        self, proposals: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor], seeds: Sequence[int]
    ) -> tuple[Tensor, RoITargets]:
        """Draw RoIs (K, 5) [image index, x1, y1, x2, y2] and their targets for N images. Boxes are half-open.

        proposals: N tensors (P_i, 4). boxes: N tensors (G_i, 4), the ground truth, which is added to the proposals.
        labels: N tensors (G_i,). All tensors are on the CPU. seeds: one number per image. An image with the same seed
        gets the same RoIs in every batch and process.
        """
        images = zip(proposals, boxes, labels, seeds, strict=True)
        drawn = [self._one_image(i, *image) for i, image in enumerate(images)]
        rois, target_labels, deltas = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return rois, RoITargets(target_labels, deltas)

    def _one_image(
        self, number: int, proposals: Tensor, truth: Tensor, labels: Tensor, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw RoIs (K, 5) and their labels (K,) and deltas (K, 4) for the image with index `number` in the batch."""
        s, rois, generator = self.settings, torch.cat((proposals, truth)), torch.Generator().manual_seed(seed)
        overlap, index = match(rois, truth)
        foreground = torch.nonzero(overlap >= s.fg_iou).flatten()
        background = torch.nonzero((overlap >= s.bg_iou[0]) & (overlap < s.bg_iou[1])).flatten()
        foreground = choose(foreground, round(s.fg_fraction * s.rois_per_image), generator)
        background = choose(background, s.rois_per_image - len(foreground), generator)
        kept = rois[torch.cat((foreground, background))]
        target_labels = labels.new_zeros(len(kept))
        deltas = rois.new_zeros((len(kept), 4))
        n = len(foreground)
        if n:
            target_labels[:n] = own = labels[index[foreground]]
            raw = box_ops.encode(rois[foreground], truth[index[foreground]])
            deltas[:n] = (raw - self.delta_mean[own]) / self.delta_std[own]
        return torch.cat((kept.new_full((len(kept), 1), number), kept), dim=1), target_labels, deltas


def delta_statistics(
    images: Iterable[tuple[Tensor, Tensor, Tensor]],
    num_classes: int,
    fg_iou: float = PAPER.fg_iou,
    flip: bool = True,
    class_agnostic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation, each (classes + 1, 4) float32, of a training set's regression targets.

    images: for each image, the proposals (P, 4), the ground-truth boxes (G, 4) and their labels (G,). Boxes are in
        pixels of the image.
    fg_iou: minimum IoU of a proposal with a ground-truth box for the proposal to have a target. Ground-truth boxes are
        included, with target 0.
    flip: also include the mirrored copy of every image.
    class_agnostic: compute the statistics over all classes together; every class gets the same values.

    The standard deviation is 1 for a class without targets and for a component that does not vary. Source:
    `_compute_targets` and `add_bbox_regression_targets` in the author's lib/roi_data_layer/roidb.py.
    """
    count, total, squares = (torch.zeros(num_classes + 1, n, dtype=torch.float64) for n in (1, 4, 4))
    for proposals, truth, labels in images:
        rois = torch.cat((proposals, truth))
        overlap, index = match(rois, truth)
        kept = torch.nonzero(overlap >= fg_iou).flatten()
        deltas = box_ops.encode(rois[kept].double(), truth[index[kept]].double())
        if flip:
            deltas = torch.cat((deltas, deltas * deltas.new_tensor([-1, 1, 1, 1])))
        owner = labels[index[kept]].repeat(2 if flip else 1)
        count.index_add_(0, owner, torch.ones(len(owner), 1, dtype=torch.float64))
        total.index_add_(0, owner, deltas)
        squares.index_add_(0, owner, deltas.square())
    if class_agnostic:
        count, total, squares = (t.sum(0, keepdim=True).expand_as(t) for t in (count, total, squares))
    mean = total / count.clamp(min=1)
    std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-6, std, torch.ones_like(std)).float()
