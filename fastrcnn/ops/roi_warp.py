"""RoI Align from torchvision, and RoI Warp, an intermediate form between RoI pooling and RoI Align."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .arguments import Rois, also_called, as_ratio, as_scale, as_size, as_table, check_features, check_rois


@also_called(input="features", boxes="rois")
def roi_align(
    features: Tensor,
    rois: Rois,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Call torchvision's `roi_align`. torchvision is imported at the first call, because the import is slow.

    For the arguments, see torchvision. Only first derivatives in reverse mode are supported. torchvision raises an
    error for second derivatives. This function raises NotImplementedError for forward mode, because torchvision would
    return a derivative of zero.
    """
    from torchvision.ops import roi_align as theirs

    if not (isinstance(features, Tensor) and features.is_quantized):
        check_features(features)
        check_rois(rois, features)
    size, scale, ratio = as_size(output_size), as_scale(spatial_scale), as_ratio(sampling_ratio)
    if forward_ad.unpack_dual(features).tangent is not None:
        raise NotImplementedError("features: RoI Align has no forward-mode derivative; use reverse mode")
    return theirs(features, rois, size, scale, ratio, aligned)


@also_called(input="features", boxes="rois")
def roi_warp(
    features: Tensor,
    rois: Rois,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
) -> Tensor:
    """Round each RoI to whole cells like `roi_pool`, then sample its bins bilinearly like RoI Align.

    The value of a bin is the mean of sampling_ratio x sampling_ratio samples. Cell values are located at the centres of
    the cells. For the other arguments and for errors, see `roi_pool`. Returns (K, C, PH, PW) with the dtype of
    `features`. Only first derivatives with respect to `features` in reverse mode are supported.
    Source: "Instance-aware Semantic Segmentation via Multi-task Network Cascades" (Dai, He, Sun 2016), but with average
    pooling inside a bin instead of max pooling.
    """
    check_features(features)
    check_rois(rois, features)
    rois, size, scale = as_table(rois, features), as_size(output_size), as_scale(spatial_scale)
    corners = rois[:, 1:] * rois.new_tensor(scale)
    whole = corners.trunc()  # round half away from zero; torch.round rounds half to even
    cells = whole + corners.sign() * ((corners - whole).abs() >= 0.5)
    start, end = cells[:, :2], cells[:, 2:] + 1  # the last cell belongs to the RoI
    quantised = torch.cat([rois[:, :1], start, torch.maximum(end, start + 1)], dim=1)
    exact = torch.float64 if features.dtype == torch.float64 else torch.float32  # torchvision has no bfloat16
    pooled = roi_align(features.to(exact), quantised.to(exact), size, 1.0, sampling_ratio, aligned=True)
    return pooled.to(features.dtype)


class RoIWarp(nn.Module):
    """`roi_warp` as a module."""

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float = 1.0, sampling_ratio: int = 2) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = as_size(output_size), as_scale(spatial_scale)
        self.sampling_ratio = as_ratio(sampling_ratio)

    @also_called(input="features", boxes="rois")
    def forward(self, features: Tensor, rois: Rois) -> Tensor:
        return roi_warp(features, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        return f"{self.output_size}, spatial_scale={self.spatial_scale}, sampling_ratio={self.sampling_ratio}"
