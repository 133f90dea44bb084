"""Trainings by two processes: told to stop, killed and started again by torchrun; evaluation by two."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forked, Source, is_held, until
from limits import PATIENCE
from script_module import load

from fastrcnn.cli import main
from fastrcnn.training import checkpoint

soak = load("soak")
STEPS = 60
STEP = "fastrcnn.training.run:TrainingRun.finish_step"  # called after each step, when all of it is done
SETTINGS = [*soak.SETTINGS, f"solver.iterations={STEPS}", "runtime.checkpoint_every=5", "runtime.evaluate_every=30"]


def pair(source: Source, *arguments: str, hold: tuple[str, int] | None = None) -> list[Forked]:
    """The two processes of a job, as torchrun would start them; what they say is in said-0.txt and said-1.txt.
    hold: see forked.py, of both; the second one then waits for a signal."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        there = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    return [
        source.start(
            arguments,
            source.place / f"said-{number}.txt",
            environment=there | {"RANK": str(number), "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2"},
            hold=hold,
            then="hears" if number else "goes on",
        )
        for number in range(2)
    ]


def ended(processes: list[Forked]) -> list[int | None]:
    until(lambda: all(p.poll() is not None for p in processes))
    return [p.poll() for p in processes]


def said(place: Path, number: int) -> str:
    return (place / f"said-{number}.txt").read_text()


@pytest.fixture(scope="module")
def whole(place: Path, source: Source) -> Path:
    """A run that nothing happens to."""
    both = pair(source, "train", "run=whole", *SETTINGS)
    assert ended(both) == [0, 0], said(place, 0) + said(place, 1)
    assert "2 processes, each on cpu" in said(place, 0)
    assert said(place, 1) == "", "the first speaks for both"
    return place / "whole"


@pytest.mark.parametrize("when", ["training", "evaluating"])
def test_both_stop_after_the_same_step_where_one_is_told_to_and_go_on(
    place: Path, source: Source, whole: Path, when: str
) -> None:
    run = place / f"stopped-{when}"
    call = ("fastrcnn.training.run:TrainingRun.evaluate", 1) if when == "evaluating" else (STEP, 10)
    both = pair(source, "train", f"run={run.name}", *SETTINGS, hold=call)
    for process in both:
        until(process.held, process)
    os.kill(both[1].pid, signal.SIGTERM)
    for process in both:
        process.release()
    assert ended(both) == [143, 143]
    step = checkpoint.load(checkpoint.in_order(run / "checkpoints")[0])["step"]
    text = f"interrupted by a signal to another process: step {step} is saved. To resume: torchrun"
    assert text in said(place, 0)
    assert step == (30 if when == "evaluating" else 10)
    assert ended(pair(source, "train", f"run={run.name}", "resume=auto")) == [0, 0], said(place, 0)
    assert f"Resuming from {run.name}/checkpoints/step-{step}.pt" in said(place, 0)
    assert soak.weights(run, STEPS) == soak.weights(whole, STEPS)
    for name in ("metrics.json", "comp4_det_test_star.txt"):
        assert (run / "eval" / "test" / name).read_bytes() == (whole / "eval" / "test" / name).read_bytes()


def test_evaluation_by_two_is_that_of_one(
    place: Path, source: Source, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    arguments = ["eval", f"checkpoint=whole/checkpoints/step-{STEPS}.pt"]
    assert ended(pair(source, *arguments, "output=two")) == [0, 0], said(place, 0)
    assert main([*arguments, "output=one"]) == 0
    for file in [*sorted((place / "one").glob("*.txt")), place / "one" / "metrics.json"]:
        assert (place / "two" / file.name).read_bytes() == file.read_bytes()
    assert (place / "one" / "metrics.json").read_bytes() == (whole / "eval" / "test" / "metrics.json").read_bytes()


HELD_AT_FIRST = f"""
import os, runpy, sys
sys.path.append({str(Path(__file__).parents[1])!r})
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    from forked import hold
    hold({STEP!r}, 10)
    with open("pid", "w") as file:
        file.write(str(os.getpid()))
sys.path[0] = os.getcwd()
runpy.run_module("fastrcnn", run_name="__main__")
"""


def test_torchrun_starts_a_run_again_whose_process_was_killed(place: Path, whole: Path) -> None:
    run, text = place / "killed", place / "killed.txt"
    how = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    script = place / "held_at_first.py"
    script.write_text(HELD_AT_FIRST)
    command = [sys.executable, "-m", "torch.distributed.run", *how, str(script), "train", "run=killed", *SETTINGS]
    with text.open("w") as file:
        job = subprocess.Popen(command, cwd=place, stdout=file, stderr=subprocess.STDOUT)
    until(lambda: (place / "pid").exists() and (place / "pid").read_text(), job)
    second = int((place / "pid").read_text())
    until(lambda: is_held(second), job)
    os.kill(second, signal.SIGKILL)
    assert job.wait(PATIENCE) == 0, text.read_text()
    assert "another process of this job ended unexpectedly" in text.read_text()
    assert "Resuming from killed/checkpoints/step-10.pt" in text.read_text()
    assert soak.weights(run, STEPS) == soak.weights(whole, STEPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "source=x"], "`fastrcnn detect` runs in one process"),
        (["train", "solver.images_per_batch=3"], "must be a multiple of 2"),
        (["train", "runtime.device=cuda:0"], "cuda:0"),
        (["propose", "convert=x"], "convert=FILE` runs in one process"),
    ],
)
def test_what_two_processes_cannot_do_is_said_by_one(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for number in range(2):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("LOCAL_RANK", str(number))
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert (message in said) if number == 0 else said == ""


def test_a_job_that_restarts_needs_a_name_for_its_run_and_on_several_machines_a_store_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main(["train", "experiment=demo"]) == 1
    assert "needs run=FOLDER" in capsys.readouterr().err
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "experiment=demo", "run=x"]) == 1
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err
