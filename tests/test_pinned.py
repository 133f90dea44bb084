"""What the program computes and prints is what it computed when tests/pinned was written, by scripts/pin.py.

Floats differ in their last digits between CPUs and versions of torch. values.json says what it was made with: where
that is the same here, every value must be equal to the last digit, and the hashes of the weights too. Elsewhere the
losses of the first five steps must be within 1e-3 of the pinned ones; later losses, weights, detections and AP are not
compared, and their tests are skipped, as tiny differences grow with each step. The help texts are compared everywhere.

A pure move of code changes nothing here. After a deliberate change of behaviour: python scripts/pin.py, and review the
difference. To compare two commits on another machine: python scripts/pin.py FOLDER with each, and diff the folders.
"""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from script_module import FOLDER as SCRIPTS

PINNED = Path(__file__).parent / "pinned"
RUNS = ("scratch", "paper", "accumulate", "two_processes")
LOSSES = ("train/loss", "train/loss_cls", "train/loss_box")
FIRST = 5  # steps whose losses are compared on every machine


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of values.json and help.txt, made anew in another process, so that no other test has a say in them."""
    folder = tmp_path_factory.mktemp("pinned")
    done = subprocess.run([sys.executable, SCRIPTS / "pin.py", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def now(fresh: Path) -> dict[str, Any]:
    return values(fresh)


@pytest.fixture(scope="module")
def then() -> dict[str, Any]:
    return values(PINNED)


def values(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "values.json").read_text(encoding="utf-8"))


def differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What this machine has that the pinned values were not made with; empty where they must be equal."""
    here, there = now["made_with"], then["made_with"]
    return ", ".join(f"{key} {here.get(key)} (pinned: {there[key]})" for key in there if here.get(key) != there[key])


@pytest.mark.parametrize("run", RUNS)
def test_losses(then: dict[str, Any], now: dict[str, Any], run: str) -> None:
    """And the other numbers of each step: the rate, the gradient's length, the shares of foreground."""
    before, after = then["scalars"][run], now["scalars"][run]
    assert after.keys() == before.keys()
    if differences(then, now):
        for name in LOSSES:
            assert after[name][:FIRST] == pytest.approx(before[name][:FIRST], rel=1e-3), name
    else:
        assert after == before


@pytest.mark.parametrize("part", [*(f"weights of {run}" for run in RUNS), "metrics", "detect", "load"])
def test_to_the_last_digit(then: dict[str, Any], now: dict[str, Any], part: str) -> None:
    """Weights after the last step, and the metrics.json and detections of the run from scratch."""
    if different := differences(then, now):
        pytest.skip(f"pinned with something else: {different}")
    key, _, run = part.partition(" of ")
    assert (now[key][run] if run else now[key]) == (then[key][run] if run else then[key])


def test_help(fresh: Path) -> None:
    texts = [(folder / "help.txt").read_text(encoding="utf-8").splitlines() for folder in (PINNED, fresh)]
    assert texts[0] == texts[1], "\n".join(difflib.unified_diff(*texts, "pinned", "now", lineterm="", n=1))


def test_there_is_something_to_compare(then: dict[str, Any]) -> None:
    """Twenty steps of each run, weights that differ, detections in each image, an AP above 0."""
    assert {len(numbers) for run in RUNS for numbers in then["scalars"][run].values()} == {20}
    assert len(set(then["weights"].values())) == len(RUNS)
    assert {row["image_id"] for row in then["detect"]} == {"000351", "000352", "000353"}
    assert all(found["scores"] for found in then["load"])
    assert then["metrics"]["mAP"] > 0
