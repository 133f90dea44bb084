"""RoI max pooling: the public function and module."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import registration  # defines the operators in torch.ops.fastrcnn
from .arguments import Rois, also_called, as_scale, as_size, as_table, check_device, check_features, check_rois
from .reference import VARIANTS


@torch.fx.wrap
@also_called(input="features", boxes="rois")
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
    """Max-pool each RoI into a grid of PH x PW bins.

    features       (N, C, H, W) float16, bfloat16, float32 or float64, with any strides
    rois           (K, 5) [batch index, x1, y1, x2, y2], or a list of N tensors (K_i, 4) x1 y1 x2 y2, in image pixels.
                   Any floating type; converted to float32. In `fast_rcnn`, x2 and y2 are inclusive
    output_size    PH and PW, or one int for both
    spatial_scale  feature map cells per image pixel
    variant        `fast_rcnn`, `partition` or `truncate`: see README.md
    out            a contiguous or channels_last tensor (K, C, PH, PW) for the result; does not support gradients
    check_values   False skips the check of `rois` for NaN, infinity and batch indices out of range, which synchronises
                   on CUDA. The backends `cpu` and `cuda` then pool an RoI with an invalid batch index to 0

    Returns (K, C, PH, PW) with the dtype of `features`, channels_last if `features` is, otherwise contiguous. The
    result is differentiable with respect to `features`, any number of times. An empty bin is 0 and has no gradient. A
    bin that contains NaN is NaN. The sign of zero is not preserved.

    `input` and `boxes` are aliases of `features` and `rois`, as in torchvision. torch.onnx.export(dynamo=True) exports
    a MaxRoiPool node. Raises TypeError or ValueError if an argument is invalid. The message begins with its name.
    Source: "Fast R-CNN" (Girshick 2015), section 2.1.
    """
    check_features(features)
    check_rois(rois, features)
    _check_variant(variant)
    table, size, scale = as_table(rois, features), as_size(output_size), as_scale(spatial_scale)
    shape = (table.shape[0], features.shape[1], *size)
    if out is None:
        if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
            if variant == "fast_rcnn":
                return _max_roi_pool(features, table, shape, scale)
            # torch.onnx.export hides errors that are raised here and reports a different one later.
            warnings.warn(f"variant: ONNX supports only fast_rcnn, got {variant!r}", stacklevel=2)
        return registration.pool(features, table, size, scale, variant, check_values)
    if registration.needs_derivative(features):
        raise ValueError("out: not supported if features needs a gradient")
    _check_out(out, features, shape)
    torch.ops.fastrcnn.roi_pool_out(features, table, scale, variant, check_values, out)
    return out


class RoIPool(nn.Module):
    """`roi_pool` as a module, with the arguments of torchvision's RoIPool and an additional `variant`."""

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float = 1.0, variant: str = "fast_rcnn"
    ) -> None:
        super().__init__()
        _check_variant(variant)
        self.output_size, self.spatial_scale = as_size(output_size), as_scale(spatial_scale)
        self.variant = variant

    @also_called(input="features", boxes="rois")
    def forward(self, features: Tensor, rois: Rois) -> Tensor:
        return roi_pool(features, rois, self.output_size, self.spatial_scale, self.variant)

    def extra_repr(self) -> str:
        return f"{self.output_size}, spatial_scale={self.spatial_scale}, variant={self.variant!r}"


def _max_roi_pool(features: Tensor, rois: Tensor, shape: tuple[int, ...], scale: float) -> Tensor:
    """Add the pooling to the ONNX graph as one node during torch.onnx.export. Returns the pooled features."""
    # In ONNX both inputs have the same type. float32 represents half-precision features exactly, and RoIs need it.
    exact = torch.float64 if features.dtype == torch.float64 else torch.float32
    inputs = (features.to(exact), rois.to(exact))
    pooled = torch.onnx.ops.symbolic(
        "MaxRoiPool", inputs, {"pooled_shape": shape[2:], "spatial_scale": scale}, dtype=exact, shape=shape
    )
    return pooled.to(features.dtype)


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")


def _check_out(out: Tensor, features: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(out.shape) != shape:
        raise ValueError(f"out: expected the shape {shape}, got {tuple(out.shape)}")
    if out.dtype != features.dtype:
        raise TypeError(f"out: expected {features.dtype}, the dtype of features, got {out.dtype}")
    check_device(out, "out", features, "features")
    if not (out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(
            f"out: expected a contiguous or channels_last tensor, got a tensor with the strides {out.stride()}"
        )
