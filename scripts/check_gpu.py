#!/usr/bin/env python3
"""Check RoI pooling on a GPU, case by case, and describe the first difference of each case in detail.

    python scripts/check_gpu.py [--json FILE] [--case N] [--device cpu]

Prints the device, the driver and the versions, compiles the kernels for each dtype, and compares outputs and gradients
with the CPU backend, from one RoI with one bin up to the feature maps of VGG16. They must be bit-identical. If a case
fails, compute-sanitizer runs on the smallest failing case, if it is installed. At the end, the tests marked `gpu` run.
The exit status is 1 if a case or a test fails.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")  # an error is then reported by the call that caused it

import torch
from measuring import Table, machine_details
from torch import Tensor

from fastrcnn.ops import cuda, roi_pool
from fastrcnn.ops.arguments import FEATURE_TYPES
from fastrcnn.ops.reference import VARIANTS

SANITIZER_SECONDS = 40
# Without the options and fixtures of the complete test suite, which need additional packages.
OPTIONS = ("-o", "addopts=", "-o", "timeout=60", "-p", "no:cacheprovider", "--noconftest", "-q", "-m", "gpu")
TESTS = ("tests/test_gpu.py", "tests/ops/test_cuda.py", "tests/ops/test_nms.py")
NO_TESTS = 5  # pytest's exit status if no test was selected


@dataclass
class Case:
    images: int
    channels: int
    height: int
    width: int
    rois: int
    bins: int
    dtype: torch.dtype
    variant: str = "fast_rcnn"
    deterministic: bool = True

    def __str__(self) -> str:
        shape = f"{self.images}x{self.channels}x{self.height}x{self.width}"
        order = "" if self.deterministic else ", atomic backward"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{shape}, {self.rois} RoI(s), {self.bins}x{self.bins} bins, {dtype}, {self.variant}{order}"


def cases() -> Iterator[Case]:
    """Yield cases from small to large. Channel counts that are no multiple of a vector use another kernel."""
    for dtype in FEATURE_TYPES:
        yield Case(1, 1, 3, 4, 1, 1, dtype)
    for dtype in FEATURE_TYPES:
        for channels in (8, 130):
            for variant in VARIANTS:
                yield Case(2, channels, 13, 17, 40, 3, dtype, variant)
    for dtype in FEATURE_TYPES:
        yield Case(2, 512, 38, 63, 300, 7, dtype)
        yield Case(2, 512, 38, 63, 300, 7, dtype, deterministic=False)


def pooled(case: Case, features: Tensor, rois: Tensor, grad: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the output and the gradient of the features, on the CPU."""
    x = features.to(device).requires_grad_()
    torch.use_deterministic_algorithms(case.deterministic)
    try:
        out = roi_pool(x, rois.to(device), case.bins, 1 / 4, case.variant)
        out.backward(grad.to(device))
    finally:
        torch.use_deterministic_algorithms(False)
    assert x.grad is not None
    return out.detach().cpu(), x.grad.cpu()


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Return random features, RoIs that partly extend beyond the image, and gradients whose sums are exact."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(case.images, case.channels, case.height, case.width, generator=generator).to(case.dtype)
    around = 4 * torch.tensor([case.width, case.height])
    corners = (torch.rand(case.rois, 2, 2, generator=generator) * 1.3 - 0.15) * around
    index = torch.randint(case.images, (case.rois, 1), generator=generator).float()
    rois = torch.cat([index, corners.amin(1), corners.amax(1)], 1)
    shape = (case.rois, case.channels, case.bins, case.bins)
    grad = torch.randint(-1, 2, shape, generator=generator).to(case.dtype)
    return features.contiguous(memory_format=torch.channels_last), rois, grad


def difference(what: str, got: Tensor, want: Tensor, rois: Tensor | None) -> str:
    """Describe the first element that differs, or return an empty string. rois: those of an output (K, C, PH, PW)."""
    wrong = ~((got == want) | (got.isnan() & want.isnan()))
    if not wrong.any():
        return ""
    index = tuple(int(i) for i in wrong.nonzero()[0])
    roi = "" if rois is None else f", RoI {rois[index[0]].tolist()}"
    return (
        f"{what}: {int(wrong.sum())} of {wrong.numel()} elements differ, first at {list(index)}: "
        f"got {got[index].item()}, expected {want[index].item()}{roi}"
    )


def fault(case: Case, device: torch.device) -> str:
    """Return the error message of a case, or an empty string."""
    features, rois, grad = inputs(case)
    try:
        out, slope = pooled(case, features, rois, grad, device)
    except Exception:  # the aim is to learn as much as possible in one run
        return traceback.format_exc(limit=-3)
    want, want_slope = pooled(case, features, rois, grad, torch.device("cpu"))
    found = difference("output", out, want, rois), difference("gradient", slope, want_slope, None)
    return "; ".join(filter(None, found))


def compiler_details(device: torch.device) -> dict[str, Any]:
    """Return the driver, NVRTC and the target. Print the compiler's log of a dtype that does not compile."""
    major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if (library := cuda.nvrtc()) is None:
        return {"nvrtc": None}
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if (driver := cuda.driver()) is not None:
        driver.cuDriverGetVersion(ctypes.byref(version))
    capability = torch.cuda.get_device_capability() if device.type == "cuda" else (9, 0)
    target, seconds = cuda.target(*capability), time.perf_counter()
    for value, dtype in enumerate(FEATURE_TYPES):
        try:
            cuda.compile_kernel(cuda.SOURCE, target, [f"VALUE={value}"])
        except RuntimeError as error:
            print(f"{dtype}: {error}")
    return {
        "capability": capability,
        "driver": version.value,
        "cuda": torch.version.cuda,
        "nvrtc": f"{major.value}.{minor.value}",
        "target": target,
        "compile_seconds": round(time.perf_counter() - seconds, 2),
    }


def sanitize(number: int) -> str:
    """Return the end of the report of compute-sanitizer about a case."""
    if (tool := shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")) is None:
        return "compute-sanitizer is not installed"
    command = [tool, "--tool", "memcheck", sys.executable, __file__, "--case", str(number)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SANITIZER_SECONDS)
    except subprocess.TimeoutExpired:
        return f"compute-sanitizer did not end within {SANITIZER_SECONDS} s"
    return "\n".join((done.stdout + done.stderr).splitlines()[-40:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", type=int, help="run only this case, without compute-sanitizer")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cpu only tries the script itself")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and (reason := cuda.missing()):
        print(f"The kernels cannot run: {reason}")
    table = Table(machine_details(device) | compiler_details(device), ["case", "what", "result"], options.json)
    failed = []
    for number, case in enumerate(cases()):
        if options.case in (None, number):
            found = fault(case, device)
            first = found.strip().splitlines()[-1] if found else "bit-identical"
            table.add([str(number), str(case), first], {"case": str(case), "equal": not found, "fault": found})
            if found:
                failed.append((number, found))
    if failed:
        print(f"\n{len(failed)} case(s) failed. The first:\n{failed[0][1]}", flush=True)
        if options.case is None and device.type == "cuda":
            print(sanitize(failed[0][0]), flush=True)
    tests = 0
    if options.case is None:
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_LAUNCH_BLOCKING"}
        tests = subprocess.run([sys.executable, "-m", "pytest", *OPTIONS, *TESTS], env=environment).returncode
    sys.exit(bool(failed) or tests not in (0, NO_TESTS))


if __name__ == "__main__":
    main()
