"""RoI pooling by our own CUDA kernels, csrc/roi_pool.cu, compiled by NVRTC at first use, launched by the driver."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import nvrtc
from .arguments import FEATURE_TYPES
from .reference import VARIANTS

SOURCE = Path(__file__).parent / "csrc" / "roi_pool.cu"
THREADS = 128  # of a block; THREADS and TILE stand in the source too
TILE = 32

Grid = tuple[int, int, int]


def missing() -> str:
    """Why this backend cannot run, or an empty string where it can."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if nvrtc.library() is None:
        return "NVRTC, which torch's CUDA wheels bring along, was not found"
    return "" if _driver() is not None else "the CUDA driver library libcuda.so.1 was not found"


def forward(features: Tensor, rois: Tensor, scale: float, variant: str, out: Tensor, argmax: Tensor | None) -> None:
    """As reference.forward. `out` is contiguous or channels_last, `argmax` contiguous."""
    features = features.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = features.shape
    count, _, ph, pw = out.shape
    if out.numel() == 0:
        return
    result = out if _is_channels_last(out) else torch.empty_like(out, memory_format=torch.channels_last)
    lanes = 16 // features.element_size()
    together = channels % lanes == 0 and features.data_ptr() % 16 == 0 and result.data_ptr() % 16 == 0
    wide = channels // lanes if together else channels  # threads that one bin takes
    threads = min(THREADS, -(-wide // 32) * 32)
    arguments = [
        *(_pointer(features), _pointer(rois), *_ints(images, channels, height, width, ph, pw)),
        *(ctypes.c_float(scale), *_ints(VARIANTS.index(variant)), _pointer(result), _pointer(argmax)),
    ]
    name = "roi_pool_forward" if together else "roi_pool_forward_odd"
    _launch(name, features, (count, ph, -(-wide // threads)), threads, arguments)
    if result is not out:
        out.copy_(result)


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, scale: float, variant: str, grad_features: Tensor) -> None:
    """As reference.backward: in its order under torch.use_deterministic_algorithms(True), with atomics else."""
    grad = grad.to(grad_features.dtype).contiguous(memory_format=torch.channels_last)
    images, channels, height, width = grad_features.shape
    count, _, ph, pw = grad.shape
    total = grad_features
    if not _is_channels_last(total):
        total = torch.empty_like(total, memory_format=torch.channels_last)
    sources = [_pointer(grad), _pointer(rois), _pointer(argmax)]
    if torch.are_deterministic_algorithms_enabled():
        variant_and_sum = [ctypes.c_float(scale), *_ints(VARIANTS.index(variant)), _pointer(total)]
        arguments = [*sources, *_ints(count, ph, pw, channels, height, width), *variant_and_sum]
        grid = (images * height * -(-width // TILE), -(-channels // THREADS), 1)
        _launch("roi_pool_backward_in_order", grad, grid, THREADS, arguments)
    else:
        total.zero_()
        number = grad.numel()
        arguments = [*sources, ctypes.c_longlong(number), *_ints(ph * pw * channels, channels)]
        arguments += [ctypes.c_longlong(height * width), _pointer(total)]
        if number:
            grid = (min(-(-number // THREADS), 2**20), 1, 1)
            _launch("roi_pool_backward", grad, grid, THREADS, arguments)
    if total is not grad_features:
        grad_features.copy_(total)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _ints(*values: int) -> list[ctypes.c_int]:
    return [ctypes.c_int(v) for v in values]


def _launch(name: str, on: Tensor, grid: Grid, threads: int, arguments: list[Any]) -> None:
    """Launches a kernel for the type of `on`, on its device and the stream that is current there."""
    addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    with torch.cuda.device(on.device):
        device = torch.cuda.current_device()
        # A thread in which the runtime has not yet done anything, such as autograd's, has no context.
        _check(_loaded().cuCtxSetCurrent(_context(device)), "use the device")
        kernel = _kernel(name, FEATURE_TYPES.index(on.dtype), device)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _check(_loaded().cuLaunchKernel(kernel, *grid, threads, 1, 1, 0, stream, addresses, None), f"launch {name}")


@functools.cache
def _context(device: int) -> ctypes.c_void_p:
    """torch's context on a device. Number `device` is torch's, which CUDA_VISIBLE_DEVICES shifts for both alike."""
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _check(_loaded().cuDeviceGet(ctypes.byref(handle), device), "find the device")
    _check(_loaded().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "find the device's context")
    return context


@functools.cache
def _kernel(name: str, value: int, device: int) -> ctypes.c_void_p:
    module, kernel = _module(value, device), ctypes.c_void_p()
    _check(_loaded().cuModuleGetFunction(ctypes.byref(kernel), module, name.encode()), f"find {name}")
    return kernel


@functools.cache
def _module(value: int, device: int) -> ctypes.c_void_p:
    """The kernels for one type on one device, whose context is current; compiled where the disk lacks them."""
    arch = nvrtc.target(*torch.cuda.get_device_capability(device))
    binary, module = nvrtc.cached_kernel(SOURCE, arch, [f"VALUE={value}"]), ctypes.c_void_p()
    _check(_loaded().cuModuleLoadData(ctypes.byref(module), binary), "load the compiled kernels")
    return module


@functools.cache
def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _loaded() -> ctypes.CDLL:
    driver = _driver()
    assert driver is not None
    return driver


def _check(code: int, doing: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _loaded().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA could not {doing}: {(text.value or b'unknown error').decode()} ({code})")
