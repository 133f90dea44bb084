"""RoI pooling with torchvision's kernel, for machines on which our own kernels cannot run.

torchvision's kernel supports only the `fast_rcnn` variant. It ignores NaNs in a bin that has other values, and returns
-3.4e38 for a bin that has only NaN or -inf. It does not support bfloat16, so these features are converted to float32.
It does not support float32 coordinates together with float64 features. The slower reference is used for float64
features, non-finite features, very large coordinates and other variants.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from . import reference


def load_operators() -> None:
    """Load `torch.ops.torchvision` without importing torchvision, which takes as long as importing torch."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in Path(folder).glob("_C*"):
            try:
                torch.ops.load_library(library)
            except OSError:  # built for another torch, or not a library; the import below raises torchvision's error
                continue
    if not hasattr(torch.ops.torchvision, "nms"):
        importlib.import_module("torchvision.ops")


load_operators()


def forward(features: Tensor, rois: Tensor, scale: float, variant: str, out: Tensor, argmax: Tensor | None) -> None:
    """Pool RoIs as reference.forward does."""
    plain = features.dtype != torch.float64 and bool(torch.isfinite(features).all())
    if variant != "fast_rcnn" or not plain or float(rois.abs().amax() if len(rois) else 0) * scale >= reference.FAR:
        reference.forward(features, rois, scale, variant, out, argmax)
        return
    size = (out.shape[2], out.shape[3])
    values, where = torch.ops.torchvision.roi_pool(features.float(), rois, scale, *size)
    out.copy_(values)
    if argmax is not None:
        argmax.copy_(where.permute(0, 2, 3, 1))


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, scale: float, variant: str, grad_features: Tensor) -> None:
    """Sum gradients as reference.backward does."""
    images, channels, height, width = grad_features.shape
    plane = torch.arange(channels, device=grad.device) + rois[:, 0, None].long() * channels  # (K, C)
    cell = argmax + plane[:, None, None, :] * (height * width)  # (K, PH, PW, C)
    hit = argmax >= 0
    flow = grad.to(grad_features.dtype).permute(0, 2, 3, 1)
    total = torch.zeros(grad_features.numel(), dtype=grad_features.dtype, device=grad.device)
    total.index_add_(0, cell[hit], flow[hit])
    grad_features.copy_(total.view(images, channels, height, width))
