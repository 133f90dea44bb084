"""Names, flags and sources that people bring along from other programs are answered with ours."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import slim_run
from voc_folder import VocFolder

import fastrcnn
from fastrcnn.config.other_names import OTHER_NAMES, REMARKS, our_name
from fastrcnn.config.schema import SCHEMAS, leaves
from fastrcnn.errors import UserError
from fastrcnn.training.checkpoint import resolve

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train", "epochs=10"],
            "unknown key 'epochs'. Use solver.iterations=... instead: number of training steps. An epoch",
        ),
        (["train", "--epochs", "10"], "unknown key '--epochs'. Use solver.iterations=..."),
        (["train", "batch=8"], "Use solver.images_per_batch=... instead: number of images per batch"),
        (["train", "--batch-size=8"], "unknown key '--batch-size'. Use solver.images_per_batch=..."),
        (["train", "imgsz=640"], "Use data.short_sides=... instead: short sides of training images"),
        (["train", "--name", "x"], "unknown key '--name'. Use name=... instead: name of the run"),
        (["train", "patience=5"], "unknown key 'patience'. Did you mean 'solver.patience'?"),
        (["detect", "weights=best.pt"], "Use checkpoint=... instead: the folder of a run"),
        (["detect", "conf=0.3"], "Use draw_threshold=... instead: do not draw detections whose score is below"),
        (["eval", "conf=0.3"], "Use detection.score_threshold=... instead: drop detections"),
        (["train", "pretrained=true"], "Use model.weights=..."),
    ],
)
def test_a_key_of_another_program_is_answered_with_ours(call: Call, arguments: list[str], said: str) -> None:
    status, out, err = call(*arguments)
    assert (status, out) == (1, "")
    assert said in err


def test_every_answer_is_a_key_and_no_name_is_one_already() -> None:
    every = {key for schema in SCHEMAS.values() for key in leaves(schema)}
    assert OTHER_NAMES.keys() <= every
    assert REMARKS.keys() <= OTHER_NAMES.keys()
    for verb in ("train", "eval", "detect"):
        known = leaves(SCHEMAS[verb])
        for others in OTHER_NAMES.values():
            for name in others.split():
                assert name not in known or our_name(name, known) != name


def test_help_shows_the_everyday_keys_with_the_values_of_the_line(call: Call) -> None:
    status, out, _ = call("train", "recipe=transfer", "data=custom", "solver.lr=0.5", "--help")
    assert status == 0
    values = dict(re.findall(r"^  ((?!fastrcnn )\S+) +\S+.* \(value: (.+)\)$", out, re.MULTILINE))
    assert (values["solver.lr"], values["solver.iterations"], values["data.val"]) == ("0.5", "3000", "null")
    assert len(values) == 15
    assert "fastrcnn train recipe=transfer data=custom solver.lr=0.5 --help all" in out
    status, out, _ = call("train", "--help", "all")
    values = dict(re.findall(r"^  ((?!fastrcnn )\S+) +\S+.* \(value: (.+)\)$", out, re.MULTILINE))
    assert values.keys() == leaves(SCHEMAS["train"]).keys()
    assert "For the other" not in out


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("0", "cameras are not supported. Record a video"),
        ("/dev/video7", "cameras are not supported"),
        ("https://host/a.jpg", "URLs are not supported. Download the file"),
        ("rtsp://host/live", "URLs are not supported"),
    ],
)
def test_cameras_and_addresses_are_answered_at_once(call: Call, source: str, said: str) -> None:
    for arguments in (["detect", "checkpoint=no/such"], ["propose", "output=x.proposals"]):
        status, _, err = call(*arguments, f"source={source}")
        assert status == 1
        assert f"source={source}: {said}" in err


def test_a_folder_of_runs_means_the_newest(tiny: VocFolder, tmp_path: Path) -> None:
    runs = tmp_path / "outputs" / "mine"
    made = [slim_run.save(tiny.root, runs / name) for name in ("20260102-1", "20260101-2")]
    for run, seconds in zip(made, (100, 200), strict=True):
        os.utime(run, (seconds, seconds))
    assert resolve(runs).is_relative_to(made[1])
    for file in (made[1] / "checkpoints").iterdir():
        file.unlink()
    assert resolve(runs).is_relative_to(made[0])
    with pytest.raises(UserError, match="contains no checkpoint"):
        resolve(tmp_path)


def test_load_is_listed() -> None:
    assert dir(fastrcnn) == ["__version__", "load"]
