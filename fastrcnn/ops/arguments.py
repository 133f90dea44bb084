"""Checks and conversions of the arguments of the RoI operators.

Arguments are checked before a backend is chosen, so the error messages are the same on every device. Each message
begins with the name of the invalid argument.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

FEATURE_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Rois = Tensor | Sequence[Tensor]

P = ParamSpec("P")
R = TypeVar("R")


def also_called(**others: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that adds aliases of keyword arguments: `input="features"` lets callers pass `input=`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
            for other, name in others.items():
                if other in kwargs:
                    if name in kwargs:
                        raise TypeError(f"{other} is an alias of {name}; pass only one of them")
                    kwargs[name] = kwargs.pop(other)
            return function(*args, **kwargs)

        return renamed

    return decorate


def check_features(features: Tensor) -> None:
    """Raise TypeError or ValueError unless `features` is a tensor (N, C, H, W) of a supported type."""
    check_tensor(features, "features")
    if features.dim() != 4:
        raise ValueError(f"features: expected the shape (N, C, H, W), got {tuple(features.shape)}")
    if features.dtype not in FEATURE_TYPES:
        raise TypeError(f"features: expected float16, bfloat16, float32 or float64, got {features.dtype}")
    if 0 in features.shape[2:]:
        raise ValueError(f"features: expected a height and width of at least 1, got the shape {tuple(features.shape)}")


def check_rois(rois: Rois, features: Tensor) -> None:
    """Raise TypeError or ValueError unless `rois` is a float tensor (K, 5) or a list of N float tensors (K_i, 4)."""
    if isinstance(rois, Tensor):
        tables, columns = {"rois": rois}, 5
    elif isinstance(rois, (list, tuple)):
        tables, columns = {f"rois[{i}]": boxes for i, boxes in enumerate(rois)}, 4
        if len(rois) != features.shape[0]:
            raise ValueError(f"rois: expected one tensor per image, got {len(rois)} for {features.shape[0]} image(s)")
    else:
        raise TypeError(f"rois: expected a tensor or a list of tensors, got {type(rois).__name__}")
    for name, table in tables.items():
        check_tensor(table, name)
        if table.dim() != 2 or table.shape[1] != columns:
            raise ValueError(f"{name}: expected the shape (K, {columns}), got {tuple(table.shape)}")
        if not table.dtype.is_floating_point:
            raise TypeError(f"{name}: expected a floating-point dtype, got {table.dtype}")
        check_device(table, name, features, "features")


def check_tensor(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def check_device(value: Tensor, name: str, other: Tensor, other_name: str) -> None:
    if value.device != other.device:
        raise ValueError(f"{name}: expected a tensor on {other.device}, the device of {other_name}, got {value.device}")


def as_table(rois: Rois, features: Tensor) -> Tensor:
    """Convert RoIs that passed check_rois to a detached float32 tensor (K, 5) [batch index, x1, y1, x2, y2]."""
    if isinstance(rois, Tensor):
        return rois.detach().to(torch.float32).contiguous()
    tables = [boxes.detach().to(torch.float32) for boxes in rois]
    if not tables:
        return torch.zeros((0, 5), dtype=torch.float32, device=features.device)
    return torch.cat([torch.cat([t.new_full((len(t), 1), i), t], dim=1) for i, t in enumerate(tables)])


def as_size(output_size: int | Iterable[int]) -> tuple[int, int]:
    """Convert one or two integers of Python, numpy or torch to (PH, PW). Raises ValueError if they are not positive."""
    size = plain(output_size)
    size = tuple(plain(n) for n in size) if isinstance(size, Iterable) else (size, size)
    if len(size) != 2 or not all(is_int(n) and n > 0 for n in size):
        raise ValueError(f"output_size: expected one or two positive ints, got {output_size!r}")
    return size[0], size[1]


def as_scale(spatial_scale: float) -> float:
    """Convert the number of feature map cells per image pixel to a float. Raises ValueError if it is not positive."""
    scale = plain(spatial_scale)
    if not (isinstance(scale, float) or is_int(scale)) or not 0 < scale < math.inf:
        raise ValueError(f"spatial_scale: expected a positive number, got {spatial_scale!r}")
    return float(scale)


def as_ratio(sampling_ratio: int) -> int:
    """Convert the number of samples per bin and axis to an int. RoI Align chooses the number if it is not positive."""
    ratio = plain(sampling_ratio)
    if not is_int(ratio):
        raise TypeError(f"sampling_ratio: expected an int, got {sampling_ratio!r}")
    return ratio


def plain(value: Any) -> Any:
    """Convert a value of numpy or torch to a Python number or list. Other values are returned unchanged."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray, Tensor)) else value


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_roi_values(rois: Tensor, images: int) -> None:
    """Raise ValueError if `rois` (K, 5) contains NaN, infinity, or a batch index outside 0 .. images - 1.

    On a CUDA device, this check synchronises once. roi_pool skips it with check_values=False.
    """
    index = rois[:, 0]
    # NaN fails every comparison, infinity fails the last one.
    good = (index >= 0) & (index < images) & (rois.abs().amax(dim=1) < math.inf)
    if rois.shape[0] == 0 or bool(good.all()):
        return
    k = int((~good).nonzero()[0])
    row = rois[k].tolist()
    if all(math.isfinite(v) for v in row):
        raise ValueError(f"rois: batch index {row[0]:g} of RoI {k} is out of range for features of {images} image(s)")
    raise ValueError(f"rois: expected finite values, got {row} for RoI {k}")
