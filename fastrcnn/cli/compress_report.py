"""What `fastrcnn compress` says of the outcome."""

from __future__ import annotations

import re
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fastrcnn.model.compress import Ranks
    from fastrcnn.model.fast_rcnn import FastRCNN

ROIS, ROUNDS = 2000, 5  # of the timing


def points(value: float) -> str:
    return f"{100 * value:.2f}"


def change(before: float, after: float) -> str:
    return f"{100 * (after - before):+.2f} points"


def shown(ranks: Ranks) -> str:
    return ", ".join(f"{name} {'as it is' if rank is None else f'rank {rank}'}" for name, rank in ranks.items())


def layer_weights(model: FastRCNN, name: str) -> int:
    """Weights of fc6 or fc7, of both factors where it is two; biases are not counted."""
    return sum(p.numel() for n, p in model.named_parameters() if re.fullmatch(rf"head\.{name}\.(.*\.)?weight", n))


def size_lines(before: FastRCNN, after: FastRCNN, ranks: Ranks) -> list[str]:
    """A table of the weights of each layer and the parameters of the whole, before and after."""
    from fastrcnn.model.compress import LAYERS
    from fastrcnn.model.head import parameter_count

    rows: list[tuple[str, int, int]] = []
    for name in LAYERS:
        rank = ranks.get(name)
        rows.append(
            (
                f"{name}, {'as it is' if rank is None else f'rank {rank}'}: weights",
                layer_weights(before, name),
                layer_weights(after, name),
            )
        )
    rows.append(("whole network: parameters", parameter_count(before), parameter_count(after)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':<{width}}  {'before':>13}  {'after':>13}   share"]
    return lines + [f"{what:<{width}}  {a:>13,}  {b:>13,}  {100 * b / a:5.1f} %" for what, a, b in rows]


def time_line(before: FastRCNN, after: FastRCNN, dtype: torch.dtype) -> str:
    """How long fc6 and fc7 take for 2,000 RoIs: medians of runs that take turns, so that both meet the same machine."""
    import torch

    from fastrcnn.inference.detect import autocast

    device = before.delta_mean.device
    fc6 = before.state_dict()["head.fc6.weight"]  # (D, C * side^2)
    side = before.roi_size
    pooled = torch.rand(ROIS, fc6.shape[1] // side**2, side, side, device=device)
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode(), autocast(device, dtype):
        for turn in range(ROUNDS + 1):
            for model, taken in zip((before, after), times, strict=True):
                start = time.perf_counter()
                model.head(pooled)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:  # the first is slower, whatever it runs
                    taken.append(time.perf_counter() - start)
    a, b = (statistics.median(taken) for taken in times)
    return (
        f"fc6 and fc7 of {ROIS:,} RoIs: {a / b:.2f} times as fast "
        f"({1000 * a:.0f} ms before, {1000 * b:.0f} ms after; {device}, {str(dtype).removeprefix('torch.')})"
    )
