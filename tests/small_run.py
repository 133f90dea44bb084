"""A run of a few steps on a few pictures of the embedded data set, for tests of what is made of a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fastrcnn.cli import main
from fastrcnn.data.demo import write_demo

SETTINGS = [
    "experiment=demo",
    "model.width=0.05",  # fc6: 205 x 1274, of which a rank of 176 saves something; fc7: 205 x 205, and 102
    "solver.iterations=3",
    "solver.rois_per_image=16",
    "solver.warmup=0",
    "data.short_sides=[96]",
    "data.test_short_sides=96",
    "data.selective_search.side=96",
    "data.selective_search.k=[50]",
    "data.selective_search.max_boxes=40",
    "detection.score_threshold=0.01",
    "runtime.device=cpu",
    "runtime.precision=float32",
    "runtime.threads=1",
    "runtime.workers=0",
]


def make(folder: Path, *arguments: str) -> Path:
    """Writes data and a run, `run`, into the folder."""
    write_demo(folder / "data" / "demo", train=6, val=4, test=4)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "run=run", *SETTINGS, *arguments]) == 0
    torch.set_num_threads(threads)
    return folder


def copy(made: Path, here: Path) -> Path:
    """Copies the run's configuration and checkpoints; the data stay where they are."""
    shutil.copytree(made / "run", here / "run", ignore=shutil.ignore_patterns("eval", "tensorboard"))
    return here
