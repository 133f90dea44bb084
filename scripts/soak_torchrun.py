"""Kill processes of a torchrun job at random times and check that the job ends with the same weights.

    python scripts/soak_torchrun.py [--kills 10] [--seed 0]

Two processes train a tiny network on nine images of the demo data set. Each time the job has saved a newer checkpoint,
one of the processes, selected at random, is killed with SIGKILL. torchrun then restarts both, and the run resumes. Its
final weights are compared to those of an uninterrupted job.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from soak import DEADLINE, SETTINGS, newest, weights

from fastrcnn.data.demo import write_demo

STEPS_A_KILL = 40


def torchrun(place: Path, run: str, steps: int, kills: int, said: Path) -> subprocess.Popen:
    """Start a job with two processes in the folder `run` within `place`."""
    settings = [*SETTINGS, f"solver.iterations={steps}", "runtime.checkpoint_every=5"]
    how = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(kills)]
    command = [sys.executable, "-m", "torch.distributed.run", *how, "-m", "fastrcnn", "train", f"run={run}", *settings]
    with said.open("w") as file:
        return subprocess.Popen(command, cwd=place, stdout=file, stderr=subprocess.STDOUT)


def processes_of(job: int) -> list[int]:
    """Return the IDs of the processes that torchrun has started."""
    found = []
    for child in Path(f"/proc/{job}/task/{job}/children").read_text().split():
        with contextlib.suppress(OSError):  # the process has ended
            if b"RANK=" in Path(f"/proc/{child}/environ").read_bytes():
                found.append(int(child))
    return found


def soak(place: Path, kills: int, seed: int) -> tuple[int, bool, str]:
    """Run the soak test. Return the number of resumptions, whether the final weights are equal, and the output."""
    rng = random.Random(seed)
    write_demo(place / "data" / "demo", train=6, val=3, test=3)
    steps = STEPS_A_KILL * (kills + 1)
    alone = torchrun(place, "alone", steps, 0, place / "alone.txt")
    if alone.wait() != 0:
        raise SystemExit(f"A job failed although no process was killed:\n{(place / 'alone.txt').read_text()}")
    said, checkpoints = place / "killed.txt", place / "killed" / "checkpoints"
    job = torchrun(place, "killed", steps, kills, said)
    for _ in range(kills):
        before, deadline = newest(checkpoints), time.monotonic() + DEADLINE
        while newest(checkpoints) <= before:
            if job.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"The job made no progress after step {before}:\n{said.read_text()}")
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(rng.choice(processes_of(job.pid)), signal.SIGKILL)
        print(f"Killed a process after step {newest(checkpoints)}", file=sys.stderr, flush=True)
    status = job.wait(10 * DEADLINE)
    went_on = len(re.findall(r"Resuming from .*step-\d+\.pt", said.read_text()))
    equal = status == 0 and weights(place / "killed", steps) == weights(place / "alone", steps)
    return went_on, equal, said.read_text()


def main() -> None:
    """Run the soak test and print the table of BENCHMARKS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        went_on, equal, said = soak(Path(folder), options.kills, options.seed)
    print("| measurement | result |\n|---|---|")
    print(f"| kills (SIGKILL) of one of the two processes | {options.kills} |")
    print(f"| restarts that resumed from a checkpoint | {went_on} |")
    print(f"| final weights equal to those of the uninterrupted job (SHA-256) | {'yes' if equal else 'NO'} |")
    print(f"| minutes | {(time.monotonic() - began) / 60:.1f} |")
    if went_on != options.kills or not equal:
        raise SystemExit(said)


if __name__ == "__main__":
    main()
