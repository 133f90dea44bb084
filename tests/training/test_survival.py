"""Trainings that are told to stop, killed, or left without room, each in a process of its own; what becomes of them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import Forked, Source, until
from limits import PATIENCE
from script_module import load

from fastrcnn.parallel.signals import SAME_REQUEST
from fastrcnn.training import checkpoint

soak = load("soak")
STEP = "fastrcnn.training.run:TrainingRun.finish_step"  # called after each step, when all of it is done


def status(process: Forked) -> int:
    until(lambda: process.poll() is not None)
    found = process.poll()
    assert found is not None
    return found


def children(pid: int) -> list[int]:
    """The loader's processes of a training."""
    found = []
    with contextlib.suppress(OSError):  # of a process, or a child, that has ended
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "pt_data_worker":
                found.append(int(child))
    return found


def steps(run: Path) -> list[int]:
    return [int(p.stem[5:]) for p in checkpoint.in_order(run / "checkpoints")]


@pytest.fixture(scope="module")
def whole(place: Path, source: Source) -> Path:
    """A run of 12 steps, evaluated after the sixth and the last, that nothing happens to."""
    settings = [*soak.SETTINGS, "solver.iterations=12", "runtime.evaluate_every=6"]
    process = source.start(["train", "run=whole", *settings], place / "whole.txt")
    assert status(process) == 0, (place / "whole.txt").read_text()
    return place / "whole"


def same_run(run: Path, whole: Path) -> None:
    """That nothing of a run tells that it was interrupted."""
    assert soak.weights(run, 12) == soak.weights(whole, 12)
    best, expected = (checkpoint.load(r / "checkpoints" / "best.pt") for r in (run, whole))
    assert (best["step"], best["best"]) == (expected["step"], expected["best"])
    for name in ("metrics.json", "comp4_det_test_star.txt"):
        assert (run / "eval" / "test" / name).read_bytes() == (whole / "eval" / "test" / name).read_bytes()

    def rows(folder: Path) -> list[tuple[int, str, str]]:
        with (folder / "metrics.csv").open(newline="") as file:
            listed = list(csv.reader(file))[1:]
        return sorted((int(step), name, value) for step, name, value in listed if name not in CLOCK)

    assert rows(run) == rows(whole)


CLOCK = ("train/steps_per_s", "train/images_per_s", "train/data_wait_share")  # of these no two runs have the same
PHASES = {  # the call where a run is held, and the step that is saved when it has ended
    "training": (STEP, 3, 3),
    "saving": (
        "os:fsync",
        13,
        4,
    ),  # two of each file: of itself, under another name, and of its folder; three are before
    "evaluating in between": ("fastrcnn.training.run:TrainingRun.evaluate", 1, 6),
    "evaluating at the end": ("fastrcnn.training.run:TrainingRun.evaluate", 2, 12),
}


@pytest.mark.parametrize(("phase", "workers"), list(zip(PHASES, (2, 0, 2, 0), strict=True)))
def test_a_run_that_is_told_to_stop_saves_says_how_to_go_on_and_is_the_same_run_then(
    source: Source, whole: Path, tmp_path: Path, phase: str, workers: int
) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    number, expected = (signal.SIGTERM, 143) if workers else (signal.SIGINT, 130)
    settings = [*soak.SETTINGS, "solver.iterations=12", "runtime.evaluate_every=6", f"runtime.workers={workers}"]
    where, call, step = PHASES[phase]
    process = source.start(["train", f"run={run}", *settings], said, hold=(where, call), then="hears")
    until(process.held, process)
    assert any((run / "checkpoints").glob(".*.part")) == (phase == "saving")
    os.kill(process.pid, number)
    process.release()
    assert status(process) == expected, said.read_text()
    text = said.read_text()
    assert "Traceback" not in text
    assert steps(run)[0] == step
    assert f"interrupted by {number.name}: step {step} is saved" in text
    assert f"To resume: fastrcnn train run={run} resume=auto" in text
    assert not list((run / "checkpoints").glob(".*"))
    again = source.start(["train", f"run={run}", "resume=auto"], said)
    assert status(again) == 0, said.read_text()
    assert f"Resuming from {run}/checkpoints/step-{step}.pt" in said.read_text()
    same_run(run, whole)


def test_a_signal_while_the_program_starts_ends_it_and_nothing_is_left(place: Path) -> None:
    """In a process that a shell would start: the signal comes while torch is being loaded, or somewhat later."""
    said = place / "starting.txt"
    with said.open("w") as file:
        command = [sys.executable, "-m", "fastrcnn", "train", "run=starting", *soak.SETTINGS]
        process = subprocess.Popen(command, cwd=place, stdout=file, stderr=subprocess.STDOUT)
    until(lambda: int(Path(f"/proc/{process.pid}/status").read_text().split("SigCgt:\t")[1].split()[0], 16) & (1 << 14))
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143
    later = ": nothing was trained yet. To resume: run the same command again"  # once the verb has begun
    assert said.read_text() in ("fastrcnn: interrupted by SIGTERM.\n", f"fastrcnn: interrupted by SIGTERM{later}\n")
    assert not (place / "starting").exists()


def test_a_second_signal_ends_it_at_once(source: Source, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    settings = [*soak.SETTINGS, "solver.iterations=100000", "runtime.workers=2"]
    process = source.start(["train", f"run={run}", *settings], said, hold=(STEP, 2), then="hangs")
    until(process.held, process)
    workers = children(process.pid)
    assert len(workers) == 2
    for worker in workers:  # they answer nothing any more
        os.kill(worker, signal.SIGSTOP)
    process.release()
    os.kill(process.pid, signal.SIGTERM)
    until(lambda: "ends it immediately, without saving" in said.read_text(), process)
    time.sleep(1.5 * SAME_REQUEST)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    assert status(process) == 143
    assert "Traceback" not in said.read_text()
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_loader_processes_ignore_signals_and_go_with_their_parent(source: Source, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*soak.SETTINGS, "solver.iterations=100000", "runtime.workers=2"]
    process = source.start(["train", f"run={run}", *settings], tmp_path / "said.txt")
    until(lambda: len(steps(run)) > 1, process)
    workers = children(process.pid)
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker, number)
    seen = steps(run)[0]
    until(lambda: steps(run)[0] > seen + 20, process)  # more than they had in store
    assert children(process.pid) == workers
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_a_loader_process_that_is_killed_is_named_and_the_step_saved(
    source: Source, whole: Path, tmp_path: Path
) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    settings = [*soak.SETTINGS, "solver.iterations=12", "runtime.evaluate_every=6", "runtime.checkpoint_every=100"]
    process = source.start(["train", f"run={run}", *settings, "runtime.workers=2"], said, hold=(STEP, 1))
    until(process.held, process)
    victim = children(process.pid)[1]  # it has batches in store for nine steps at most
    os.kill(victim, signal.SIGKILL)
    process.release()
    assert status(process) == 1, said.read_text()
    text = said.read_text()
    assert "Traceback" not in text
    assert f"dead worker processes: process {victim} (killed by SIGKILL)" in text
    assert "runtime.workers" in text
    with (run / "metrics.csv").open(newline="") as file:
        done = max(int(row["step"]) for row in csv.DictReader(file))
    assert 0 < done == steps(run)[0]
    assert f"Step {done} is saved." in text
    assert f"To resume: fastrcnn train run={run} resume=auto" in text
    assert status(source.start(["train", f"run={run}", "resume=auto", "runtime.workers=0"], said)) == 0
    same_run(run, whole)


def test_a_training_killed_at_random_moments_loses_nothing(source: Source, place: Path, tmp_path: Path) -> None:
    def start(arguments: list[str], said: Path) -> Forked:
        placed = [f"run={tmp_path / a[4:]}" if a.startswith("run=") else a for a in arguments]
        return source.start([*placed, f"data.root={tmp_path / 'data' / 'demo'}"], said, hold=next(held))

    held = iter(
        [None, *[("fastrcnn.training.checkpoint:save", soak.STEPS_A_KILL)] * 5, None]
    )  # alone; killed; the rest
    report = soak.soak(start, tmp_path, kills=5)
    assert report.kills == 5
    assert report.looked_at > 0
    assert report.unreadable == 0
    assert report.from_others == 0
    assert report.equal


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def begun(source: Source, run: Path) -> int:
    """Makes a run of 12 steps that was killed after some; gives the last one saved."""
    settings = [*soak.SETTINGS, "solver.iterations=12", "runtime.evaluate_every=6"]
    process = source.start(["train", f"run={run}", *settings], run.with_suffix(".txt"), hold=(STEP, 3))
    until(process.held, process)
    os.kill(process.pid, signal.SIGKILL)
    assert status(process) == -signal.SIGKILL
    return steps(run)[0]


def test_broken_newest_checkpoints_are_passed_over_and_said(source: Source, whole: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    good = begun(source, run)
    sound, flipped, cut, hostile, other = (run / "checkpoints" / f"step-{good + i}.pt" for i in range(5))
    content = bytearray(sound.read_bytes())
    cut.write_bytes(content[: len(content) // 2])
    content[len(content) // 2] ^= 16
    flipped.write_bytes(content)
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "model": Hostile(tmp_path / "made")}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest().encode()
    hostile.write_bytes(buffer.getvalue() + checkpoint.MAGIC + digest)
    checkpoint.save(other, {"step": good + 4, "model": {}})
    assert status(source.start(["train", f"run={run}", "resume=auto"], said)) == 0, said.read_text()
    text = said.read_text()
    for path, reason in ((flipped, "damaged"), (cut, "truncated"), (hostile, "read safely"), (other, "lacks .*best")):
        assert re.search(f"Skipped a checkpoint: {path}: .*{reason}", text), text
    assert f"Resuming from {sound}" in text
    assert not (tmp_path / "made").exists()
    same_run(run, whole)


def test_a_file_that_may_not_grow_is_an_error_and_the_last_good_checkpoint_stays(
    source: Source, whole: Path, tmp_path: Path
) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    good = begun(source, run)
    process = source.start(["train", f"run={run}", "resume=auto"], said, file_size=500_000)  # a checkpoint has 1 MB
    assert status(process) == 1
    text = said.read_text()
    assert f"step-{good + 1}.pt: cannot be written (File too large)" in text
    assert "Traceback" not in text
    assert steps(run)[0] == good
    assert not list((run / "checkpoints").glob(".*"))
    assert status(source.start(["train", f"run={run}", "resume=auto"], said)) == 0, said.read_text()
    same_run(run, whole)


@pytest.mark.parametrize("size", ["2m", "48k"], ids=["room for one checkpoint", "room for none"])
def test_a_full_disk_is_an_error_and_the_last_good_checkpoint_stays(
    source: Source, whole: Path, tmp_path: Path, size: str
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    namespace = ["unshare", "--map-root-user", "--mount"]  # nobody else sees what is mounted there
    mount = f"mount -t tmpfs -o size={size} tmpfs {small}"
    if shutil.which("unshare") is None or subprocess.run([*namespace, "sh", "-c", mount], check=False).returncode:
        pytest.skip("nothing can be mounted here, so there is no small disk")
    # What was written there is copied out before it vanishes.
    script = f'{mount}; "$@"; status=$?; cp -r {small}/run {tmp_path}; exit $status'
    settings = [*soak.SETTINGS, "solver.iterations=12", "runtime.evaluate_every=6"]
    command = [sys.executable, "-m", "fastrcnn", "train", f"run={small}/run", *settings]
    done = subprocess.run(
        [*namespace, "sh", "-c", script, "sh", *command],
        cwd=source.place,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
    run = tmp_path / "run"
    assert bool(steps(run)) == (size == "2m")
    for path in checkpoint.in_order(run / "checkpoints"):
        checkpoint.load(path)
    assert status(source.start(["train", f"run={run}", "resume=auto"], tmp_path / "said.txt")) == 0
    same_run(run, whole)


def test_curves_that_cannot_be_written_are_one_message(source: Source, place: Path, tmp_path: Path) -> None:
    """TensorBoard writes in a thread; the drawings exceed the limit long before the first checkpoint."""
    run, said = tmp_path / "run", tmp_path / "said.txt"
    settings = [*soak.SETTINGS, "solver.iterations=12", "runtime.checkpoint_every=100", "runtime.images_every=1"]
    assert status(source.start(["train", f"run={run}", *settings], said, file_size=20_000)) == 1
    text = said.read_text()
    assert "Traceback" not in text
    assert "cannot be written (File too large)" in text
    assert steps(run) == []


def test_a_run_whose_folder_is_moved_ends_and_can_be_resumed_there(source: Source, whole: Path, tmp_path: Path) -> None:
    run, moved, said = tmp_path / "run", tmp_path / "moved", tmp_path / "said.txt"
    settings = [*soak.SETTINGS, "solver.iterations=12", "runtime.evaluate_every=6"]
    process = source.start(["train", f"run={run}", *settings], said, hold=(STEP, 3))
    until(process.held, process)
    run.rename(moved)
    process.release()
    assert status(process) == 1
    text = said.read_text()
    assert "Traceback" not in text
    assert f"fastrcnn: {run}: the folder of the run was deleted or moved while the run used it." in text
    assert not run.exists()
    assert status(source.start(["train", f"run={moved}", "resume=auto"], said)) == 0, said.read_text()
    same_run(moved, whole)


@pytest.mark.parametrize("in_the_way", ["run", "run/checkpoints"])
def test_a_folder_that_cannot_be_made_is_an_error(source: Source, whole: Path, tmp_path: Path, in_the_way: str) -> None:
    """As where the place is read-only, which nothing is to root."""
    file, said = tmp_path / in_the_way, tmp_path / "said.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text("a file")
    settings = [*soak.SETTINGS, "solver.iterations=12"]
    assert status(source.start(["train", f"run={tmp_path / 'run'}", *settings], said)) == 1
    assert str(file) in said.read_text()
    assert "Traceback" not in said.read_text()
    assert file.read_text() == "a file"


def test_a_second_training_of_the_same_run_is_refused_and_the_first_goes_on(
    source: Source, whole: Path, tmp_path: Path
) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    begun(source, run)
    first = source.start(["train", f"run={run}", "resume=auto", "solver.iterations=100000"], said)
    until(lambda: steps(run)[0] > 12, first)
    second = tmp_path / "second.txt"
    assert status(source.start(["train", f"run={run}", "resume=auto"], second)) == 1
    assert "another process is training in this folder" in second.read_text()
    assert first.poll() is None
