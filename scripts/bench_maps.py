"""Benchmark training epochs on cached feature maps against epochs on pixels (runtime.cache rows of BENCHMARKS.md).

    python scripts/bench_maps.py [--side 600] [--images 16] [--epochs 5] [--threads N]

Both train a new head with 1,024 features, alone or together with conv5, on VGG16's frozen convolutions, with 4 images x
64 RoIs per step. They use the same loop and loader, and JPEG files of 500 x 375 with 2,000 proposals each. After an
epoch that computes and caches the maps, both alternate epoch by epoch. The weights are random, which does not affect
the time.

A second table measures a head on cached maps in separate, alternating processes. In one, the C library returns freed
memory to the system as usual. In the other, the process keeps it, as `fastrcnn train` does with `runtime.cache`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from measuring import in_turn, jpeg_images, machine_details, milliseconds, ratio_and_quartiles

from fastrcnn.build.machine import precision
from fastrcnn.cli.train import keep_freed_memory
from fastrcnn.config.schema import RuntimeConfig
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import training_loader
from fastrcnn.data.transforms import Augmentation
from fastrcnn.model.fast_rcnn import FastRCNN, freeze_before
from fastrcnn.model.sampling import RoISampler
from fastrcnn.training.loop import Schedule, train
from fastrcnn.training.maps import Maps
from fastrcnn.training.meter import Meter
from fastrcnn.training.optim import make_optimizer

CLASSES, PER_STEP = 20, 4
CASES = {"head only": "fc6", "head and conv5": "conv5_1"}


def epochs(model: FastRCNN, dataset: DetectionDataset, dtype: torch.dtype, maps: Maps | None) -> Callable[[], object]:
    """Return a function that trains for one epoch per call, on `maps` or on pixels."""
    sampler = RoISampler(torch.zeros(CLASSES + 1, 4), torch.ones(CLASSES + 1, 4))
    steps_in_epoch = len(dataset) // PER_STEP
    steps = train(
        model,
        training_loader(dataset, PER_STEP),
        sampler,
        make_optimizer(model, optimizer="adamw"),
        Schedule(10**9, lambda _: 1e-5),
        Meter(),
        dtype=dtype,
        inputs=maps,
    )
    return lambda: [next(steps) for _ in range(steps_in_epoch)]


def pair(folder: Path, first: str, images: int, side: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two functions that train for an epoch, on pixels and on cached maps. first: the first trained layer."""
    dtype = precision(RuntimeConfig(), torch.device("cpu"))
    pixels = jpeg_images(folder, images, Augmentation((side,), flip=False))
    models = [FastRCNN(CLASSES, head=(1024, 1024)) for _ in range(2)]
    for model in models:
        freeze_before(model.to(memory_format=torch.channels_last), first)  # type: ignore[call-overload]
    maps = Maps(folder / "maps", models[1], dtype, 1e11)
    kept = replace(pixels, unneeded=maps.files.has)
    return epochs(models[0], pixels, dtype, None), epochs(models[1], kept, dtype, maps)


def in_own_process(freed: str) -> float:
    """Return the milliseconds of an epoch on cached maps in a new process. freed: `kept` or `returned` memory."""
    arguments = [sys.executable, __file__, *sys.argv[1:], "--freed", freed]
    return float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--side", type=int, default=600)
    parser.add_argument("--images", type=int, default=16, help="a multiple of 4")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--freed", choices=["kept", "returned"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.freed == "kept":
        keep_freed_memory()
    if options.freed:
        with tempfile.TemporaryDirectory() as name:
            _, kept = pair(Path(name), CASES["head only"], options.images, options.side)
            kept()
            print(statistics.median(milliseconds(kept) for _ in range(options.epochs)))
        return
    print(machine_details(torch.device("cpu")))
    print(
        "| trained | pixels, s per epoch | cached maps, s per epoch | ratio | quartiles |\n|---|---|---|---|---|",
        flush=True,
    )
    for case, first in CASES.items():
        with tempfile.TemporaryDirectory() as name:
            report(case, *in_turn(options.epochs, *pair(Path(name), first, options.images, options.side)))
    took = [(in_own_process("returned"), in_own_process("kept")) for _ in range(options.epochs)]
    print("\n| trained | memory returned, s | memory kept, s | ratio | quartiles |\n|---|---|---|---|---|")
    report("head only, cached maps", *map(list, zip(*took, strict=True)))


def report(case: str, slow: list[float], fast: list[float]) -> None:
    """Print a row with the median times in seconds, given milliseconds, and their ratio."""
    ratio, (low, high) = ratio_and_quartiles(slow, fast)
    times = " | ".join(f"{statistics.median(spent) / 1e3:.3g}" for spent in (slow, fast))
    print(f"| {case} | {times} | {ratio:.1f}x | {low:.1f} to {high:.1f} |", flush=True)


if __name__ == "__main__":
    main()
