"""Names of images, classes and folders that files cannot take: found before a training, or nothing is lost after it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import SETTINGS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from voc_folder import VocFolder, voc_xml

from fastrcnn.build.annotations import warn_of_same_files
from fastrcnn.build.derived import output_file
from fastrcnn.build.sweep import report
from fastrcnn.config.sweep import varying_keys
from fastrcnn.errors import UserError
from fastrcnn.evaluation.result_files import check_comp4
from fastrcnn.files import refuse_unusable
from fastrcnn.training.tracking import Tracker

Call = Callable[..., tuple[int, str, str]]
SMALL = [*SETTINGS[2:], "recipe=scratch", "data=custom", "model.width=0.03"]
CIRCLE = (11, 11, 40, 36)


def images(folder: Path, ids: list[str], name: str = "cat", tested: bool = True) -> VocFolder:
    """A data set without lists; without `tested` the objects of what would be tested on are difficult."""
    from fastrcnn.data.annotations.splits import divide

    made = VocFolder(folder)
    held_out = divide(ids, "test")
    for image_id in ids:
        made.picture(image_id)
        made.annotation(image_id, voc_xml([(name, CIRCLE, image_id in held_out and not tested)], filename="x.jpg"))
    (made.root / "ImageSets" / "Main").rmdir()
    (made.root / "ImageSets").rmdir()
    return made


def test_ids_with_spaces_are_trained_evaluated_and_read_back(
    call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = images(tmp_path / "my data", [f"Screenshot ({n})" for n in range(575, 583)], "mAP")
    status, out, _ = call("check", "data=custom", f"data.root={data.root}")
    assert status == 0
    assert "8 id(s) contain a space, a % or a byte" in out
    status, out, err = call("train", "run=run", *SMALL, f"data.root={data.root}")
    assert status == 0, err
    folder = Path("run/eval/test")
    assert (folder / "report.html").is_file()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "Screenshot%20(" in (folder / "comp4_det_test_mAP.txt").read_text()
    assert "percent-encoded" in caplog.text
    truth = ["data=custom", f"data.root={data.root}", "output=again"]
    assert call("reval", f"detections={folder}", *truth)[0] == 0
    again = json.loads(Path("again/metrics.json").read_text())
    assert (again["mAP"], again["images"]) == (metrics["mAP"], metrics["images"])
    tags = EventAccumulator("run/tensorboard").Reload().Tags()
    assert {"eval/mAP", "eval/ap/mAP"} <= {*tags["scalars"]}
    assert "eval/pr/mAP" in tags["tensors"]
    assert "eval/mAP" not in tags["tensors"], "a class may have a figure's name"


def test_what_cannot_be_written_costs_no_metrics(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system that does not take a class's name: `<b>` on Windows' ones."""
    data = images(tmp_path / "data", [str(n) for n in range(8)])

    def refuse(*_: object) -> None:
        raise UserError("comp4_det_test_<b>.txt cannot be written")

    monkeypatch.setattr("fastrcnn.report.report.write_comp4", refuse)
    status, out, err = call("train", "run=run", *SMALL, f"data.root={data.root}")
    assert (status, "cannot be written" in err) == (1, True)
    assert "mAP" in out
    assert {p.name for p in Path("run/eval/test").iterdir()} >= {"metrics.json", "matches.npz", "report.html"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("c" * 240, "is too long: the name of its detection file for 'test' would have 259 bytes"),
        ("cir\ncle", r"contains the character '\n'"),
        ("cir\tcle", r"contains the character '\t'"),
        ("cat/dog", "contains a slash"),
    ],
)
def test_a_class_without_a_file_is_found_by_check_and_before_training(
    call: Call, tmp_path: Path, name: str, says: str
) -> None:
    data = images(tmp_path / "data", [str(n) for n in range(8)], name)
    status, out, _ = call("check", "data=custom", f"data.root={data.root}")
    assert status == 1
    said = " ".join(out.split())  # not in lines
    assert "0.xml, object 1: class '" in said
    assert says in said
    status, out, err = call("train", "run=run", *SMALL, f"data.root={data.root}")
    assert (status, out) == (1, "")
    assert says in err
    assert not Path("run").exists()
    assert not Path("data/proposals").exists(), "before anything is computed"


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        (f"run={'r' * 256}", "a folder name of 256 bytes exceeds the limit of 255"),
        (f"name={'ü' * 128}", "used in file and folder names and must not exceed 150 bytes"),
        (f"run={'/'.join(['r' * 200] * 18)}", "but the limit is 3500"),
        ("run=file/run", "file is not a folder"),
        ("hydra.sweep.dir=file/sweep", "file is not a folder"),
    ],
)
def test_a_run_that_cannot_have_a_folder_is_refused_at_once(
    call: Call, tmp_path: Path, argument: str, says: str
) -> None:
    Path("file").write_text("")
    sweep = ["-m"] if "sweep" in argument else []
    status, out, err = call("train", *sweep, argument, *SMALL, f"data.root={tmp_path}")
    assert (status, out) == (1, "")
    assert says in err


def test_an_evaluation_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        refuse_unusable(tmp_path / "file" / "x", "output=x")
    with pytest.raises(UserError, match="contains a slash"):
        check_comp4("test", ["cat", "a/b"])
    refuse_unusable(tmp_path / "x", "output=x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="file is not a folder"):  # of compress and svm
        output_file(str(tmp_path / "file" / "x.pt"), Path("run/checkpoints/best.pt"), "svm/best.pt")


def test_a_data_set_of_a_long_name_has_its_proposals(call: Call, tmp_path: Path) -> None:
    data = images(tmp_path / "data", [str(n) for n in range(4)])
    long = [
        *(s for s in SMALL if s.startswith("data")),
        f"data.root={data.root}",
        f"data.name={'n' * 150}",
        f"data.train=[{'t' * 149}]",
        f"data.test=[{'u' * 149}]",
    ]
    (data.root / "ImageSets" / "Main").mkdir(parents=True)
    data.split("t" * 149, "0", "1", "2")
    data.split("u" * 149, "3")
    assert call("propose", *long, "workers=1")[0] == 0
    assert len(list(Path("data/proposals").glob("nnn*.proposals"))) == 2  # trainval and test
    assert call("check", *long, "output=checked")[1].splitlines()[-1].startswith("next step: fastrcnn train")


def test_without_ground_truth_there_is_no_map(call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fastrcnn")
    data = images(tmp_path / "data", [str(n) for n in range(8)], tested=False)
    root = f"data.root={data.root}"
    status, out, _ = call("check", "data=custom", root)
    assert status == 0
    assert "no class has an object in the 1 test image(s)" in out
    status, out, err = call("train", "run=run", *SMALL, root)
    assert status == 0, err
    assert caplog.text.count("no class has ground truth") == 2, "at the start and after the evaluation"
    assert "mAP 0.0" not in caplog.text + out
    with Path("run/metrics.csv").open(newline="") as file:
        (value,) = (row[2] for row in csv.reader(file) if row[1] == "eval/mAP")
    assert math.isnan(float(value))
    events = EventAccumulator("run/tensorboard").Reload()
    assert "eval/mAP" not in events.Tags()["scalars"]
    assert [p.name for p in Path("run/checkpoints").iterdir()] == ["step-3.pt"], "none is the best"
    tracker = Tracker(Path("run"), start=3)
    tracker.close()
    assert tracker.evaluated, "it is known that step 3 was evaluated"
    status, out, err = call("train", "-m", *SMALL, root, "hydra/sweeper=optuna", "solver.lr=interval(0.001,0.01)")
    assert (status, "there is no mAP because no class has ground truth" in err) == (1, True)


def test_a_sweeps_columns_do_not_depend_on_how_many_runs_are_over(tmp_path: Path) -> None:
    overrides = ["a.b=1,2", "c=[1,2]", "d=interval(1,2)", "e='x,y'", r"f='it\'s,it'"]
    (tmp_path / "values.json").write_text(json.dumps(overrides))
    assert varying_keys(overrides) == ["a.b", "d"]
    report(tmp_path)
    assert (tmp_path / "sweep.csv").read_text() == "run,a.b,d,mAP\n"
    for number, value in enumerate((None, 0.0, 0.5)):
        folder = tmp_path / str(number)
        folder.mkdir()
        result = {"overrides": [f"a.b={number}", "c=[1,2]", "d=1"], "mAP": value, "error": None}
        (folder / "sweep.json").write_text(json.dumps(result))
    report(tmp_path)
    rows = [line.split(",") for line in (tmp_path / "sweep.csv").read_text().splitlines()]
    assert rows == [
        ["run", "a.b", "d", "mAP"],
        ["2", "2", "1", "0.5000"],
        ["1", "1", "1", "0.0000"],
        ["0", "0", "1", "none"],
    ]


def test_classes_that_differ_in_letter_case_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_same_files(["Cat", "dog", "cat"])
    assert "The classes 'Cat' and 'cat' differ only in letter case" in caplog.text
