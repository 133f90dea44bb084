"""recipe=transfer and the experiments that use it, in small: what is frozen, kept, and begun anew."""

from __future__ import annotations

import csv
import logging
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from limits import PATIENCE
from voc_folder import VocFolder

from fastrcnn.build.run import warn_of_slow_training
from fastrcnn.config.compose import compose
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.training.checkpoint import in_order

Call = Callable[..., tuple[int, str, str]]
WIDTH = 1 / 16
SMALL = [
    f"model.width={WIDTH}",
    "model.head=[8,8]",
    "model.roi_size=2",
    "data.selective_search.mode=fast",
    "data.selective_search.min_side=0",
    "data.max_proposals=50",
    "solver.warmup=2",
    "runtime.workers=0",
    "runtime.precision=float32",
    "runtime.device=cpu",
]


@pytest.fixture
def convolutions(tmp_path: Path) -> Path:
    """A file with the convolutions alone, under this program's names."""
    state = FastRCNN(1, width=WIDTH).state_dict()
    path = tmp_path / "convolutions.pth"
    torch.save({name: value for name, value in state.items() if name.startswith("trunk.")}, path)
    return path


@pytest.mark.parametrize(
    ("keys", "views"),
    [
        (["recipe=transfer", "data=custom"], 8),  # two images and two mosaics, and mirrored
        (["experiment=bccd_transfer", "data.classes=null"], 11),  # of 16, upside down and transposed too: those drawn
        (["experiment=voc07_laptop", "data.classes=null", "data.train=[trainval]", "data.test=[test]"], 4),
    ],
)
def test_a_head_is_trained_on_kept_maps_of_the_weights_given(
    keys: list[str],
    views: int,
    tiny: VocFolder,
    convolutions: Path,
    call: Call,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = [*keys, f"data.root={tiny.root}", f"model.weights={convolutions}", *SMALL, "solver.iterations=6", "run=run"]
    with caplog.at_level(logging.INFO):
        status, out, err = call("train", *given, "runtime.log_every=1")
    assert status == 0, err
    assert "loaded: conv1_1 to conv5_3; initialised:" in caplog.text
    assert f"feature maps of the frozen layers for {views} inputs" in caplog.text
    assert "mAP" in out
    mosaics = " and 2 mosaics of them" if "recipe=transfer" in keys else ""
    assert f"run: 2 training images{mosaics}, " in caplog.text
    content = torch.load(in_order(Path("run/checkpoints"))[-1])
    made = {"mosaics": 2} if mosaics else {}
    assert content["record"] == {"images": 2, **made, "objects": {"cat": 1, "dog": 2}}
    assert call("eval", "checkpoint=run", f"data.root={tiny.root}")[0] == 0
    saved = content["model"]
    for name, value in torch.load(convolutions).items():
        assert torch.equal(saved[name], value), name
    assert bool((saved["map_scale"] != 1).all())
    with Path("run/metrics.csv").open(newline="") as file:
        losses = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "train/loss"]
    assert len(losses) == 6
    assert all(0 < loss < 5 for loss in losses)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], "training vgg16 from conv3_1 on takes several seconds per image, and this run processes 80,000 images"),
        (["recipe=paper"], "processes 80,000 images"),
        (["solver.iterations=100", "solver.accumulate=4"], "processes 3,200 images"),
        (["solver.iterations=100"], None),
        (["recipe=scratch"], None),
        (["recipe=transfer"], None),
        (["model=caffenet"], None),
        (["model.finetune_from=conv5_1"], None),
    ],
)
def test_a_long_training_without_a_gpu_names_the_recipes_for_it(
    keys: list[str], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_slow_training(compose("train", keys))
    assert (said is None) == (not caplog.text)
    assert said is None or (
        said in caplog.text and "recipe=transfer" in caplog.text and "recipe=scratch" in caplog.text
    )


FREED = """
import resource, sys
import numpy as np
from fastrcnn.cli.train import keep_freed_memory
if sys.argv[1:]:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24, np.float32)
before = faults()
for _ in range(10):
    np.ones(2**24, np.float32)
print(faults() - before)
"""


def faults(*arguments: str) -> int:
    """How often the system had to find memory for ten arrays, of 64 MiB each, of which one lives at a time."""
    command = [sys.executable, "-c", FREED, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back in its own way")
def test_freed_memory_is_kept_for_the_next_use() -> None:
    pages = 2**26 // resource.getpagesize()
    given_back = faults()
    assert given_back > 9 * pages / 512  # a page of 2 MB at most at a time
    assert faults("keep") < given_back / 5


@pytest.mark.parametrize(("cache", "times"), [("1e9", 1), ("0", 0)])
def test_a_training_on_kept_maps_keeps_its_freed_memory(
    cache: str, times: int, tiny: VocFolder, convolutions: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[None] = []
    monkeypatch.setattr("fastrcnn.cli.train.keep_freed_memory", lambda: called.append(None))
    given = ["recipe=transfer", "data=custom", f"data.root={tiny.root}", f"model.weights={convolutions}", *SMALL]
    given += ["data.short_sides=[64]", "data.test=[]", "solver.iterations=2", f"runtime.cache={cache}", "run=run"]
    status, _, err = call("train", *given)
    assert status == 0, err
    assert len(called) == times
