"""The whole way in small: data, training, evaluation, detection, and going on, by the commands a user types."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from limits import PATIENCE
from voc_folder import fingerprint

from fastrcnn.build import machine
from fastrcnn.cli import main
from fastrcnn.data.demo import write_demo
from fastrcnn.training import checkpoint
from fastrcnn.training.tracking import claim

SETTINGS = [
    "experiment=demo",
    "model.width=0.05",
    "solver.iterations=6",
    "solver.images_per_batch=2",
    "solver.rois_per_image=16",
    "solver.warmup=0",
    "data.short_sides=[96]",
    "data.test_short_sides=96",
    "data.selective_search.side=96",
    "data.selective_search.k=[50]",
    "data.selective_search.max_boxes=60",
    "detection.score_threshold=0.01",
    "runtime.device=cpu",
    "runtime.precision=float32",
    "runtime.threads=1",
    "runtime.workers=0",
    "runtime.log_every=2",
    "runtime.checkpoint_every=3",
    "runtime.images_every=3",
]


Command = Callable[..., tuple[str, str]]


def in_a_process_of_its_own(folder: Path, *arguments: str) -> str:
    """Runs a command as a shell does; gives stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "fastrcnn", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[Command]:
    """Runs a command in this process, which saves the seconds that importing torch takes; gives stdout and stderr."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(place)
    caplog.set_level(logging.INFO, "fastrcnn")
    logger = logging.getLogger("fastrcnn")
    handlers = list(logger.handlers)

    def run(*arguments: str, status: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        found = main(list(arguments))
        out, err = capsys.readouterr()
        assert found == status, err
        assert "Traceback" not in err
        return out, err

    yield run
    torch.set_num_threads(threads)
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
        logger.removeHandler(handler)


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a demo of 24 pictures, and a run of six steps on it in `run`."""
    folder = tmp_path_factory.mktemp("a place [with] odd=name é")
    write_demo(folder / "data" / "demo", train=12, val=6, test=6)
    before = fingerprint(folder / "data" / "demo")
    out = in_a_process_of_its_own(folder, "train", "run=run", *SETTINGS)
    assert fingerprint(folder / "data" / "demo") == before  # what is the user's is left alone
    assert out.splitlines()[-1] == "run: run"
    assert "mAP" in out
    return folder


def test_a_run_leaves_what_the_design_promises(place: Path) -> None:
    run = place / "run"
    for name in ("config.yaml", "command.txt", "environment.json", "train.log", "metrics.csv"):
        assert (run / name).stat().st_size > 0, name
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step-3.pt", "step-6.pt", "best.pt"}
    assert list((run / "tensorboard").glob("events.*"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (config["solver"]["iterations"], config["model"]["width"]) == (6, 0.05)
    assert "train" in (run / "command.txt").read_text(encoding="utf-8")
    assert set(json.loads((run / "environment.json").read_text(encoding="utf-8"))) >= {"torch", "python", "fastrcnn"}
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = {int(r["step"]): float(r["value"]) for r in rows if r["name"] == "train/loss"}
    assert list(losses) == [2, 4, 6]
    assert all(0 < v < 100 for v in losses.values())
    assert [r["step"] for r in rows if r["name"] == "eval/mAP"] == ["6"]


def test_a_runs_evaluation_holds_every_class_and_file(place: Path) -> None:
    folder = place / "run" / "eval" / "test"
    found = metrics(folder)
    assert found["images"] == 6
    assert found["metric"] == "voc07"
    assert {p.name for p in folder.glob("comp4_*")} == {f"comp4_det_test_{name}.txt" for name in found["ap"]}
    assert sum(p.stat().st_size for p in folder.glob("comp4_*")) > 0
    known = [ap for ap in found["ap"].values() if ap is not None]
    assert found["mAP"] == pytest.approx(sum(known) / len(known))


def test_eval_gives_the_runs_own_figures_and_other_splits(command: Command, place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command("eval", "checkpoint=run", f"output={output}")
    assert metrics(output) == metrics(place / "run" / "eval" / "test")
    command("eval", "checkpoint=run/checkpoints/step-3.pt", "split=val", "data.metric=voc10")
    other = metrics(place / "run" / "eval" / "val")
    assert (other["images"], other["metric"]) == (6, "voc10")
    out, _ = command("compare", "run", str(output), "split=test")
    assert out.count("0.000   0.000 … 0.000") == out.count("mAP") + len(known_classes(output))


def known_classes(folder: Path) -> list[str]:
    return [name for name, ap in metrics(folder)["ap"].items() if ap is not None]


def test_every_evaluation_leaves_a_report_that_says_how_it_came_about(
    command: Command, place: Path, tmp_path: Path
) -> None:
    found = place / "run" / "eval" / "test"
    trained = (found / "report.html").read_text(encoding="utf-8")
    out, _ = command("eval", "checkpoint=run", f"output={tmp_path}", "detection.nms_iou=0.4")
    assert out.splitlines()[-2:] == [f"Wrote the results to {tmp_path}", f"report: {tmp_path / 'report.html'}"]
    evaluated = (tmp_path / "report.html").read_text(encoding="utf-8")
    for folder, html in ((found, trained), (tmp_path, evaluated)):
        assert f"<b>{metrics(folder)['mAP']:.3f}</b>mAP (voc07)" in html
        assert "run on test</h1>" in html
        assert "iterations: 6" in html  # of the training
        assert '"torch"' in unescape(html)  # of the environment
        assert "data:image/jpeg;base64," in html
        assert "could not be read" not in html
    assert "fastrcnn eval checkpoint=run" in evaluated
    assert "nms_iou: 0.4" in evaluated


def test_reval_of_the_files_gives_the_same_figures(command: Command, place: Path, tmp_path: Path) -> None:
    found = place / "run" / "eval" / "test"
    command("reval", f"detections={found}", "data=demo", f"output={tmp_path}")
    assert metrics(tmp_path)["ap"] == metrics(found)["ap"]
    assert metrics(tmp_path)["mAP"] == metrics(found)["mAP"]
    out, _ = command("compare", str(found), str(tmp_path))  # the same images and truth, without looking at a picture
    assert "0.000 … 0.000" in out


def test_training_by_cocos_metric_keeps_the_best_by_it(command: Command, place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["solver.iterations=2", "runtime.evaluate_every=1", "data.metric=coco"]
    out, _ = command("train", f"run={run}", *SETTINGS, *settings)
    found = metrics(run / "eval" / "test")
    assert found["metric"] == "coco"
    assert "(coco, 6 images)" in out
    assert f"AP50 {found['AP50']:.3f}, AP75" in out
    known = [ap for ap in found["ap"].values() if ap is not None]
    assert found["mAP"] == pytest.approx(sum(known) / len(known))
    with (run / "metrics.csv").open(newline="") as file:
        rows = {(int(r["step"]), r["name"]): float(r["value"]) for r in csv.DictReader(file)}
    assert rows[2, "eval/AP50"] == pytest.approx(found["AP50"], rel=1e-4)  # written with six digits
    best = checkpoint.load(run / "checkpoints" / "best.pt")
    assert best["best"] == pytest.approx(rows[2, "eval/mAP"], rel=1e-4)
    again = tmp_path / "again"
    command("reval", f"detections={run / 'eval' / 'test'}", "data=demo", "split=test", "metric=coco", f"output={again}")
    assert {k: v for k, v in found.items() if k != "proposals"} == metrics(again)


def detections(folder: Path) -> list[dict]:
    return json.loads((folder / "detections.json").read_text(encoding="utf-8"))


def test_detect_draws_a_folder_and_a_pattern(command: Command, place: Path, tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    photos.mkdir()
    for number in (1, 2):
        shutil.copy(place / "data" / "demo" / "JPEGImages" / f"{number:06}.jpg", photos / f"{number} é.jpg")
    folder, pattern = tmp_path / "folder", tmp_path / "pattern"
    out, _ = command("detect", "checkpoint=run", f"source={photos}", f"output={folder}", "draw_threshold=0.01")
    assert f"Wrote images, detections.json to {folder}" in out
    assert {p.name for p in folder.iterdir()} == {"1 é.png", "2 é.png", "detections.json", "timing.json"}
    entries = detections(folder)
    assert {e["image_id"] for e in entries} == {"1 é", "2 é"}
    assert len(entries) == int(out.split()[2])  # N of M
    assert 0 < int(out.split()[0]) <= len(entries)
    for e in entries:
        x, y, width, height = e["bbox"]
        assert x >= 0 and y >= 0 and width > 0 and height > 0  # noqa: PT018
        assert x + width <= 224.01
        assert y + height <= 160.01
        assert 0.01 <= e["score"] <= 1
    drawn = cv2.imdecode(np.fromfile(folder / "1 é.png", np.uint8), cv2.IMREAD_COLOR)
    plain = cv2.imdecode(np.fromfile(photos / "1 é.jpg", np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()

    # A pattern: one picture, and nothing that reaches the threshold for drawing. That is status 3.
    arguments = ["checkpoint=run", f"source={photos}/1*.jpg", f"output={pattern}", "draw_threshold=1"]
    out, _ = command("detect", *arguments, status=3)
    assert out.startswith("0 of ")
    assert {p.name for p in pattern.iterdir()} == {"1 é.png", "detections.json", "timing.json"}
    assert detections(pattern) == [e for e in entries if e["image_id"] == "1 é"]
    undrawn = cv2.imdecode(np.fromfile(pattern / "1 é.png", np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(undrawn, plain)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "run=run", *SETTINGS], "this folder already contains a run"),
        (["eval", "checkpoint=run", "split=vla"], "Available lists: test, train, trainval, val. Did you mean 'val'?"),
        (["detect", "checkpoint=run"], "source=IMAGE"),
        (["detect", "checkpoint=run", "source=nothing/*.jpg"], "source=nothing/*.jpg: no such file or folder"),
        (["eval", "checkpoint=run", "data=voc07"], "data.root is missing"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_mistakes_about_a_run_are_one_clear_message(
    command: Command, place: Path, arguments: Sequence[str], said: str
) -> None:
    before = fingerprint(place / "run")
    out, err = command(*arguments, status=1)
    assert said in err
    assert out == ""
    assert fingerprint(place / "run") == before


def test_a_run_goes_on_as_if_it_had_never_stopped(
    command: Command, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three steps, then three more: the same weights' figures and losses as six at once."""
    command("train", "run=half", *SETTINGS, "solver.iterations=3", "solver.schedule=step")
    whole, _ = command("train", "run=whole", *SETTINGS, "solver.schedule=step")
    resumed, _ = command("train", "run=half", "resume=auto", *SETTINGS, "solver.schedule=step")
    assert "Resuming from half/checkpoints/step-3.pt" in caplog.text
    assert metrics(place / "half" / "eval" / "test") == metrics(place / "whole" / "eval" / "test")

    def last(run: str) -> list[list[str]]:
        with (place / run / "metrics.csv").open(newline="") as file:
            return [r for r in csv.reader(file) if r[0] == "6" and not r[1].endswith(("_per_s", "data_wait_share"))]

    assert last("half") == last("whole")
    assert len((place / "half" / "command.txt").read_text(encoding="utf-8").splitlines()) == 2
    assert whole.replace("whole", "half") == resumed


def test_a_run_goes_on_with_its_number_of_threads(
    command: Command, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first machine uses two threads, the second one. No key holds the number, or `detect` would take it."""
    settings = [s for s in SETTINGS if not s.startswith(("runtime.threads", "solver.iterations"))]

    def train(default: int, steps: int, *arguments: str) -> int:
        monkeypatch.setattr(machine, "cores", lambda: default)
        torch.set_num_threads(default)
        command("train", "run=threads", *settings, f"solver.iterations={steps}", *arguments)
        assert json.loads((place / "threads/environment.json").read_bytes())["threads"] == torch.get_num_threads()
        return torch.get_num_threads()

    assert train(2, 1) == 2
    assert "Resuming with" not in caplog.text
    assert train(1, 2, "resume=auto") == 2
    assert "Resuming with the 2 thread(s) of the run" in caplog.text
    assert yaml.safe_load((place / "threads/config.yaml").read_bytes())["runtime"]["threads"] is None
    assert train(1, 3, "resume=auto", "runtime.threads=1") == 1
    assert "Resuming with 1 thread(s) instead of 2: the weights will not be those of" in caplog.text


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint_and_a_step_to_replay(
    command: Command, place: Path
) -> None:
    settings = [*SETTINGS, "solver.lr=1e30", "solver.schedule=step", "runtime.checkpoint_every=1"]
    out, err = command("train", "run=spoiled", *settings, status=1)
    assert out == ""
    failed = next((place / "spoiled").glob("failed-step-*.pt"))
    step = int(failed.stem.rpartition("-")[2])
    assert f"step {step}: the loss is nan" in err
    assert f"fastrcnn replay spoiled/{failed.name}" in err
    assert sorted(p.name for p in (place / "spoiled" / "checkpoints").iterdir())[-1] == f"step-{step}.pt"
    kept = checkpoint.load(failed, finite=False)
    assert all(image_id in err for image_id in kept["image_ids"])
    assert len(kept["rois"]) == len(kept["labels"]) == len(kept["deltas"]) == 2 * 16
    out, _ = command("replay", str(failed), "device=cpu")
    assert "class loss nan" in out.splitlines()[1]
    assert "class loss nan" in out.splitlines()[2]
    assert "first layer with an output that is not finite: " in out
    _, err = command("replay", str(place / "run" / "checkpoints" / "best.pt"), status=1)
    assert "does not contain a failed step" in err


def test_a_second_run_in_a_folder_is_refused(command: Command, place: Path) -> None:
    before = fingerprint(place / "run")
    _, err = command("train", "run=run", *SETTINGS, status=1)
    assert "this folder already contains a run" in err
    with claim(place / "run"):
        _, err = command("train", "run=run", "resume=auto", *SETTINGS, status=1)
    assert "another process is training in this folder" in err
    assert fingerprint(place / "run") == before


def test_accumulation_profile_and_recomputation_by_their_keys(command: Command, place: Path, tmp_path: Path) -> None:
    """A run that ended after three steps goes on to twelve, as if there had been no end."""
    settings = [
        *SETTINGS,
        "solver.schedule=step",
        "solver.images_per_batch=1",
        "solver.accumulate=2",
        "runtime.log_every=1",
        "runtime.checkpoint_activations=true",
    ]
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    command("train", f"run={parts}", *settings, "solver.iterations=3")
    command("train", f"run={parts}", "resume=auto", *settings, "solver.iterations=12", "runtime.profile=true")
    command("train", f"run={whole}", *settings, "solver.iterations=12", "runtime.profile=true")
    assert not (parts / "profile").exists()  # it went on for nine steps
    assert "the run ended after 10 or fewer steps" in (parts / "train.log").read_text(encoding="utf-8")
    trace = json.loads((whole / "profile" / "steps-10-20.pt.trace.json").read_text(encoding="utf-8"))
    assert any(e.get("name") == "aten::conv2d" for e in trace["traceEvents"])

    def losses(run: Path) -> list[list[str]]:
        with (run / "metrics.csv").open(newline="") as file:
            return [
                r for r in csv.reader(file) if r[1] in ("train/loss", "train/grad_norm") or r[:2] == ["12", "eval/mAP"]
            ]

    assert len(losses(whole)) == 2 * 12 + 1
    assert losses(parts) == losses(whole)


@pytest.mark.parametrize("flag", ["-q", "--verbose"])
def test_how_much_a_training_says(flag: str, tmp_path: Path) -> None:
    """Quiet: nothing on the way, and what comes out. Verbose: a line for each row of the record, with its time."""
    write_demo(tmp_path / "data" / "demo", train=4, val=1, test=2)
    few = ["solver.iterations=2", "solver.images_per_batch=2", "model.width=0.05", "runtime.workers=0"]
    small = [
        "data.short_sides=[64]",
        "data.test_short_sides=64",
        "data.selective_search.side=64",
        "runtime.log_every=1",
    ]
    command = [sys.executable, "-m", "fastrcnn", "train", flag, "experiment=demo", *few, *small]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "mAP" in done.stdout
    if flag == "-q":
        assert done.stderr == ""
    else:
        steps = [
            line for line in done.stderr.splitlines() if "fastrcnn.training.run: step " in line and "loss_cls" in line
        ]
        assert [line.split(": ")[1] for line in steps] == ["step 1", "step 2"]
        assert all(name in steps[0] for name in ("loss_cls", "grad_norm", "images_per_s"))
        assert re.match(r"\d\d:\d\d:\d\d ", steps[0])
