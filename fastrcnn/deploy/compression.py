"""Choose the ranks of compressed fc6 and fc7 layers, and report the reduction in size and time."""

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
TRIALS = 6  # evaluations in a search, in addition to the evaluation of the original model
ROIS, ROUNDS = 2000, 5  # number of RoIs and of rounds for timing


def shown(ranks: Ranks) -> str:
    return ", ".join(f"{name} {_shown(rank)}" for name, rank in ranks.items())


def _shown(rank: int | None) -> str:
    return "unchanged" if rank is None else f"rank {rank}"


def ranks_that_keep(keep: float, found: Mapping[str, Decomposition]) -> Ranks:
    """Return the smallest ranks that keep the fraction `keep` of each layer's energy; see Decomposition.

    found: the decomposition of each layer by name. If the rank of a layer would be too high to reduce its size, its
    rank is None, and this is logged. Raises UserError if no layer can be compressed.
    """
    ranks = ranks_for(found, keep)
    stay = [
        f"{name}: keeping {keep:g} of its energy requires rank {found[name].rank_for(keep)}, but compression reduces "
        f"its size only up to rank {largest_rank(*found[name].weight.shape)}"
        for name, rank in ranks.items()
        if rank is None
    ]
    if not any(ranks.values()):
        raise UserError(f"keep={keep}: no layer can be compressed. Use a smaller keep.\n" + "\n".join(stay))
    for line in stay:
        log.info("%s. The layer stays unchanged.", line)
    return ranks


def ranks_within(
    budget: float, found: Mapping[str, Decomposition], before: float | None, measure: Callable[[Ranks], float]
) -> tuple[Ranks, float, list[str]]:
    """Return the smallest tried ranks that lose at most `budget` points of mAP, their mAP, and a text line per trial.

    found: the decomposition of each layer by name. before: mAP of the original model, 0 to 1, or None if undefined.
    measure: a function that returns the mAP for given ranks. Raises UserError if `before` is None or if every trial
    loses more than `budget` points.
    """
    if before is None:
        raise UserError(
            "budget: the mAP cannot be computed, because the images of this split have no ground truth. Set keep=0.9 "
            "instead of budget."
        )
    tried: list[str] = []

    def measured(keep: float, ranks: Ranks) -> float:
        log.info("Trial %d of at most %d: %s", len(tried) + 1, TRIALS, shown(ranks))
        value = measure(ranks)
        lost = 100 * (value - before)
        tried.append(f"keep={keep:.3f}: {shown(ranks)}: mAP {100 * value:.2f} ({lost:+.2f} points)")
        log.info("%s", tried[-1])
        return value

    good = [t for t in search(found, measured, before - budget / 100 - 1e-9, TRIALS) if t.enough]
    if not good:
        raise UserError(
            f"budget={budget:g}: every trial reduced the mAP by more than this number of points. Set a larger budget.\n"
            + "\n".join(tried)
        )
    return good[-1].ranks, good[-1].value, tried


def size_lines(before: FastRCNN, after: FastRCNN, ranks: Ranks) -> list[str]:
    """Return the lines of a table with the number of weights of each layer, and of all parameters, before and after."""
    rows = [
        (f"{name}, {_shown(ranks.get(name))}: weights", _weights(before, name), _weights(after, name))
        for name in LAYERS
    ]
    rows.append(("entire network: parameters", parameter_count(before), parameter_count(after)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':<{width}}  {'before':>13}  {'after':>13}   share"]
    return lines + [f"{what:<{width}}  {a:>13,}  {b:>13,}  {100 * b / a:5.1f} %" for what, a, b in rows]


def _weights(model: FastRCNN, name: str) -> int:
    """Count the weights of fc6 or fc7, or of its two factors. Biases are not counted."""
    return sum(p.numel() for n, p in model.named_parameters() if re.fullmatch(rf"head\.{name}\.(.*\.)?weight", n))


def time_line(before: TorchNetwork, after: TorchNetwork) -> str:
    """Measure the median time of fc6 and fc7 for ROIS RoIs before and after compression, and return it as text.

    The two networks are timed alternately, so that changes of the system load affect both.
    """
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
                if turn:  # the first round is a warm-up
                    taken.append(time.perf_counter() - start)
    a, b = (statistics.median(taken) for taken in times)
    return (
        f"fc6 and fc7 for {ROIS:,} RoIs: {a / b:.2f} times as fast "
        f"({1000 * a:.0f} ms before, {1000 * b:.0f} ms after; {device}, {str(dtype).removeprefix('torch.')})"
    )
