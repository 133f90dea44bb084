"""Benchmark a complete training run on image files, from the start of the command to its end.

    python scripts/bench_schedule.py [--iterations 40000] [--pictures 500] [--json FILE] [KEY=VALUE ...]

The default is the paper's schedule. Images of 500 x 375 are generated as for `fastrcnn demo`, with 2,000 proposals each
(shifted ground-truth boxes and random boxes). `fastrcnn train` then trains a randomly initialised VGG16 on them, with
the paper's solver, in bfloat16. Accuracy is not measured. KEY=VALUE arguments are passed to `fastrcnn train`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import logged_values, machine_details

from fastrcnn.data.annotations.splits import load
from fastrcnn.data.demo import CLASSES, write_demo
from fastrcnn.proposals.store import ImageProposals, write_store
from fastrcnn.structures import Sample

SIZE = (500, 375)
PROPOSALS = 2000
SETTINGS = (
    "recipe=paper",
    "model=vgg16",
    "model.weights=null",
    "runtime.precision=bfloat16",
    "data=custom",
    f"data.classes=[{','.join(CLASSES)}]",
    "data.train=[train]",
    "data.val=[]",
    "data.test=[]",
)


def proposals(samples: Sequence[Sample]) -> Iterator[ImageProposals]:
    """Yield 40 copies of each ground-truth box, shifted by up to a third of its sides, and random boxes."""
    rng = np.random.default_rng(0)
    longest = np.float32(SIZE)
    for sample in samples:
        truth = np.repeat(sample.boxes, 40, axis=0)
        sides = truth[:, 2:] - truth[:, :2]
        near = truth + np.tile(sides, 2) * rng.uniform(-1 / 3, 1 / 3, truth.shape)
        wide = 20 * (longest / 20) ** rng.random((PROPOSALS - len(near), 2))
        corners = rng.random(wide.shape) * (longest - wide)
        boxes = np.concatenate([near, np.concatenate([corners, corners + wide], 1)]).astype(np.float32)
        yield ImageProposals(sample.image_id, sample.height, sample.width, rng.permutation(boxes))


def data_set(folder: Path, pictures: int) -> tuple[Path, Path]:
    """Create a data set with this number of images and its proposal store. Return their paths."""
    root = write_demo(folder / "set", train=pictures, val=1, test=1, size=SIZE)
    ids = (root / "ImageSets" / "Main" / "train.txt").read_text().split()
    samples, _ = load(root, ids, CLASSES)
    store = folder / "set.proposals"
    write_store(store, proposals(samples), "drawn for a benchmark", {})
    return root, store


def trained(folder: Path, root: Path, store: Path, iterations: int, settings: Sequence[str]) -> dict[str, float]:
    """Run the training; return the number of steps, its duration, and values that it logged, by name."""
    run = folder / "run"
    keys = [f"data.root={root}", f"data.proposals={store}", f"solver.iterations={iterations}", f"run={run}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fastrcnn", "train", *SETTINGS, *keys, *settings], check=True)
    seconds = time.perf_counter() - start
    logged = logged_values(run)
    return {
        "iterations": iterations,
        "seconds": seconds,
        "ms_per_step": seconds * 1e3 / iterations,
        "images_per_s_while_training": statistics.median(logged["train/images_per_s"]),
        "share_waiting_for_pictures": statistics.mean(logged["train/data_wait_share"]),
        "last_loss": logged["train/loss"][-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=40_000)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    described = machine_details(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, store = data_set(folder, options.pictures)
        result = trained(folder, root, store, options.iterations, options.settings)
    print(described)
    print(
        f"{options.iterations} steps with 2 images each: {result['seconds']:.0f} s in total, "
        f"{result['ms_per_step']:.2f} ms per step; without start-up, checkpoints and shutdown "
        f"{2e3 / result['images_per_s_while_training']:.2f} ms per step, "
        f"{result['share_waiting_for_pictures']:.1%} of this time waiting for images; "
        f"last loss {result['last_loss']:.3f}. Goal for 40,000 steps on an H200: 360 s."
    )
    if options.json:
        options.json.write_text(json.dumps({"machine": described, "rows": [result]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
