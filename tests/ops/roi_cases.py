"""Random cases for RoI pooling, and what it means for two results to be the same."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrcnn.ops import reference


@dataclass
class Case:
    features: Tensor
    rois: Tensor
    size: tuple[int, int]
    scale: float
    variant: str


SPECIAL = torch.tensor([float("nan"), -float("inf"), float("inf")])


def random_case(seed: int, variants: tuple[str, ...] = reference.VARIANTS, finite: bool = False) -> Case:
    """Features with many ties, now and then not finite, of any type and layout; RoIs that overhang, are
    inverted, lie at half cells, or are exactly 57 cells long."""
    g = torch.Generator().manual_seed(seed)

    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (1,), generator=g))]

    images, channels = pick(1, 2), pick(1, 3, 8, 16, 40, 130)
    height, width = (int(torch.randint(1, 30, (1,), generator=g)) for _ in range(2))
    if seed % 10 == 0:
        height, width = 60, 63  # room for 57 cells
    features = torch.randn(images, channels, height, width, generator=g)
    if pick(True, False):
        features = features.round()  # ties, and both zeros
    if not finite and pick(True, False, False):
        mask = torch.rand(features.shape, generator=g)
        features[mask < 0.3] = pick(*SPECIAL)
        features[mask < 0.05] = float("nan")
    features = features.to(pick(torch.float16, torch.bfloat16, torch.float32, torch.float64))
    layout = pick("contiguous", "channels_last", "transposed", "sliced")
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        features = features.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "sliced":
        features = torch.cat([features, features], dim=3)[..., :width]
    scale = pick(1 / 16, 1 / 32, 0.3, 1.0)
    count = pick(0, 1, 5, 9)
    around = torch.tensor([width, height, width, height])
    boxes = (torch.rand(count, 4, generator=g) * 1.6 - 0.3) * around
    if pick(True, False):
        boxes = (boxes * 2).round() / 2  # half cells
    if seed % 10 == 0:
        boxes[:, 2:] = boxes[:, :2] + 56
    index = torch.randint(images, (count, 1), generator=g)
    size = (int(torch.randint(1, 9, (1,), generator=g)), int(torch.randint(1, 9, (1,), generator=g)))
    return Case(features, torch.cat([index, boxes / scale], dim=1).float(), size, scale, pick(*variants))


@functools.cache
def expected(seed: int) -> tuple[Case, Tensor, Tensor, Tensor]:
    """A random case, what the reference makes of it, a gradient of that, and the reference's gradient of features."""
    case = random_case(seed)
    shape = (len(case.rois), case.features.shape[1], *case.size)
    out = torch.empty(shape, dtype=case.features.dtype)
    argmax = torch.empty((shape[0], *case.size, shape[1]), dtype=torch.int32)
    reference.forward(case.features, case.rois, case.scale, case.variant, out, argmax)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
    exact = torch.float64 if out.dtype == torch.float64 else torch.float32
    total = torch.empty(case.features.shape, dtype=exact)
    reference.backward(grad, case.rois, argmax, case.scale, case.variant, total)
    return case, out, grad, total.to(out.dtype)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in every value; a NaN equals a NaN, and the zeros each other."""
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(0, 7, -7), b.nan_to_num(0, 7, -7))
    )
