"""The records of a run."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import a_second_later
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastrcnn.errors import UserError
from fastrcnn.files import BusyError
from fastrcnn.training.resume import saved_config
from fastrcnn.training.tracking import Tracker, claim, describe_run, known_threads, newest_first


def rows(folder: Path) -> list[list[str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_rows_are_step_name_value(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.scalars(20, {"train/loss": 1.5, "train/lr": 1e-7})
    assert rows(tmp_path) == [["step", "name", "value"], ["20", "train/loss", "1.5"], ["20", "train/lr", "1e-07"]], (
        "readable while the run goes on"
    )
    tracker.close()


def test_going_on_leaves_no_row_of_the_earlier_attempt_after_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Tracker(tmp_path)
    for step in (10, 20, 30):
        first.scalars(step, {"a": step + 0.5})
    first.close()
    a_second_later(monkeypatch)
    second = Tracker(tmp_path, start=20)
    second.scalars(30, {"a": 99.0})
    second.close()
    assert rows(tmp_path)[1:] == [["10", "a", "10.5"], ["20", "a", "20.5"], ["30", "a", "99"]]


def test_a_row_cut_short_is_dropped_on_going_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,name,value\n10,a,1.5\n12")  # of a row of step 120
    Tracker(tmp_path, start=20).close()
    assert rows(tmp_path) == [["step", "name", "value"], ["10", "a", "1.5"]]


def test_a_number_that_does_not_exist_is_nan(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.scalars(3, {"eval/ap/\u65e5\u672c, a": 0.5, "eval/mAP": None})
    tracker.close()
    assert (tmp_path / "metrics.csv").read_bytes().decode("utf-8").splitlines() == [
        "step,name,value",
        '3,"eval/ap/\u65e5\u672c, a",0.5',
        "3,eval/mAP,nan",
    ]
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"] == ["eval/ap/\u65e5\u672c, a"]
    again = Tracker(tmp_path, start=3)
    again.close()
    assert again.evaluated


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,name,value\n10,a,1.5\n")
    Tracker(tmp_path).close()
    assert rows(tmp_path) == [["step", "name", "value"]]


def test_tensorboard_gets_numbers_and_pictures_and_forgets_the_earlier_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Tracker(tmp_path)
    for step in (10, 20, 30):
        first.scalars(step, {"train/loss": float(step)})
    first.close()
    a_second_later(monkeypatch)
    second = Tracker(tmp_path, start=20)
    second.scalars(25, {"train/loss": 0.5})
    picture = np.zeros((6, 4, 3), np.uint8)
    second.picture(25, "train/rois", picture)
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 10.0), (20, 20.0), (25, 0.5)]
    image = events.Images("train/rois")[0]
    assert (image.step, image.height, image.width) == (25, 6, 4)


def test_a_run_is_described(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    describe_run(folder, "solver:\n  lr: 0.1\n")
    describe_run(folder, "solver:\n  lr: 0.2\n")
    assert (folder / "config.yaml").read_text() == "solver:\n  lr: 0.2\n"
    assert len((folder / "command.txt").read_text().splitlines()) == 2, "a line for each time"
    environment = json.loads((folder / "environment.json").read_text())
    assert {"fastrcnn", "python", "torch", "torchvision", "opencv", "numpy", "gpu"} <= set(environment)


def test_the_newest_run_is_the_one_used_last_and_not_the_one_copied_last(tmp_path: Path) -> None:
    """Copies have new modification times; clocks of two machines can be in two time zones."""
    lines = {
        "resumed": "2026-03-01 09:00:00+00:00  fastrcnn train\n2026-03-04 09:00:00+00:00  fastrcnn train resume=auto\n",
        "east": "2026-03-03 16:00:00+09:00  fastrcnn train name=a  b\n",  # 07:00 UTC
        "west": "2026-03-03 02:30:00-05:00  fastrcnn train\n",  # 07:30 UTC
        "without": None,
        "damaged": "\0\0\0",
        "empty": "",
    }
    for n, (name, text) in enumerate(lines.items()):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "command.txt").write_text(text)
        os.utime(tmp_path / name, (1000 + n, 1000 + n))
    found = newest_first(tmp_path.iterdir())
    assert [run.name for run in found] == ["resumed", "west", "east", "empty", "damaged", "without"]
    describe_run(tmp_path / "damaged", "")
    assert newest_first(tmp_path.iterdir())[0].name == "damaged", "it was used just now"


def test_a_folder_is_held_by_one_process_until_that_ends(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fastrcnn.training.tracking import claim\n"
        "with claim(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    run = tmp_path / "a" / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"run: another process is training in this folder"), claim(run):
            pass
    finally:
        other.kill()  # the system lets go of it, whatever happened
        other.wait()
    with claim(run):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"run=.*cannot be written to"), claim(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "[" * 100_000, *(f'{{"threads": {n}}}' for n in ("0", "1e9", "true"))]
)
def test_a_number_of_threads_that_was_not_written_is_not_known(tmp_path: Path, text: str) -> None:
    assert known_threads(tmp_path) is None
    (tmp_path / "environment.json").write_text(text)
    assert known_threads(tmp_path) is None
    describe_run(tmp_path, "")
    assert known_threads(tmp_path) == torch.get_num_threads()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError) as caught, claim(tmp_path / "run"):
        pass
    assert not isinstance(caught.value, BusyError)
    said = f"run={tmp_path / 'run'}: cannot be locked ({os.strerror(number)}). The file system may not support locks."
    assert str(caught.value) == f"{said} Choose another folder with run=PATH."


def test_a_damaged_configuration_is_not_quoted(tmp_path: Path) -> None:
    """It can be a link to another file. The line number is enough to find the error."""
    (tmp_path / "secret").write_text("a: b\nroot:x: secret: secret\n")
    (tmp_path / "config.yaml").symlink_to("secret")
    with pytest.raises(UserError, match=r"config\.yaml: .*\(line 2: mapping values are not allowed") as caught:
        saved_config(tmp_path)
    assert "root:x" not in str(caught.value)
