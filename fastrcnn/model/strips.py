"""Layers computed a strip of rows at a time, so that the large maps between them never exist as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """What one row of a layer's output sees: rows of its input, how far apart two windows are, rows of padding."""

    kernel: int
    stride: int
    padding: int = 0


Windows: TypeAlias = Sequence[Window]


def rows_seen(row: int, windows: Windows) -> tuple[int, int]:
    """The first and last row of the input that a row of the output is computed from; some may lie in the padding."""
    first = last = row
    for window in reversed(windows):
        first = first * window.stride - window.padding
        last = last * window.stride - window.padding + window.kernel - 1
    return first, last


def in_strips(compute: Callable[[Tensor], Tensor], x: Tensor, windows: Windows, count: int) -> Tensor:
    """What `compute` gives for a map (N, C, H, W), from `count` strips of its rows or fewer.

    compute: layers with these windows, which pad what they are given. Each strip comes with the rows beyond its edges
    that its outputs see, and what the padding spoils there is cut off; so every value is computed from the same ones.
    """
    stride, height = math.prod(window.stride for window in windows), x.shape[2]
    first, last = rows_seen(0, windows)
    least = -(-(last - first + 1) // stride)  # rows of the output for which a strip is high enough in any case
    count = max(1, min(count, height // stride // least))
    edges = [i * (height // stride) // count for i in range(count)]  # the first row of each strip's output
    out = x  # until the last strip, which is computed first, has told how many rows there are
    for top, bottom in reversed(list(zip(edges, [*edges[1:], None], strict=True))):
        shift = max(0, rows_seen(top, windows)[0]) // stride  # rows of the output that lie before the strip
        end = height if bottom is None else rows_seen(bottom - 1, windows)[1] + 1
        part = compute(x[:, :, shift * stride : end])
        if bottom is None:
            last = part.is_contiguous(memory_format=torch.channels_last)
            order = torch.channels_last if last else torch.contiguous_format
            shape = (*part.shape[:2], shift + part.shape[2], part.shape[3])
            out = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=order)
        out[:, :, top:bottom] = part[:, :, top - shift : None if bottom is None else bottom - shift]
    return out
