"""How small fc6 and fc7 are made, and what that saves, in words."""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from fastrcnn.errors import UserError
from fastrcnn.inference.network import TorchNetwork, autocast
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.head import LAYERS, Decomposition, Ranks, largest_rank, parameter_count, ranks_for, search

log = logging.getLogger(__name__)
TRIALS = 6  # evaluations in a search, beside that of the model as it is
ROIS, ROUNDS = 2000, 5  # of the timing


def shown(ranks: Ranks) -> str:
    return ", ".join(f"{name} {_shown(rank)}" for name, rank in ranks.items())


def _shown(rank: int | None) -> str:
    return "as it is" if rank is None else f"rank {rank}"


def ranks_that_keep(keep: float, found: Mapping[str, Decomposition]) -> Ranks:
    """The ranks that keep this share of each layer's energy. Says which layers stay as they are, since that takes too
    many; raises UserError where all do."""
    ranks = ranks_for(found, keep)
    stay = [
        f"{name}: a rank of {found[name].rank_for(keep)} is needed to keep {keep:g} of its energy, but only up to "
        f"{largest_rank(*found[name].weight.shape)} are two layers smaller than one"
        for name, rank in ranks.items()
        if rank is None
    ]
    if not any(ranks.values()):
        raise UserError(f"keep={keep}: there is nothing to compress.\n" + "\n".join(stay))
    for line in stay:
        log.info("%s; it stays as it is", line)
    return ranks


def ranks_within(
    budget: float, found: Mapping[str, Decomposition], before: float | None, measure: Callable[[Ranks], float]
) -> tuple[Ranks, float, list[str]]:
    """The smallest ranks tried that lose at most `budget` points, their mAP, and what was tried as people read it.

    before, and what `measure` gives for ranks: mAP, 0 to 1. Raises UserError where nothing tried is good enough.
    """
    if before is None:
        raise UserError("budget: there is no mAP to lose, as no class has truth in these pictures. Give keep=0.9.")
    tried: list[str] = []

    def measured(keep: float, ranks: Ranks) -> float:
        log.info("trial %d of at most %d: %s", len(tried) + 1, TRIALS, shown(ranks))
        value = measure(ranks)
        lost = 100 * (value - before)
        tried.append(f"keep={keep:.3f}: {shown(ranks)}: mAP {100 * value:.2f} ({lost:+.2f} points)")
        log.info("%s", tried[-1])
        return value

    good = [t for t in search(found, measured, before - budget / 100 - 1e-9, TRIALS) if t.enough]
    if not good:
        raise UserError(f"budget={budget:g}: nothing that was tried loses so little.\n" + "\n".join(tried))
    return good[-1].ranks, good[-1].value, tried


def size_lines(before: FastRCNN, after: FastRCNN, ranks: Ranks) -> list[str]:
    """A table of the weights of each layer and the parameters of the whole, before and after."""
    rows = [
        (f"{name}, {_shown(ranks.get(name))}: weights", _weights(before, name), _weights(after, name))
        for name in LAYERS
    ]
    rows.append(("whole network: parameters", parameter_count(before), parameter_count(after)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':<{width}}  {'before':>13}  {'after':>13}   share"]
    return lines + [f"{what:<{width}}  {a:>13,}  {b:>13,}  {100 * b / a:5.1f} %" for what, a, b in rows]


def _weights(model: FastRCNN, name: str) -> int:
    """Weights of fc6 or fc7, of both factors where it is two; biases are not counted."""
    return sum(p.numel() for n, p in model.named_parameters() if re.fullmatch(rf"head\.{name}\.(.*\.)?weight", n))


def time_line(before: TorchNetwork, after: TorchNetwork) -> str:
    """How long fc6 and fc7 take for 2,000 RoIs: medians of runs that take turns, so that both meet the same machine."""
    device, dtype, side = before.device, before.dtype, before.model.roi_size
    fc6 = before.model.state_dict()["head.fc6.weight"]  # (D, C * side^2)
    pooled = torch.rand(ROIS, fc6.shape[1] // side**2, side, side, device=device)
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode(), autocast(device, dtype):
        for turn in range(ROUNDS + 1):
            for network, taken in zip((before, after), times, strict=True):
                start = time.perf_counter()
                network.model.head(pooled)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:  # the first is slower, whatever it runs
                    taken.append(time.perf_counter() - start)
    a, b = (statistics.median(taken) for taken in times)
    return (
        f"fc6 and fc7 of {ROIS:,} RoIs: {a / b:.2f} times as fast "
        f"({1000 * a:.0f} ms before, {1000 * b:.0f} ms after; {device}, {str(dtype).removeprefix('torch.')})"
    )
