"""RoI pooling with our own CUDA kernels, csrc/roi_pool.cu, compiled at first use and launched through the driver API.

The compiler is NVRTC, a library that torch's CUDA wheels include. Compiling does not need a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .arguments import FEATURE_TYPES
from .reference import VARIANTS

SOURCE = Path(__file__).parent / "csrc" / "roi_pool.cu"
THREADS = 128  # threads per block; THREADS and TILE must match the constants in roi_pool.cu
TILE = 32

Grid = tuple[int, int, int]


def missing() -> str:
    """Return the reason why this backend cannot run, or an empty string if it can."""
    if not torch.cuda.is_available():
        return "torch found no CUDA device"
    if nvrtc() is None:
        return "NVRTC, which torch's CUDA wheels include, was not found"
    return "" if driver() is not None else "the CUDA driver library libcuda.so.1 was not found"


def forward(features: Tensor, rois: Tensor, scale: float, variant: str, out: Tensor, argmax: Tensor | None) -> None:
    """Pool RoIs as reference.forward does. `out` is contiguous or channels_last; `argmax` is contiguous."""
    features = features.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = features.shape
    count, _, ph, pw = out.shape
    if out.numel() == 0:
        return
    result = out if _is_channels_last(out) else torch.empty_like(out, memory_format=torch.channels_last)
    lanes = 16 // features.element_size()
    together = channels % lanes == 0 and features.data_ptr() % 16 == 0 and result.data_ptr() % 16 == 0
    wide = channels // lanes if together else channels  # number of threads for one bin
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
    """Sum gradients as reference.backward does, in fixed order only with torch.use_deterministic_algorithms(True)."""
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
    """Launch a kernel for the dtype of `on`, on the current stream of its device."""
    addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    with torch.cuda.device(on.device):
        device = torch.cuda.current_device()
        # A thread that has not used the CUDA runtime yet, such as an autograd thread, has no current context.
        _check(_loaded().cuCtxSetCurrent(_context(device)), "use the device")
        kernel = _kernel(name, FEATURE_TYPES.index(on.dtype), device)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _check(_loaded().cuLaunchKernel(kernel, *grid, threads, 1, 1, 0, stream, addresses, None), f"launch {name}")


@functools.cache
def _context(device: int) -> ctypes.c_void_p:
    """Return torch's CUDA context for a device.

    CUDA_VISIBLE_DEVICES affects the device numbers of torch and of the driver in the same way.
    """
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
    """Load the kernels for one dtype on one device, and compile them if they are not cached.

    value: the index of the dtype in FEATURE_TYPES. The context of the device must be current.
    """
    arch = target(*torch.cuda.get_device_capability(device))
    binary, module = cached_kernel(SOURCE, arch, [f"VALUE={value}"]), ctypes.c_void_p()
    _check(_loaded().cuModuleLoadData(ctypes.byref(module), binary), "load the compiled kernels")
    return module


@functools.cache
def driver() -> ctypes.CDLL | None:
    """Load the CUDA driver library. Returns None if it is not found."""
    return _first_library("libcuda.so.1")


def _loaded() -> ctypes.CDLL:
    return _needed(driver(), "the CUDA driver library")


def _check(code: int, doing: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _loaded().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA could not {doing}: {(text.value or b'unknown error').decode()} ({code})")


# Compilation.


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """Load NVRTC for torch's CUDA version, from torch's wheels or the system. Returns None if it is not found."""
    if torch.version.cuda is None:
        return None
    major = torch.version.cuda.split(".")[0]
    name = f"libnvrtc.so.{major}"
    site = Path(torch.__file__).parent.parent
    wheels = [site / "nvidia" / f"cu{major}" / "lib" / name, site / "nvidia" / "cuda_nvrtc" / "lib" / name]
    for wheel in wheels:  # NVRTC loads its builtins by name when it compiles, and some releases do not find them
        for builtins in wheel.parent.glob("libnvrtc-builtins.so.*"):
            _first_library(str(builtins))
    return _first_library(*(str(w) for w in wheels if w.exists()), name)


def _first_library(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _needed(library: ctypes.CDLL | None, what: str) -> ctypes.CDLL:
    if library is None:
        raise RuntimeError(f"{what} was not found")
    return library


def _compiler() -> ctypes.CDLL:
    return _needed(nvrtc(), "NVRTC, the compiler library of torch's CUDA wheels,")


def target(major: int, minor: int) -> str:
    """Return the compilation target for a device of this compute capability, for example `sm_90`.

    If NVRTC does not support the device, return the newest PTX target that both support, for example `compute_120`. The
    driver translates PTX for the device.
    """
    compiler, count = _compiler(), ctypes.c_int()
    compiler.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    compiler.nvrtcGetSupportedArchs(known)
    wanted = 10 * major + minor
    return f"sm_{wanted}" if wanted in known else f"compute_{max(a for a in known if a <= max(wanted, known[0]))}"


def compile_kernel(source: Path, arch: str, defines: Sequence[str]) -> tuple[bytes, str]:
    """Compile a source file and the headers in its folder. Return the code and the compiler's log.

    The code is a cubin for targets such as `sm_90`, and PTX for targets such as `compute_90`. Raises RuntimeError with
    the log if the source does not compile.
    """
    compiler = _compiler()
    headers = sorted(source.parent.glob("roi_*.h"))
    texts = (ctypes.c_char_p * len(headers))(*(h.read_bytes() for h in headers))
    names = (ctypes.c_char_p * len(headers))(*(h.name.encode() for h in headers))
    program = ctypes.c_void_p()
    code = compiler.nvrtcCreateProgram(
        ctypes.byref(program), source.read_bytes(), source.name.encode(), len(headers), texts, names
    )
    if code:
        raise RuntimeError(f"NVRTC could not read {source.name}: error {code}")
    options = [o.encode() for o in compile_options(arch, defines)]
    failed = compiler.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = _fetch(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
    if failed:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))
        raise RuntimeError(f"NVRTC could not compile {source.name} for {arch}:\n{log}")
    binary = _fetch(program, "PTX" if arch.startswith("compute") else "CUBIN")
    compiler.nvrtcDestroyProgram(ctypes.byref(program))
    return binary, log


def compile_options(arch: str, defines: Sequence[str]) -> list[str]:
    """Return the compiler options. arch: see `target`. defines: macros, such as "VALUE=0".

    Division is exact and multiply-add is not fused, because one rounding error can move the edge of a bin by a cell.
    """
    exact = ["--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false"]
    return [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", *exact, *(f"-D{d}" for d in defines)]


def cached_kernel(source: Path, arch: str, defines: Sequence[str]) -> bytes:
    """Return the compiled code from the disk cache, or compile it.

    The cache is the folder $XDG_CACHE_HOME/fastrcnn or ~/.cache/fastrcnn, with one file for each source, NVRTC version,
    architecture and set of options. If the folder is not writable, every process compiles the kernels again.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _compiler().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    key = hashlib.sha256(repr(((major.value, minor.value), compile_options(arch, defines))).encode())
    for part in (source, *sorted(source.parent.glob("roi_*.h"))):
        key.update(part.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastrcnn"
    path = folder / f"{source.stem}-{arch}-{key.hexdigest()[:20]}.bin"
    try:
        return path.read_bytes()
    except OSError:
        pass
    binary, _ = compile_kernel(source, arch, defines)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part_file:
            part_file.write(binary)
        Path(part_file.name).replace(path)  # atomic, because other processes can compile the same kernel now
    except OSError:
        pass
    return binary


def _fetch(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(_compiler(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(_compiler(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
