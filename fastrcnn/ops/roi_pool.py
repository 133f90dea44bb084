"""RoI max pooling: the public function and module, the choice of the backend, and the registration with
torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import reference, torchvision_backend
from .arguments import (
    Rois,
    check_roi_values,
    checked_features,
    checked_rois,
    checked_scale,
    checked_size,
)
from .reference import VARIANTS

log = logging.getLogger(__name__)

BACKENDS: dict[str, ModuleType] = {"reference": reference, "torchvision": torchvision_backend}


def roi_pool(
    features: Tensor,
    rois: Rois,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    variant: str = "fast_rcnn",
    *,
    out: Tensor | None = None,
    check_values: bool = True,
) -> Tensor:
    """Max pools each RoI into a grid of PH x PW bins.

    features       (N, C, H, W) float16, bfloat16, float32 or float64, of any strides
    rois           (K, 5) [batch index, x1, y1, x2, y2], or a list of N tensors (K_i, 4) x1 y1 x2 y2, in pixels
                   of the image, of any floating type; computed with in float32. In `fast_rcnn` x2 and y2 are
                   inclusive
    output_size    PH and PW, or one int for both
    spatial_scale  cells of the map per pixel of the image
    variant        `fast_rcnn` as in Girshick's Caffe layer, torchvision and ONNX MaxRoiPool; `partition` into
                   disjoint bins; `truncate`, which drops what does not divide. See README.md
    out            a buffer (K, C, PH, PW) to write into and return, of the type and device of `features`,
                   contiguous or channels_last; no gradient then
    check_values   False skips looking for a NaN or a batch index out of range in `rois`, which on CUDA waits
                   for them; such an RoI then pools to 0

    Returns (K, C, PH, PW) in the type of `features`, channels_last where `features` is, contiguous otherwise;
    differentiable with respect to `features`. An empty bin is 0 and has no gradient. A NaN in a bin makes it
    NaN. The sign of a zero is not kept.

    Raises TypeError or ValueError; the message begins with the name of the argument at fault.

    After "Fast R-CNN" (Girshick 2015), section 2.1.
    """
    features = checked_features(features)
    table = checked_rois(rois, features)
    size, scale = checked_size(output_size), checked_scale(spatial_scale)
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
    needs_gradient = features.requires_grad and torch.is_grad_enabled()
    if out is None:
        return torch.ops.fastrcnn.roi_pool(
            features, table, *size, scale, variant, needs_gradient, check_values
        )[0]
    if needs_gradient:
        raise ValueError("out: cannot be given where a gradient of features is needed")
    _check_out(out, features, (table.shape[0], features.shape[1], *size))
    torch.ops.fastrcnn.roi_pool_out(features, table, scale, variant, check_values, out)
    return out


class RoIPool(nn.Module):
    """`roi_pool` as a module; the same arguments as torchvision's, and `variant`."""

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float = 1.0, variant: str = "fast_rcnn"
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
        self.output_size = checked_size(output_size)
        self.spatial_scale = checked_scale(spatial_scale)
        self.variant = variant

    def forward(self, features: Tensor, rois: Rois) -> Tensor:
        return roi_pool(features, rois, self.output_size, self.spatial_scale, self.variant)

    def extra_repr(self) -> str:
        return f"{self.output_size}, spatial_scale={self.spatial_scale}, variant={self.variant!r}"


def choose_backend(device: torch.device) -> ModuleType:
    """The backend for tensors on `device`: the one of FASTRCNN_ROI_BACKEND, or else the fastest that can
    run.
    """
    name = os.environ.get("FASTRCNN_ROI_BACKEND", "torchvision")
    if name not in BACKENDS:
        raise ValueError(f"FASTRCNN_ROI_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return BACKENDS[name]


def _check_out(out: Tensor, features: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(out.shape) != shape:
        raise ValueError(f"out: expected the shape {shape}, got {tuple(out.shape)}")
    if out.dtype != features.dtype:
        raise TypeError(f"out: expected {features.dtype}, the type of features, got {out.dtype}")
    if out.device != features.device:
        raise ValueError(f"out: expected the device of features, {features.device}, got {out.device}")
    if not (out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(
            f"out: expected a contiguous or channels_last tensor, got the strides {out.stride()}"
        )


# --- registration with torch: what torch.compile, autograd and autocast see ---
# Under autocast nothing is cast: features in bfloat16 are pooled in bfloat16, and RoIs keep the float32 that
# they need.

torch.library.define(
    "fastrcnn::roi_pool",
    "(Tensor features, Tensor rois, SymInt height, SymInt width, float scale, str variant, bool with_argmax,"
    " bool check_values) -> (Tensor, Tensor)",
)
torch.library.define(
    "fastrcnn::roi_pool_out",
    "(Tensor features, Tensor rois, float scale, str variant, bool check_values, Tensor(a!) out) -> ()",
)
torch.library.define(
    "fastrcnn::roi_pool_backward",
    "(Tensor grad, Tensor rois, Tensor argmax, SymInt images, SymInt map_height, SymInt map_width,"
    " float scale, str variant, bool channels_last) -> Tensor",
)


def _format(features: Tensor) -> torch.memory_format:
    """The memory format of features, and so of the output. Contiguous where both would fit."""
    if not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _empty_result(
    features: Tensor, rois: Tensor, height: int, width: int, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    shape = (rois.shape[0], features.shape[1], height, width)
    out = torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=_format(features))
    where = (shape[0], height, width, shape[1]) if with_argmax else (0,)
    return out, torch.empty(where, dtype=torch.int32, device=features.device)


@torch.library.impl("fastrcnn::roi_pool", "CompositeExplicitAutograd")
def _roi_pool(
    features: Tensor,
    rois: Tensor,
    height: int,
    width: int,
    scale: float,
    variant: str,
    with_argmax: bool,
    check_values: bool,
) -> tuple[Tensor, Tensor]:
    if check_values:
        check_roi_values(rois, features.shape[0])
    out, argmax = _empty_result(features, rois, height, width, with_argmax)
    backend = choose_backend(features.device)
    backend.forward(features, rois, scale, variant, out, argmax if with_argmax else None)
    return out, argmax


@torch.library.impl("fastrcnn::roi_pool_out", "CompositeExplicitAutograd")
def _roi_pool_out(
    features: Tensor, rois: Tensor, scale: float, variant: str, check_values: bool, out: Tensor
) -> None:
    if check_values:
        check_roi_values(rois, features.shape[0])
    choose_backend(features.device).forward(features, rois, scale, variant, out, None)


@torch.library.impl("fastrcnn::roi_pool_backward", "CompositeExplicitAutograd")
def _roi_pool_backward(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    images: int,
    map_height: int,
    map_width: int,
    scale: float,
    variant: str,
    channels_last: bool,
) -> Tensor:
    # Sums of half precision are taken in float32 and rounded once.
    exact = torch.float64 if grad.dtype == torch.float64 else torch.float32
    memory = torch.channels_last if channels_last else torch.contiguous_format
    shape = (images, grad.shape[1], map_height, map_width)
    total = torch.empty(shape, dtype=exact, device=grad.device, memory_format=memory)
    choose_backend(grad.device).backward(grad, rois, argmax, scale, variant, total)
    return total.to(grad.dtype)


@torch.library.register_fake("fastrcnn::roi_pool")
def _(
    features: Tensor,
    rois: Tensor,
    height: int,
    width: int,
    scale: float,
    variant: str,
    with_argmax: bool,
    check_values: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_result(features, rois, height, width, with_argmax)


@torch.library.register_fake("fastrcnn::roi_pool_out")
def _(features: Tensor, rois: Tensor, scale: float, variant: str, check_values: bool, out: Tensor) -> None:
    return None


@torch.library.register_fake("fastrcnn::roi_pool_backward")
def _(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    images: int,
    map_height: int,
    map_width: int,
    scale: float,
    variant: str,
    channels_last: bool,
) -> Tensor:
    memory = torch.channels_last if channels_last else torch.contiguous_format
    shape = (images, grad.shape[1], map_height, map_width)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, rois, _, _, ctx.scale, ctx.variant, ctx.with_argmax, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.images, _, ctx.map_height, ctx.map_width = features.shape
    ctx.channels_last = _format(features) == torch.channels_last
    ctx.save_for_backward(rois, output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.with_argmax:
        raise RuntimeError("fastrcnn::roi_pool was called without with_argmax, so it has no gradient")
    rois, argmax = ctx.saved_tensors
    flow = torch.ops.fastrcnn.roi_pool_backward(
        grad,
        rois,
        argmax,
        ctx.images,
        ctx.map_height,
        ctx.map_width,
        ctx.scale,
        ctx.variant,
        ctx.channels_last,
    )
    return flow, None, None, None, None, None, None, None


torch.library.register_autograd("fastrcnn::roi_pool", _gradient, setup_context=_save)
