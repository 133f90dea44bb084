"""Compiling CUDA C++ with NVRTC, the compiler library that torch's CUDA wheels bring along. Needs no GPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch


@functools.cache
def library() -> ctypes.CDLL | None:
    """NVRTC as torch's own CUDA version names it: already loaded, beside torch, or on the system. Or None."""
    if torch.version.cuda is None:
        return None
    major = torch.version.cuda.split(".")[0]
    name = f"libnvrtc.so.{major}"
    site = Path(torch.__file__).parent.parent
    wheels = [site / "nvidia" / f"cu{major}" / "lib" / name, site / "nvidia" / "cuda_nvrtc" / "lib" / name]
    for candidate in (*(str(w) for w in wheels if w.exists()), name):
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    return None


def version() -> tuple[int, int]:
    """Of NVRTC."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _loaded().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def target(major: int, minor: int) -> str:
    """What to compile for a device of this capability: `sm_90`, or, for a device newer than this NVRTC, the newest
    PTX that it makes, `compute_120`, which the driver translates."""
    nvrtc, count = _loaded(), ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(known)
    wanted = 10 * major + minor
    return f"sm_{wanted}" if wanted in known else f"compute_{max(a for a in known if a <= max(wanted, known[0]))}"


def compile_kernel(source: Path, arch: str, defines: Sequence[str]) -> tuple[bytes, str]:
    """Code from a source file and the headers beside it, a cubin for `sm_90`, PTX for `compute_90`; and the log.

    Raises RuntimeError with the log where the source does not compile.
    """
    nvrtc = _loaded()
    headers = sorted(source.parent.glob("roi_*.h"))
    texts = (ctypes.c_char_p * len(headers))(*(h.read_bytes() for h in headers))
    names = (ctypes.c_char_p * len(headers))(*(h.name.encode() for h in headers))
    program = ctypes.c_void_p()
    code = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.read_bytes(), source.name.encode(), len(headers), texts, names
    )
    if code:
        raise RuntimeError(f"NVRTC could not read {source.name}: error {code}")
    options = [o.encode() for o in compile_options(arch, defines)]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = _fetch(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
    if failed:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        raise RuntimeError(f"NVRTC could not compile {source.name} for {arch}:\n{log}")
    binary = _fetch(program, "PTX" if arch.startswith("compute") else "CUBIN")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return binary, log


def compile_options(arch: str, defines: Sequence[str]) -> list[str]:
    """True division and no fused multiply-add: an edge of a bin that is off by one rounding is off by one cell."""
    exact = ["--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false"]
    return [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", *exact, *(f"-D{d}" for d in defines)]


def cached_kernel(source: Path, arch: str, defines: Sequence[str]) -> bytes:
    """As compile_kernel, from the disk where it was compiled before: one file an architecture and source.

    The folder is $XDG_CACHE_HOME/fastrcnn or ~/.cache/fastrcnn; where it cannot be written, the kernel is compiled
    once a process.
    """
    parts = [source, *sorted(source.parent.glob("roi_*.h"))]
    key = hashlib.sha256(repr((version(), compile_options(arch, defines))).encode())
    for part in parts:
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
        Path(part_file.name).replace(path)  # whole or not at all, whoever else compiles it now
    except OSError:
        pass
    return binary


def _loaded() -> ctypes.CDLL:
    nvrtc = library()
    if nvrtc is None:
        raise RuntimeError("NVRTC, the compiler library of torch's CUDA wheels, was not found")
    return nvrtc


def _fetch(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(_loaded(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(_loaded(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
