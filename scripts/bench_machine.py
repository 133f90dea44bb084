"""What a benchmark of torch ran on, and the memory that it took."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision


def machine(device: torch.device) -> dict[str, str | int | None]:
    """Processor, threads, versions and GPU, for the head of a table and its JSON file."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
    }


def peak_above_now(run: Callable[[], object], times: int = 1) -> float:
    """MiB at most in use while `run` runs so many times, above what there is before; on Linux."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free already goes back to the system, or `run` would use it uncounted
    Path("/proc/self/clear_refs").write_text("5")  # the highest use so far is forgotten
    before = _in_use("VmRSS")
    for _ in range(times):
        run()
    return _in_use("VmHWM") - before


def _in_use(what: str) -> float:
    """MiB of memory of this process, now (VmRSS) or at most (VmHWM), as Linux counts it."""
    (line,) = (n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith(what))
    return int(line.split()[1]) / 2**10
