"""Sweeps: a run for each combination of values, by Hydra's own launcher, joblib's and Optuna's sweeper."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_run import SETTINGS

from fastrcnn.config.schema import TrainConfig
from fastrcnn.config.sweep import choices
from fastrcnn.data.demo import write_demo

Call = Callable[..., tuple[int, str, str]]
SMALL = [*(s for s in SETTINGS if "width" not in s), "model.width=0.03", "runtime.images_every=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    write_demo(folder / "data" / "demo", train=6, val=4, test=4)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def table(folder: Path) -> list[list[str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data.root=1", ["'1'"]),
        ("data.root=1,2", ["'1'", "'2'"]),
        ("data.train=[1,2],[3]", ["['1', '2']", "['3']"]),
        ("data.root='a,b',c", ["'a,b'", "'c'"]),
        ("data.root=a\\'b,c", [r"'a\\\'b'", "'c'"]),
        ('data.root="(",x', ["'('", "'x'"]),
        ("data.root=f(1,2),x", ["'f(1,2)'", "'x'"]),
        ("data.root=[a,b", ["'[a'", "'b'"]),
        ("data.root=", ["null"]),
        ("data.root=a,", ["'a'", "null"]),
        ("data.root=,a", ["null", "'a'"]),
    ],
)
def test_values_are_split_at_commas_outside_brackets_and_quotes(argument: str, expected: list[str]) -> None:
    key = argument.partition("=")[0]
    assert choices([argument])[0] == [f"{key}={','.join(expected)}"]


def test_every_value_is_checked_and_the_first_of_each_is_a_run() -> None:
    overrides, first = choices(
        ["solver.lr=1e-3,2e-3", "model=vgg16,caffenet", "data.root=my data", "solver.momentum=0.5"]
    )
    assert overrides == ["solver.lr=1e-3,2e-3", "model=vgg16,caffenet", "data.root='my data'", "solver.momentum=0.5"]
    assert first == ["solver.lr=1e-3", "model=vgg16", "data.root=my data", "solver.momentum=0.5"]
    assert choices(["solver.lr=tag(log, interval(1e-4, 1e-2))"]) == (["solver.lr=tag(log, interval(1e-4, 1e-2))"], [])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("solver.lr=1,x", "solver.lr: must be a number, not 'x'"),
        ("solver.lrr=1,2", "Did you mean 'solver.lr'"),
        ("solver.lrr=interval(1,2)", "Did you mean 'solver.lr'"),
        ("model=vgg16,vgg17", "model=vgg17: the group 'model' has no option 'vgg17'"),
        ("run=x", "run=x: a sweep sets this key for each run"),
        ("solver.lr", "not of the form key=value"),
        ("hydra/launcher=submitit_local", "pip install hydra-submitit-launcher"),
        ("hydra.sweep.subdir=x", "runs are in the folders 0, 1"),
        ("hydra.sweep.dir=${now:%Y}", "FOLDER must not contain ${...}"),
    ],
)
def test_a_mistake_shows_before_anything_runs(call: Call, argument: str, said: str, tmp_path: Path) -> None:
    status, out, err = call("train", "-m", f"hydra.sweep.dir={tmp_path / 'x'}", argument)
    assert (status, out) == (1, "")
    assert said in err
    assert not (tmp_path / "x").exists()


def test_runs_of_all_combinations_some_that_fail_and_a_table(
    call: Call, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fastrcnn")
    arguments = ["train", "-m", *SMALL, "solver.lr=0.001,1e30", "runtime.seed=0,1", "hydra.sweep.dir=all"]
    status, out, err = call(*arguments)
    assert status == 1
    rows = table(here / "all")
    assert rows[0] == ["run", "solver.lr", "runtime.seed", "mAP"]
    assert {(r[0], r[1], r[2]) for r in rows[1:]} == {
        ("0", "0.001", "0"),
        ("1", "0.001", "1"),
        ("2", "1e+30", "0"),
        ("3", "1e+30", "1"),
    }
    for number, lr, seed, figure in rows[1:]:
        config = yaml.safe_load((here / "all" / number / "config.yaml").read_text())
        assert (config["solver"]["lr"], config["runtime"]["seed"]) == (float(lr), int(seed))
        if lr == "0.001":
            metrics = json.loads((here / "all" / number / "eval" / "test" / "metrics.json").read_text())
            assert figure == f"{metrics['mAP']:.4f}"
        else:
            assert figure == "failed"
    assert [r[3] for r in rows[1:3]] == sorted((r[3] for r in rows[1:3]), reverse=True), "the best first"
    assert "run 2 failed: step" in err
    assert "the loss is" in err
    assert out.splitlines()[-1].startswith("4 runs in all;")

    written = {p: p.stat().st_mtime_ns for p in (here / "all" / "0").rglob("*.pt")}
    (here / "all" / "1" / "sweep.json").unlink()  # as though it had been stopped
    caplog.clear()
    assert call(*arguments)[0] == 1
    assert f"Skipping run {here}/all/0" in caplog.text
    assert f"Resuming from {here}/all/1/checkpoints/step-3.pt" in caplog.text
    assert table(here / "all") == rows
    assert {p: p.stat().st_mtime_ns for p in (here / "all" / "0").rglob("*.pt")} == written
    status, _, err = call(*arguments, "solver.momentum=0.5")
    assert status == 1
    assert "already contains a sweep" in err

    size = [s for s in SMALL if s.startswith(("data.", "runtime.", "solver.warmup", "detection."))]
    begun = ["start=all/0", "data=demo", *size, "solver.iterations=1", "solver.lr=1e-4,1e-5", "hydra.sweep.dir=begun"]
    assert call("train", "-m", *begun)[0] == 0, "the model is the checkpoint's, and not the default one"


def test_a_run_that_fails_by_whatever_it_is_does_not_take_the_table_with_it(
    call: Call, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: TrainConfig) -> None:
        raise RuntimeError(f"seed {config.runtime.seed} has no luck")

    monkeypatch.setattr("fastrcnn.cli.train.run", run)
    status, out, err = call("train", "-m", "runtime.seed=3,4", "hydra.sweep.dir=it's odd=(é")
    assert status == 1
    assert "RuntimeError: seed 4 has no luck" in err
    assert [row[1:] for row in table(here / "it's odd=(é")] == [
        ["runtime.seed", "mAP"],
        ["3", "failed"],
        ["4", "failed"],
    ]
    assert "2 runs in" in out


def test_two_runs_at_a_time_and_one_waits_for_the_proposals_that_the_other_makes(here: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=side by side"]
    quick = ["solver.lr=0.001,0.002", "solver.iterations=1", "runtime.workers=1", "data.proposal_cache=data/new"]
    command = [sys.executable, "-m", "fastrcnn", "train", "-m", "-q", *SMALL, *quick, *launcher]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in table(here / "side by side")[1:]] in (["0", "1"], ["1", "0"])
    assert "proposals:" not in done.stderr, "quiet in their processes too"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_optuna_seeks_a_high_map_and_joblib_launches(call: Call, here: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    status, _, _ = call(
        "train",
        "-m",
        *SMALL,
        "solver.lr=tag(log,interval(1e-4,1e-2))",
        "hydra.sweep.dir=sought",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=1",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=1",
    )
    assert status == 0
    rows = table(here / "sought")
    assert rows[0] == ["run", "solver.lr", "mAP"]
    assert all(1e-4 <= float(row[1]) <= 1e-2 for row in rows[1:])
    found = yaml.safe_load((here / "sought" / "optimization_results.yaml").read_text())
    assert f"{found['best_value']:.4f}" == max(row[2] for row in rows[1:])
    hopeless = ["solver.lr=interval(1e25,1e30)", "hydra.sweep.dir=hopeless", "hydra/sweeper=optuna"]
    assert call("train", "-m", *SMALL, *hopeless, "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1")[0] == 1
    assert [row[0] for row in table(here / "hopeless")] == ["run", "0"]
    assert float(rows[1][1]) == pytest.approx(found["best_params"]["solver.lr"])
