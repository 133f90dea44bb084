"""The optimiser and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrcnn.settings import OptimizerName, ScheduleName, SolverSettings

PAPER = SolverSettings()


def parameter_groups(model: nn.Module, weight_decay: float, bias_lr_factor: float) -> list[dict]:
    """Return groups of the trainable parameters for an optimiser. `lr_factor` of a group scales its learning rate.

    Biases have `bias_lr_factor` times the learning rate and no weight decay, as in the author's prototxt files. The
    parameters of batch normalisation have the normal learning rate and no weight decay.
    """
    weights: dict = {"params": [], "weight_decay": weight_decay, "lr_factor": 1.0}
    biases: dict = {"params": [], "weight_decay": 0.0, "lr_factor": bias_lr_factor}
    norms: dict = {"params": [], "weight_decay": 0.0, "lr_factor": 1.0}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_norm = isinstance(module, nn.BatchNorm2d)
                group = norms if is_norm else biases if name == "bias" else weights
                group["params"].append(parameter)
    return [group for group in (weights, biases, norms) if group["params"]]


class CaffeSGD(torch.optim.Optimizer):
    """Stochastic gradient descent as in Caffe: V = momentum V + rate (gradient + decay W), W = W - V.

    In torch.optim.SGD, the rate multiplies the entire velocity V, so a lower rate immediately reduces the contributions
    of earlier steps. Here, these contributions decay over the next steps. At a constant rate, both are equal.
    groups: the result of parameter_groups. Source: Caffe, src/caffe/solvers/sgd_solver.cpp.
    """

    def __init__(self, groups: list[dict], momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for p in weights:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            velocities = [self.state[p]["momentum_buffer"] for p in weights]
            slopes = torch._foreach_add([p.grad for p in weights], weights, alpha=group["weight_decay"])  # type: ignore[misc]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, slopes, alpha=group["lr"])
            torch._foreach_sub_(weights, velocities)


def clip_gradients(optimizer: torch.optim.Optimizer, largest: float = math.inf) -> Tensor:
    """Scale the gradient of all trained parameters down to the Euclidean norm `largest` if its norm is greater.

    Returns the norm before scaling, as a scalar tensor on the device.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
    if largest < math.inf:
        torch.nn.utils.clip_grads_with_norm_(weights, largest, norm)
    return norm


def make_optimizer(
    model: nn.Module,
    momentum: float = PAPER.momentum,
    weight_decay: float = PAPER.weight_decay,
    bias_lr_factor: float = PAPER.bias_lr_factor,
    optimizer: OptimizerName = PAPER.optimizer,
) -> torch.optim.Optimizer:
    """Create the optimiser, by default with the paper's settings. The learning rate is 0 until `set_rate` sets it.

    optimizer: caffe_sgd is SGD as in Caffe, and sgd is torch's SGD; fused_sgd is torch's SGD in a single kernel for all
    weights; adamw is torch's AdamW (Loshchilov and Hutter, 2019) in a single kernel, with `momentum` as its first beta.
    """
    groups = parameter_groups(model, weight_decay, bias_lr_factor)
    if optimizer == "caffe_sgd":
        return CaffeSGD(groups, momentum)
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=optimizer == "fused_sgd")


def load_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state from `state_dict` into the optimiser. Raises ValueError if it does not fit the parameters."""
    shapes: dict[Any, torch.Size] = {}
    if len(saved["param_groups"]) != len(optimizer.param_groups):
        raise ValueError("it has a different number of parameter groups than in this run")
    adam = isinstance(optimizer, torch.optim.AdamW)
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        inertia = group.get("betas", (None,)) if adam else (group.get("momentum"),)
        numbers = [*(group.get(key) for key in ("lr", "lr_factor", "weight_decay")), *inertia]
        places = group.get("params")
        if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise ValueError(
                "the learning rate, momentum or weight decay of a parameter group is missing or not finite"
            )
        if not isinstance(places, list) or len(places) != len(own["params"]) or not all(type(n) is int for n in places):
            raise ValueError("a parameter group has a different number of parameters than in this run")
        shapes |= {place: weight.shape for place, weight in zip(places, own["params"], strict=True)}
    names = {"step", "exp_avg", "exp_avg_sq"} if adam else {"momentum_buffer"}
    for place, values in saved["state"].items():
        buffers = {name: value for name, value in values.items() if adam or value is not None}
        if buffers.keys() not in (set(), names) or not all(isinstance(value, Tensor) for value in buffers.values()):
            raise ValueError(f"the state of parameter {place} does not consist of {' and '.join(sorted(names))}")
        for name, value in buffers.items():
            if value.shape != (() if name == "step" else shapes.get(place)):
                raise ValueError(f"{name} of parameter {place} has the wrong shape {tuple(value.shape)}")
    optimizer.load_state_dict(saved)


def learning_rate(
    step: int,
    iterations: int,
    lr: float,
    schedule: ScheduleName = PAPER.schedule,
    lr_steps: Sequence[int] = PAPER.lr_steps,
    lr_gamma: float = PAPER.lr_gamma,
    warmup: int = PAPER.warmup,
) -> float:
    """Return the learning rate of step `step` (counted from 0) of `iterations` steps.

    lr: the rate before any change. schedule: "step" multiplies the rate by `lr_gamma` at each of `lr_steps`; "cosine"
    lowers it to 0 along half a cosine wave. warmup: number of steps at the start over which the rate rises linearly.
    """
    if schedule == "cosine":
        rate = lr * 0.5 * (1 + math.cos(math.pi * step / iterations))
    else:
        rate = lr * lr_gamma ** sum(step >= s for s in lr_steps)
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group to `rate` times the `lr_factor` of the group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
