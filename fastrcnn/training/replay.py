"""Record the inputs of a step with a non-finite loss, and replay it to find the first layer with non-finite values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastrcnn.inference.network import autocast
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.loss import Losses, fast_rcnn_loss
from fastrcnn.structures import Batch, RoITargets


def evidence(
    batch: Batch,
    rois: torch.Tensor,
    targets: RoITargets,
    losses: Losses,
    dropout_seed: int,
    dtype: torch.dtype,
    box_weight: float,
) -> dict[str, Any]:
    """Return the losses and all inputs of a step except the weights, as additional entries for a checkpoint."""
    return {
        "image_ids": [s.image_id for s in batch.samples],
        "images": batch.images,
        "sizes": batch.sizes,
        "scales": batch.scales,
        "rois": rois,
        "labels": targets.labels,
        "deltas": targets.deltas,
        "loss_cls": losses.classification.item(),
        "loss_box": losses.box.item(),
        "dropout_seed": dropout_seed,
        "precision": str(dtype).removeprefix("torch."),
        "box_weight": box_weight,
    }


@dataclass(frozen=True)
class Replay:
    """The result of a replayed step: its losses, and the places of its non-finite values."""

    loss_cls: float
    loss_box: float
    inputs: list[str]  # names of the inputs with non-finite values; possible: images, rois, deltas
    weights: list[str]  # names of the model's tensors with non-finite values
    layer: str | None  # name of the first layer with non-finite outputs
    rois: list[int]  # indices of the RoIs with non-finite outputs


def replay(model: FastRCNN, content: dict[str, Any]) -> Replay:
    """Compute the outputs and losses of a recorded step again, on the model's device.

    The model must already have the weights of the step. content: a checkpoint with the entries from `evidence`.
    """
    device = model.delta_mean.device
    broken: dict[str, bool] = {}  # layers in the order of their first call; a layer can be called for several strips

    def look(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            finite = all(_finite(o) for o in outputs if isinstance(o, torch.Tensor))
            broken[name] = broken.get(name, False) or not finite

        return hook

    hooks = [m.register_forward_hook(look(n)) for n, m in model.named_modules() if not list(m.children())]
    model.train()
    torch.manual_seed(content["dropout_seed"])
    targets = RoITargets(content["labels"].to(device), content["deltas"].to(device))
    try:
        with torch.no_grad(), autocast(device, getattr(torch, content["precision"])):
            logits, deltas = model(
                content["images"].to(device),
                content["rois"].to(device),
                content["sizes"].to(device),
                content["scales"].to(device),
            )
        losses = fast_rcnn_loss(logits, deltas, targets, content["box_weight"])
    finally:
        for hook in hooks:
            hook.remove()
    outputs = torch.cat((logits, deltas.flatten(1)), dim=1)
    return Replay(
        loss_cls=losses.classification.item(),
        loss_box=losses.box.item(),
        inputs=[name for name in ("images", "rois", "deltas") if not _finite(content[name])],
        weights=[name for name, value in content["model"].items() if not _finite(value)],
        layer=next((name for name, bad in broken.items() if bad), None),
        rois=torch.nonzero(~torch.isfinite(outputs).all(dim=1)).flatten().tolist(),
    )


def _finite(values: torch.Tensor) -> bool:
    return not values.is_floating_point() or bool(torch.isfinite(values).all())
