"""Functions for the benchmarks: machine details, images, alternating runs, ratios, peak rates, FLOP and memory."""

from __future__ import annotations

import csv
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.transforms import Augmentation
from fastrcnn.model import networks
from fastrcnn.structures import Sample


def machine_details(device: torch.device) -> dict[str, str | int | None]:
    """Return the processor, threads, versions and GPU, for the heading of a table and for its JSON file."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
    }


class Table:
    """A Markdown table on stdout and a JSON file with the same rows. Both are complete after each row."""

    def __init__(self, machine: dict[str, Any], columns: Sequence[str], file: Path | None) -> None:
        self.machine, self.file = machine, file
        self.rows: list[dict[str, Any]] = []
        print(machine)
        print(f"| {' | '.join(columns)} |")
        print("|" + "---|" * len(columns), flush=True)

    def add(self, cells: Sequence[str], values: dict[str, Any]) -> None:
        """Add a row. cells: its texts for the Markdown table. values: its content for the JSON file."""
        print(f"| {' | '.join(cells)} |", flush=True)
        self.rows.append(values)
        if self.file:
            self.file.write_text(json.dumps({"machine": self.machine, "rows": self.rows}, indent=1) + "\n")


def jpeg_images(folder: Path, number: int, augmentation: Augmentation) -> DetectionDataset:
    """Write 500 x 375 JPEG files with smooth noise. Return a data set with one object and 2,000 proposals per image."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(number):
        path = folder / f"{i}.jpg"
        cv2.imwrite(str(path), cv2.resize(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), (500, 375)))
        box = np.array([[50, 50, 200, 200]], np.float32)
        samples.append(Sample(str(i), path, 500, 375, box, np.array([1]), np.zeros(1, bool)))
    boxes = np.sort(rng.uniform(0, 370, (2000, 2, 2)), axis=1).reshape(2000, 4).astype(np.float32)
    return DetectionDataset(samples, lambda _: boxes, augmentation)


def logged_values(run: Path) -> dict[str, list[float]]:
    """Return the values that a training run logged in metrics.csv, by name."""
    logged: dict[str, list[float]] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            logged.setdefault(row["name"], []).append(float(row["value"]))
    return logged


def milliseconds(run: Callable[[], object]) -> float:
    """Return the wall-clock time of a call in milliseconds."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def gpu_milliseconds(run: Callable[[], object]) -> float:
    """Return the time in milliseconds that a CUDA device needs for the work of a call.

    The device is busy for about a millisecond first, so that it does not wait for the host, which submits the work.
    """
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def processor(run: Callable[[], object]) -> float:
    """Return the CPU time of a call in seconds, over all threads."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def in_turn(
    turns: int,
    *runs: Callable[..., object],
    draw: Callable[[], tuple] = tuple,
    clock: Callable[[Callable[[], object]], float] = milliseconds,
    skip: int = 1,
) -> list[list[float]]:
    """Measure the runs one after another in each turn, with new arguments from `draw` per turn.

    clock: a function that measures a call. Return the measurements of each run, without the first `skip` turns.
    """
    spent: list[list[float]] = [[] for _ in runs]
    for turn in range(turns + skip):
        given = draw()
        for of_one, run in zip(spent, runs, strict=True):
            took = clock(partial(run, *given))
            if turn >= skip:
                of_one.append(took)
    return spent


def ratio_and_quartiles(peer: Sequence[float], ours: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the median and the lower and upper quartile of the ratio `peer` / `ours` over the turns."""
    ratios = [a / b for a, b in zip(peer, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return middle, (low, high)


def spread(ratio: tuple[float, tuple[float, float]]) -> str:
    """Format the result of `ratio_and_quartiles`."""
    middle, (low, high) = ratio
    return f"{middle:.3g}x ({low:.3g} to {high:.3g})"


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the TFLOP/s of a large matrix product (median of 9) as the peak rate of convolutions and linear layers."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    (spent,) = in_turn(9, lambda: a @ b, clock=gpu_milliseconds if device.type == "cuda" else milliseconds, skip=2)
    return 2 * side**3 / statistics.median(spent) / 1e9


def work(run: Callable[[], object]) -> float:
    """Return the TFLOP of convolutions and matrix products in a call. Rows computed in two strips are counted once."""
    whole = mock.patch.object(networks, "STRIP_VALUES", 2**62)
    with whole, FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def peak_above_now(run: Callable[[], object], times: int = 1) -> float:
    """Return the peak memory in MiB during `times` calls, above the usage before. Linux only."""
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system; otherwise `run` would reuse it uncounted
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak (VmHWM)
    before = _in_use("VmRSS")
    for _ in range(times):
        run()
    return _in_use("VmHWM") - before


def _in_use(what: str) -> float:
    """Return the current (VmRSS) or peak (VmHWM) memory of this process in MiB."""
    (line,) = (n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith(what))
    return int(line.split()[1]) / 2**10
