"""fastrcnn reproduce: the plan against the paper, and whole tables on a tiny data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from voc_folder import VocFolder

from fastrcnn.cli import reproduce
from fastrcnn.cli.reproduce import Plan
from fastrcnn.config.compose import compose, options
from fastrcnn.errors import UserError
from fastrcnn.report.paper_tables import TABLES, Cell, Measured, Table, Work, format_values, markdown

Call = Callable[..., tuple[int, str, str]]
TINY = [
    "solver.iterations=2", "solver.images_per_batch=1", "solver.rois_per_image=8", "solver.bg_iou=[0,0.5]",
    "model.width=0.03", "model.weights=null", "model.dropout=0", "data.short_sides=48", "data.test_short_sides=48",
    "runtime.workers=0", "runtime.device=cpu", "runtime.images_every=0", "data.selective_search.side=64",
]  # fmt: skip


def numbers(table: int, measure: str) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for cell in TABLES[table - 1].cells:
        if cell.measure == measure:
            found.setdefault(cell.row, {})[cell.column] = cell.paper
    return found


def test_numbers_are_the_papers() -> None:
    assert [t.number for t in TABLES] == list(range(1, 9))
    assert [list(c.values()) for c in numbers(1, "mAP").values()] == [[66.9], [68.1], [70.0]]
    assert [list(c.values()) for c in numbers(2, "mAP").values()] == [[66.1], [68.8]]
    assert [list(c.values()) for c in numbers(3, "mAP").values()] == [[65.7], [68.4]]
    assert numbers(4, "hours")["training, hours"] == {"S": 1.2, "M": 2.0, "L": 9.5}
    assert [list(c.values()) for c in numbers(4, "s/image").values()] == [[0.10, 0.15, 0.32], [0.06, 0.08, 0.22]]
    assert [list(c.values()) for c in numbers(4, "mAP").values()] == [[57.1, 59.2, 66.9], [56.5, 58.7, 66.6]]
    assert [list(c.values()) for c in numbers(5, "mAP").values()] == [[61.4], [66.9], [67.2]]
    assert [list(c.values()) for c in numbers(6, "mAP").values()] == [
        [52.2, 54.7, 62.6],
        [53.3, 55.5, 63.4],
        [54.6, 56.6, 64.0],
        [57.1, 59.2, 66.9],
    ]
    assert [list(c.values()) for c in numbers(7, "mAP").values()] == [[57.1, 59.2, 66.9], [58.4, 60.7]]
    assert [list(c.values()) for c in numbers(7, "s/image").values()] == [[0.10, 0.15, 0.32], [0.39, 0.64]]
    assert [list(c.values()) for c in numbers(8, "mAP").values()] == [[56.3, 58.7, 66.8], [57.1, 59.2, 66.9]]


def test_every_experiment_of_the_tables_is_a_file_and_every_file_is_used() -> None:
    used = {w for t in TABLES for c in t.cells for w in (c.work.experiment, c.work.start) if w is not None}
    assert {f"paper/{name}" for name in used} == {name for name in options("experiment") if name.startswith("paper/")}


NETWORK = {
    "s": {"model.network": "caffenet", "model.finetune_from": "conv2", "model.roi_size": 6},
    "m": {"model.network": "vgg_cnn_m_1024", "model.finetune_from": "conv2", "model.roi_size": 6},
    "l": {"model.network": "vgg16", "model.finetune_from": "conv3_1", "model.roi_size": 7},
}
SIDES = [480, 576, 688, 864, 1200]
KINDS: dict[str, dict[str, object]] = {
    "07": {},
    "class_only": {"solver.box_weight": 0.0, "detection.box_regression": False},
    "stagewise": {"model.finetune_from": "bbox_pred"},
    "five_scales": {"data.short_sides": SIDES, "data.test_short_sides": SIDES, "data.long_side": 2000},
    "07_no_difficult": {"data.use_difficult": False},
    "0712": {
        "data.train": ["VOC2007/trainval", "VOC2012/trainval"],
        "solver.iterations": 60000,
    },
    "12": {"data.train": ["VOC2012/trainval"], "data.test": [], "data.metric": "voc10"},
    "07pp12": {
        "data.train": ["VOC2007/trainval", "VOC2007/test", "VOC2012/trainval"],
        "data.test": [],
        "data.metric": "voc10",
        "solver.iterations": 100000,
        "solver.lr_steps": [40000, 80000],
    },
    "fc6": {"model.finetune_from": "fc6"},
    "conv2_1": {"model.finetune_from": "conv2_1"},
}
PAPER: dict[str, object] = {
    "solver.optimizer": "caffe_sgd",
    "solver.iterations": 40000,
    "solver.lr_steps": [30000],
    "solver.box_weight": 1.0,
    "detection.average_per_class": 40,
    "detection.box_regression": True,
    "runtime.precision": "float32",
    "data.train": ["VOC2007/trainval"],
    "data.test": ["VOC2007/test"],
    "data.metric": "voc07",
    "data.use_difficult": True,
    "data.short_sides": [600],
    "data.test_short_sides": [600],
    "data.long_side": 1000,
}


@pytest.mark.parametrize("name", [n.removeprefix("paper/") for n in options("experiment") if n.startswith("paper/")])
def test_experiments_say_what_the_paper_says(name: str) -> None:
    letter, _, kind = name.partition("_")
    config = compose("train", [f"experiment=paper/{name}"])
    for key, value in {**PAPER, **NETWORK[letter], **KINDS[kind]}.items():
        group, _, last = key.partition(".")
        assert getattr(getattr(config, group), last) == value, key


def test_columns_are_of_their_network() -> None:
    for table in TABLES:
        for cell in table.cells:
            assert cell.work.experiment.startswith(f"{cell.column.lower()}_"), cell
            assert cell.work.start in (None, f"{cell.column.lower()}_class_only")


@pytest.fixture
def known(call: Call, tiny: VocFolder) -> list[str]:
    """Arguments for the tiny data set."""
    return ["data=custom", f"data.root={tiny.root}", "data.metric=voc07", *TINY]


def begun(caplog: pytest.LogCaptureFixture, how: str = "Training") -> list[str]:
    """Return the experiments that the log reports as started, or as resumed."""
    return [m.removeprefix(how).split(",")[0].strip() for m in caplog.messages if m.startswith(how) and ", seed" in m]


def test_a_table_is_run_once_and_gives_every_cell(
    call: Call, known: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Class loss alone, multi-task without and with regression, and the second stage, for three networks."""
    caplog.set_level(logging.INFO, logger="fastrcnn")
    status, out, err = call("reproduce", "table=6", "output=out", *known)
    assert status == 0, err
    assert begun(caplog) == [
        *(f"{n}_class_only" for n in "sml"),
        *(f"{n}_07" for n in "sml"),
        *(f"{n}_stagewise" for n in "sml"),
    ]
    content = json.loads(Path("out/table-6.json").read_text())
    assert len(content["cells"]) == 12
    runs = {run for cell in content["cells"] for run in cell["runs"]}
    assert len(runs) == 9
    for cell in content["cells"]:
        (run,), (value,) = map(tuple, (cell["runs"], cell["measured"]))
        where = "eval-box_regression-false-*" if cell["then"] else f"eval-{10 * '?'}"
        (metrics,) = (Path(run) / "reproduce").glob(f"{where}/metrics.json")
        assert value == 100 * json.loads(metrics.read_text())["mAP"]
    assert Path("out/table-6.md").read_text().strip() in out
    assert out.startswith("Table 6. ")

    import torch

    first = next(c["runs"][0] for c in content["cells"] if c["experiment"] == "paper/l_class_only")
    second = next(c["runs"][0] for c in content["cells"] if c["experiment"] == "paper/l_stagewise")
    from fastrcnn.training import checkpoint

    before, after = (checkpoint.load(Path(r) / "checkpoints" / "step-2.pt")["model"] for r in (first, second))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"bbox_pred.weight", "bbox_pred.bias"}, "stage-wise training regresses boxes and nothing else"

    # What a user evaluates in a run's folder meanwhile does not count, and nothing is run again.
    assert call("eval", f"checkpoint={first}", "split=test", "metric=voc10", "detection.score_threshold=1")[0] == 0
    caplog.clear()
    status, again, err = call("reproduce", "table=6", "output=out", *known)
    assert status == 0, err
    assert begun(caplog) == []
    assert again == out, "nothing was run again"


def test_seeds_are_runs_of_their_own_and_changed_truth_is_trained_on_anew(
    call: Call, known: list[str], tiny: VocFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fastrcnn")
    only = Table(5, TABLES[4].title, TABLES[4].cells[1:2])
    monkeypatch.setattr(reproduce, "TABLES", (*TABLES[:4], only, *TABLES[5:]))
    assert call("reproduce", "table=5", "seeds=[0,1]", *known)[0] == 0
    assert begun(caplog) == ["l_07", "l_07"]
    from fastrcnn.training import checkpoint

    weights = [
        checkpoint.load(path)["model"]["cls_score.weight"]
        for path in Path().glob("outputs/reproduce/*/checkpoints/*.pt")
    ]
    assert len(weights) == 2
    assert not weights[0].equal(weights[1])
    caplog.clear()
    assert call("reproduce", "table=5", *known, "runtime.log_every=7")[0] == 0
    assert begun(caplog) == [], "how often something is logged changes nothing that is learned"
    tiny.add("a", ("cat", (1, 1, 33, 25), False))
    assert call("reproduce", "table=5", *known)[0] == 0
    assert begun(caplog) == ["l_07"]


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(
    call: Call, known: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrcnn.training.run import TrainingRun

    real = TrainingRun.fit

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "fit", stopped)
    assert call("reproduce", "table=5", *known)[0] == 130
    assert not list(Path().glob("outputs/reproduce/*/checkpoints/*.pt"))
    monkeypatch.setattr(TrainingRun, "fit", real)
    status, _, err = call("reproduce", "table=5", *known)
    assert status == 0, err


def test_an_interrupted_table_goes_on(
    call: Call, known: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in the second training: the first is not run again, the second goes on from its checkpoint."""
    from fastrcnn.training.run import TrainingRun

    caplog.set_level(logging.INFO, logger="fastrcnn")
    real, steps = TrainingRun.save, []

    def save(run: TrainingRun, step: int) -> None:
        real(run, step)
        steps.append(step)
        if len(steps) == 3:  # 1 and 2 of the first, 1 of the second
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "save", save)
    arguments = ["reproduce", "table=5", *known, "runtime.checkpoint_every=1"]
    assert call(*arguments)[0] == 130
    assert steps == [1, 2, 1]
    caplog.clear()
    status, out, err = call(*arguments)
    assert status == 0, err
    assert begun(caplog, "Resuming") == ["l_07"]
    assert steps == [1, 2, 1, 2, 1, 2]
    assert "conv2_1" in out


def test_compression_svms_and_times_end_to_end(call: Call, known: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables 4 and 8 for one network: a compressed checkpoint, SVMs, hours and seconds."""
    small = {"fc6=1024": "fc6=20", "fc7=256": "fc7=9"}
    for number in (4, 8):
        table = TABLES[number - 1]
        cells = tuple(
            Cell(c.row, c.column, c.paper, Work(c.work.experiment, then=tuple(small.get(a, a) for a in c.work.then)),
                 c.measure)
            for c in table.cells if c.column == "L"
        )  # fmt: skip
        only = Table(number, table.title, cells)
        monkeypatch.setattr(reproduce, "TABLES", (*TABLES[: number - 1], only, *TABLES[number:]))
        status, _, err = call("reproduce", f"table={number}", f"output=out{number}", *known)
        assert status == 0, err
        content = json.loads(Path(f"out{number}/table-{number}.json").read_text())
        found = {cell["row"]: cell["measured"][0] for cell in content["cells"]}
        assert all(value is not None and value >= 0 for value in found.values())
        if number == 4:
            assert 0 < found["training, hours"] < 1
            assert 0 < found["detection, s/image"] < 60
            (run,) = Path("outputs/reproduce").glob("l_07-*")
            assert (run / "reproduce" / "compress-fc6-20-fc7-9" / "best.pt").is_file()
        else:
            assert (run / "reproduce" / "svm" / "best.pt").is_file()


def test_sets_without_public_truth_give_files_for_the_server(call: Call, voc: VocFolder) -> None:
    """Table 3 on a devkit: trained on VOC2012 without an evaluation, detections packed for the server."""
    devkit = voc.root.parent / "devkit"
    set12 = VocFolder(devkit / "VOC2012")
    for name in ("a", "b"):
        set12.add(name, ("cat", (1, 1, 32, 24), False), ("dog", (33, 10, 64, 48), False))
    set12.add("t", ("cat", (11, 11, 30, 40), False))
    (devkit / "VOC2012" / "Annotations" / "t.xml").unlink()
    set12.split("trainval", "a", "b")
    set12.split("test", "t")
    status, _, err = call("reproduce", "table=3", f"data.root={devkit}", *TINY)
    assert status == 1
    assert "VOC2007" in err
    assert not Path("outputs/reproduce").exists(), (
        "what the second experiment lacks is said before the first is trained"
    )
    set07 = VocFolder(devkit / "VOC2007")
    for name in ("x", "y"):
        set07.add(name, ("cat", (1, 1, 32, 24), False))
    set07.split("trainval", "x")
    set07.split("test", "y")
    status, out, err = call("reproduce", "table=3", f"data.root={devkit}", *TINY)
    assert status == 0, err
    assert "| 12               | 65.7 / to be submitted |" in out
    (run,) = Path("outputs/reproduce").glob("l_12-*")
    assert (run / "reproduce" / "VOC2012-test" / "results.tgz").is_file()


def test_hours_are_of_the_steps_alone(tmp_path: Path) -> None:
    rows = ["step,name,value", "20,train/loss,1", "20,train/steps_per_s,2", "30,train/steps_per_s,0.5", "30,eval/mAP,1"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    assert reproduce.training_hours(tmp_path) == pytest.approx((20 / 2 + 10 / 0.5) / 3600)


def test_several_seeds_are_a_mean_and_a_deviation() -> None:
    arguments = ["data=demo", "solver.lr=0.1"]
    plan = Plan(compose("reproduce", ["table=1", "seeds=[0,1,2]", *arguments]), arguments)
    found = [Measured(v, Path("run")) for v in (60.0, 62.0, 64.0)]
    none = [Measured(None, Path("run"), Path("results.tgz"))]
    first, second, third = TABLES[0].cells
    text = markdown(TABLES[0], {first: found, second: none, third: [Measured(1.0, Path("run"))]}, plan.notes())
    assert "| 07                   | 66.9 / 62.0 +- 2.0     |" in text
    assert "| 07 without difficult | 68.1 / to be submitted |" in text
    assert "| 07+12                | 70.0 / 1.0             |" in text
    assert "Submission for the evaluation server: results.tgz" in text
    assert "Do not compare them with the paper" in text
    assert "Measured on the data set demo (AP: voc07)" in text
    assert "Settings that differ from the paper: solver.lr=0.1" in text
    assert "| 07+12                | 70.0 / -               |" in markdown(TABLES[0], {first: found, second: none}, [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Choose a table of the paper"),
        (["table=9"], "table=9: must be at most 8"),
        (["table=1", "seeds=[]"], "seeds=[]: specify at least one seed"),
        (["table=1", "seeds=[3,3]"], "seeds=[3, 3]: specify at least one seed, without duplicates"),
        (["table=1", "run=foo"], "run=foo: `fastrcnn reproduce` sets this key"),
        (["table=1", "resume=auto"], "resume=auto: `fastrcnn reproduce` sets this key"),
        (["table=1", "runtime.seed=7"], "runtime.seed=7: `fastrcnn reproduce` sets this key"),
        (["table=7", "model=vgg16"], "the experiments determine the networks (S, M or L)"),
        (["table=1", "data=voc07"], "the experiments determine which VOC data sets"),
        (["table=7", "data.short_sides=48"], "set by the table's experiment paper/m_five_scales"),
        (["table=1", "tabel=2"], "unknown key 'tabel'"),
        (["table=1", "data.root=nowhere"], "data.root=nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_message(call: Call, arguments: list[str], said: str) -> None:
    status, _, err = call("reproduce", *arguments)
    assert status == 1
    assert said in err
    assert "Traceback" not in err


def test_missing_weights_are_said_before_anything_is_trained(call: Call, tiny: VocFolder) -> None:
    Path("data/imagenet_models").mkdir(parents=True)
    for name in ("CaffeNet", "VGG_CNN_M_1024"):
        Path(f"data/imagenet_models/{name}.v2.caffemodel").touch()
    status, _, err = call("reproduce", "table=4", "data=custom", f"data.root={tiny.root}")
    assert status == 1
    assert "data/imagenet_models/VGG16.v2.caffemodel: file not found" in err
    assert not Path("outputs/reproduce").exists()


def test_ranks_that_do_not_fit_are_said_before_anything_is_trained(call: Call, known: list[str]) -> None:
    status, _, err = call("reproduce", "table=4", *known)
    assert status == 1
    assert "fc6_rank=1024" in err
    assert not Path("outputs/reproduce").exists()


def test_without_scikit_learn_nothing_is_trained(call: Call, known: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrcnn.training import svm

    def missing() -> None:
        raise UserError("pip install 'fastrcnn[svm]'")

    monkeypatch.setattr(svm, "linear_svc", missing)
    status, _, err = call("reproduce", "table=8", *known)
    assert status == 1
    assert "fastrcnn[svm]" in err
    assert not Path("outputs/reproduce").exists()


def test_a_cell_says_why_it_has_no_figure() -> None:
    cell, run = Cell("", "", 66.9, Work("s")), Path("run")
    assert format_values(cell, [Measured(66.9, run)]) == "66.9"
    assert format_values(cell, [Measured(None, run)]) == "no ground truth"
    assert format_values(cell, [Measured(None, run, run / "results.tgz")]) == "to be submitted"
    assert format_values(cell, []) == "-"
