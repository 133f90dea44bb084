"""The optimiser and its schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrcnn.settings import OptimizerName, ScheduleName, SolverSettings

PAPER = SolverSettings()


def parameter_groups(model: nn.Module, weight_decay: float, bias_lr_factor: float) -> list[dict]:
    """Parameters that train, in groups, each with its factor on the learning rate as `lr_factor`.

    Biases learn at `bias_lr_factor` times the rate and do not decay, as in the author's solver files; the scales of
    batch normalisation do not decay either.
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
    """Stochastic gradient descent as Caffe computes it: V = momentum V + rate (gradient + decay W), W = W - V.

    In torch.optim.SGD the rate multiplies the whole velocity, so that a lower rate slows at once what was built up at
    the higher one; here it runs out over the next steps. The two are the same while the rate stays. Source:
    src/caffe/solvers/sgd_solver.cpp, Regularize and ComputeUpdateValue.
    """

    def __init__(self, groups: list[dict], momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that are there."""
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
    """The Euclidean norm (), on the device, of the gradient of all that is trained, before it is scaled down to
    `largest` where it is longer."""
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
    """The optimiser, with the paper's settings unless others are given; the rate is set for each step by `set_rate`.

    optimizer: caffe_sgd, see CaffeSGD; sgd, torch's own; fused_sgd, the same with one kernel for all weights; adamw,
    torch's with one kernel (Loshchilov and Hutter, 2019), whose first beta is the momentum.
    """
    groups = parameter_groups(model, weight_decay, bias_lr_factor)
    if optimizer == "caffe_sgd":
        return CaffeSGD(groups, momentum)
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=optimizer == "fused_sgd")


def load_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Puts a state that was saved into the optimiser. Raises ValueError where it is not that of these parameters."""
    shapes: dict[Any, torch.Size] = {}
    if len(saved["param_groups"]) != len(optimizer.param_groups):
        raise ValueError("it has other groups of parameters")
    adam = isinstance(optimizer, torch.optim.AdamW)
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        inertia = group.get("betas", (None,)) if adam else (group.get("momentum"),)
        numbers = [*(group.get(key) for key in ("lr", "lr_factor", "weight_decay")), *inertia]
        places = group.get("params")
        if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise ValueError("a group of parameters has no finite rate, momentum or decay")
        if not isinstance(places, list) or len(places) != len(own["params"]) or not all(type(n) is int for n in places):
            raise ValueError("a group has other parameters")
        shapes |= {place: weight.shape for place, weight in zip(places, own["params"], strict=True)}
    names = {"step", "exp_avg", "exp_avg_sq"} if adam else {"momentum_buffer"}
    for place, values in saved["state"].items():
        buffers = {name: value for name, value in values.items() if adam or value is not None}
        if buffers.keys() not in (set(), names) or not all(isinstance(value, Tensor) for value in buffers.values()):
            raise ValueError(f"it has other things than {' and '.join(sorted(names))}")
        for name, value in buffers.items():
            if value.shape != (() if name == "step" else shapes.get(place)):
                raise ValueError(f"{name} of parameter {place} is {tuple(value.shape)}")
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
    """The rate of step number `step`, counted from 0, of `iterations`.

    schedule: "step" multiplies by `lr_gamma` at each of `lr_steps`; "cosine" falls to 0 along half a wave.
    warmup: steps over which the rate first rises in a straight line.
    """
    if schedule == "cosine":
        rate = lr * 0.5 * (1 + math.cos(math.pi * step / iterations))
    else:
        rate = lr * lr_gamma ** sum(step >= s for s in lr_steps)
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group the rate times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
