"""Kill a training run repeatedly at random times, resume it, and check its checkpoints and its final weights.

    python scripts/soak.py [--kills 50] [--seed 0]

The run trains a tiny network on nine images of the demo data set and saves a checkpoint after every step. It is killed
with SIGKILL at random times, mostly while it trains or saves, and sometimes during start-up. It is then resumed,
alternately with no and with two data loader workers. Its final weights are compared to those of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastrcnn.data.demo import write_demo
from fastrcnn.errors import UserError
from fastrcnn.training import checkpoint

STEPS_A_KILL = 12  # maximum number of steps before a kill, so that enough steps remain for the next kills
DEADLINE = 120.0  # seconds; maximum time to wait for progress
SETTINGS = [
    "experiment=demo",
    "model.width=0.03",
    "model.roi_features=[conv5_3]",
    "solver.images_per_batch=2",
    "solver.rois_per_image=8",
    "solver.warmup=0",
    "data.short_sides=[64]",
    "data.test_short_sides=64",
    "data.selective_search.side=64",
    "data.selective_search.k=[50]",
    "data.selective_search.max_boxes=30",
    "runtime.device=cpu",
    "runtime.precision=float32",
    "runtime.threads=1",
    "runtime.workers=0",
    "runtime.log_every=1",
    "runtime.images_every=0",
    "runtime.checkpoint_every=1",
]


class Process(Protocol):
    """The parts of the interface of subprocess.Popen that `soak` uses."""

    pid: int

    def poll(self) -> int | None: ...


Start = Callable[[list[str], Path], Process]  # parameters: arguments of fastrcnn, file for its output


@dataclass
class Report:
    """The results of a soak test.

    while_saving: kills that left an incomplete checkpoint. before_any: restarts without a checkpoint. looked_at,
    unreadable: checkpoints that were read after kills, and those of them that could not be read. from_newest,
    from_others: resumptions from the newest valid checkpoint, and from any other. steps: training steps of the run.
    equal: whether the final weights are equal to those of the uninterrupted run.
    """

    kills: int = 0
    while_saving: int = 0
    before_any: int = 0
    looked_at: int = 0
    unreadable: int = 0
    from_newest: int = 0
    from_others: int = 0
    steps: int = 0
    equal: bool = False
    seconds: float = 0.0


def soak(start: Start, place: Path, kills: int, seed: int = 0) -> Report:
    """Run the soak test in the empty folder `place`. `start` must use it as the working directory of its processes."""
    began = time.monotonic()
    rng = random.Random(seed)
    write_demo(place / "data" / "demo", train=6, val=3, test=3)
    report = Report(steps=STEPS_A_KILL * kills + 10)
    settings = [*SETTINGS, f"solver.iterations={report.steps}"]
    finish(start(["train", "run=alone", *settings], place / "alone.txt"), place / "alone.txt")

    checkpoints, said = place / "killed" / "checkpoints", place / "killed.txt"
    while True:
        workers = f"runtime.workers={2 * (report.kills % 2)}"
        known = (place / "killed" / "config.yaml").is_file()
        arguments = ["run=killed", "resume=auto", workers] if known else ["run=killed", *settings, workers]
        before = newest(checkpoints)
        process = start(["train", *arguments], said)
        if report.kills == kills:
            finish(process, said)
            count_start(report, before, said)
            break
        wait_and_kill(process, checkpoints, before, rng)
        report.kills += 1
        count_start(report, before, said)
        look(report, checkpoints)
    report.equal = weights(place / "killed", report.steps) == weights(place / "alone", report.steps)
    report.seconds = time.monotonic() - began
    return report


def newest(checkpoints: Path) -> int:
    """Return the step of the newest valid checkpoint, or 0 if there is none."""
    try:
        return checkpoint.newest_sound(checkpoints)[1]["step"]
    except UserError:
        return 0


def wait_and_kill(process: Process, checkpoints: Path, before: int, rng: random.Random) -> None:
    """Kill the process: in one of ten cases shortly after its start, otherwise within 0.5 s of its first new step."""
    early = rng.random() < 0.1
    moment = time.monotonic() + rng.uniform(0, 3) if early else None
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        step = int(found[0].stem[5:]) if (found := checkpoint.in_order(checkpoints)) else 0
        if moment is None and step > before:
            moment = time.monotonic() + rng.uniform(0, 0.5)
        if (moment is not None and time.monotonic() >= moment) or step >= before + STEPS_A_KILL:
            break
        time.sleep(0.001)
    assert process.poll() is None, "the process ended before it was killed"
    os.kill(process.pid, signal.SIGKILL)
    while process.poll() is None:
        time.sleep(0.001)


def finish(process: Process, said: Path) -> None:
    """Wait for a run to end. Raises SystemExit if the run fails."""
    while process.poll() is None:
        time.sleep(0.01)
    if process.poll() != 0:
        raise SystemExit(f"A run failed although it was not killed:\n{said.read_text()}")


def count_start(report: Report, before: int, said: Path) -> None:
    """Count whether the run was resumed from the newest valid checkpoint, from another one, or without a checkpoint.

    before: the step of the newest valid checkpoint. A run that was killed during start-up counts as none of these.
    """
    text = said.read_text()
    if found := re.search(r"Resuming from .*step-(\d+)\.pt", text):
        if int(found[1]) == before:
            report.from_newest += 1
        else:
            report.from_others += 1
    elif "before its first checkpoint" in text:
        report.before_any += 1


def look(report: Report, checkpoints: Path) -> None:
    """Check the files that remain after a kill."""
    report.while_saving += any(checkpoints.glob(".*.part"))
    for path in checkpoint.in_order(checkpoints):
        report.looked_at += 1
        try:
            checkpoint.load(path)
        except UserError:
            report.unreadable += 1


def weights(run: Path, step: int) -> str:
    """Return the SHA-256 of the weights after the last step."""
    digest = hashlib.sha256()
    for name, value in checkpoint.load(run / "checkpoints" / f"step-{step}.pt")["model"].items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Run the soak test with separate processes and print the table of BENCHMARKS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def start(arguments: list[str], said: Path) -> Process:
            with said.open("w") as file:
                return subprocess.Popen(
                    [sys.executable, "-m", "fastrcnn", *arguments], cwd=place, stdout=file, stderr=subprocess.STDOUT
                )

        report = soak(start, place, options.kills, options.seed)
    print("| measurement | result |\n|---|---|")
    print(f"| kills (SIGKILL) during {report.steps} steps | {report.kills} |")
    print(f"| kills while a checkpoint was being written | {report.while_saving} |")
    print(f"| checkpoints that could not be read | {report.unreadable} of {report.looked_at} |")
    print(f"| resumed from the newest valid checkpoint | {report.from_newest} |")
    print(f"| resumed from another checkpoint | {report.from_others} |")
    print(f"| final weights equal to those of the uninterrupted run (SHA-256) | {'yes' if report.equal else 'NO'} |")
    print(f"| minutes | {report.seconds / 60:.1f} |")
    sys.exit(report.unreadable > 0 or report.from_others > 0 or not report.equal)


if __name__ == "__main__":
    main()
