"""RoI pooling with our own CPU kernel, csrc/roi_pool_cpu.cpp, which is built when the package is installed."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .arguments import FEATURE_TYPES
from .reference import VARIANTS

LEVELS = ("plain", "avx2", "avx512")
VALUES_PER_THREAD = 50_000  # pooling this many output values takes about as long as starting a thread


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the kernel from this folder or from the path in FASTRCNN_ROI_CPU_LIBRARY. Returns None if this fails."""
    forced = os.environ.get("FASTRCNN_ROI_CPU_LIBRARY")
    found = [Path(forced)] if forced else sorted(Path(__file__).parent.glob("_roi_cpu*.so"))
    for path in found:
        try:
            kernel = ctypes.CDLL(str(path))
        except OSError:  # built for another platform
            continue
        p, n, i, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
        kernel.roi_pool_forward.argtypes = [p, p, p, i, p, n, i, i, f, i, p, i, p, i, i]
        kernel.roi_pool_forward.restype = i
        kernel.roi_pool_backward.argtypes = [p, p, i, p, n, i, i, p, p, p, p, i]
        kernel.roi_pool_backward.restype = i
        return kernel
    return None


def missing() -> str:
    """Return the reason why this backend cannot run, or an empty string if it can."""
    if library() is not None:
        return ""
    return "the CPU kernel was not built during installation. Install a C++ compiler, then reinstall the package"


def level() -> int:
    """Return the index in LEVELS of the instruction set to use.

    The default is the best one that the processor supports; FASTRCNN_ROI_CPU_LEVEL overrides it. Raises ValueError if
    the level is unknown or not supported by the processor.
    """
    best = _kernel().roi_pool_best_level()
    name = os.environ.get("FASTRCNN_ROI_CPU_LEVEL", LEVELS[best])
    if name not in LEVELS[: best + 1]:
        known = ", ".join(LEVELS[: best + 1])
        raise ValueError(f"FASTRCNN_ROI_CPU_LEVEL: this processor supports {known}, got {name!r}")
    return LEVELS.index(name)


def forward(features: Tensor, rois: Tensor, scale: float, variant: str, out: Tensor, argmax: Tensor | None) -> None:
    """Pool RoIs as reference.forward does. `out` is contiguous or channels_last; `argmax` is contiguous."""
    failed = _kernel().roi_pool_forward(
        features.data_ptr(),
        *(_four(features.shape), _four(features.stride()), FEATURE_TYPES.index(features.dtype)),
        *(rois.data_ptr(), len(rois), *out.shape[2:], scale, VARIANTS.index(variant)),
        *(out.data_ptr(), not out.is_contiguous()),
        None if argmax is None else argmax.data_ptr(),
        level(),
        _threads(out),
    )
    if failed:
        raise MemoryError("RoI pooling: cannot allocate memory for the repacked features")


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, scale: float, variant: str, grad_features: Tensor) -> None:
    """Sum gradients as reference.backward does."""
    grad = grad.to(grad_features.dtype)
    failed = _kernel().roi_pool_backward(
        *(grad.data_ptr(), _four(grad.stride()), FEATURE_TYPES.index(grad.dtype)),
        *(rois.data_ptr(), len(rois), *grad.shape[2:], argmax.data_ptr()),
        *(_four(grad_features.shape), grad_features.data_ptr(), _four(grad_features.stride())),
        _threads(grad),
    )
    if failed:
        raise MemoryError("RoI pooling: cannot allocate memory for the gradient")


def _kernel() -> ctypes.CDLL:
    kernel = library()
    assert kernel is not None
    return kernel


def _four(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * 4)(*values)


def _threads(values: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), values.numel() // VALUES_PER_THREAD))
