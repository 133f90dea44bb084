"""RoI max pooling: the public function and module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import registration  # noqa: F401  defines the operators below torch.ops.fastrcnn
from .arguments import (
    Rois,
    checked_features,
    checked_rois,
    checked_scale,
    checked_size,
)
from .reference import VARIANTS


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
    rois           (K, 5) [batch index, x1, y1, x2, y2], or a list of N tensors (K_i, 4) x1 y1 x2 y2, in
                   pixels of the image, of any floating type; computed with in float32. In `fast_rcnn` x2 and
                   y2 are inclusive
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
        return torch.ops.fastrcnn.roi_pool(features, table, *size, scale, variant, needs_gradient, check_values)[0]
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


def _check_out(out: Tensor, features: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(out.shape) != shape:
        raise ValueError(f"out: expected the shape {shape}, got {tuple(out.shape)}")
    if out.dtype != features.dtype:
        raise TypeError(f"out: expected {features.dtype}, the type of features, got {out.dtype}")
    if out.device != features.device:
        raise ValueError(f"out: expected the device of features, {features.device}, got {out.device}")
    if not (out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(f"out: expected a contiguous or channels_last tensor, got the strides {out.stride()}")
