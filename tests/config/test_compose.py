"""Arguments to configuration: text arrives as it was typed, mistakes are named, runs are inherited."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastrcnn.config.compose import check_overrides, compose, config_folder, options
from fastrcnn.config.schema import SCHEMAS
from fastrcnn.config.values import as_yaml
from fastrcnn.errors import UserError

TEXTS = [
    "/tmp/a b=[c],{d} é\\",
    "/data/VOC 2007 (old)/x",
    "~/VOCdevkit",
    "C:\\Users\\me\\data",
    "\\\\server\\share\\",
    "it's",
    "'a",
    "a'",
    "\\'",
    "'it's'",
    'say "hi", please',
    " leading and trailing ",
    "a,b",
    "$HOME",
    "a#b: c",
    "x*?[0-9].jpg",
    "choice(a,b)",
    "{a: 1}",
    "数据/مجلد",
    "%cd%@|&;!",
    # What a careless grammar takes for something other than text:
    "true",
    "1e3",
    "007",
    "1_000",
    "None",
    "nan",
    "0x10",
    "-",
    "=",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_unchanged(text: str) -> None:
    config = compose("detect", [f"data.root={text}", f"source={text}"])
    assert (config.data.root, config.source) == (text, text)


@pytest.mark.parametrize("text", TEXTS[:2])
def test_a_run_that_is_inherited_keeps_its_text(text: str) -> None:
    base = asdict(compose("train", [f"data.root={text}"]))
    assert compose("eval", ["checkpoint=x"], base).data.root == text


@pytest.mark.parametrize("quoted", ["'a b'", '"a b"'])
def test_quotes_that_the_shell_left_do_not_belong_to_the_text(quoted: str) -> None:
    assert compose("train", [f"data.root={quoted}"]).data.root == "a b"


@pytest.mark.parametrize("empty", ["null", ""])
def test_null_and_nothing_leave_an_optional_key_empty(empty: str) -> None:
    config = compose(
        "train", [f"model.weights={empty}", f"runtime.threads={empty}", f"data.classes={empty}", f"data.root={empty}"]
    )
    assert (config.model.weights, config.runtime.threads, config.data.classes, config.data.root) == (None,) * 4


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data.short_sides=[400,600]", [400, 600]),
        ("data.short_sides=[ 400 ]", [400]),
        ("data.train=[VOC2007/trainval]", ["VOC2007/trainval"]),
        ("data.train=[VOC2007/trainval,VOC2012/trainval]", ["VOC2007/trainval", "VOC2012/trainval"]),
        ("data.classes=[traffic light, stop sign]", ["traffic light", "stop sign"]),
        ("data.classes=['a, b',\"c]\"]", ["a, b", "c]"]),
        ("data.classes=[Küche,été,猫]", ["Küche", "été", "猫"]),
        ("data.classes=[a=b,c:d,e's]", ["a=b", "c:d", "e's"]),
        ("data.classes=[7,true,1e3]", ["7", "true", "1e3"]),
        ("data.classes=[]", []),
        ("data.train=trainval", ["trainval"]),
        ("data.train=a, b.json", ["a, b.json"]),
        ("data.short_sides=600", [600]),
        ("data.selective_search.k=[1,2.5]", [1.0, 2.5]),
        ("solver.bg_iou=[0,.5]", [0.0, 0.5]),
        ("solver.lr=1e-3", 0.001),
        ("solver.lr=2", 2.0),
        ("data.flip=false", False),
        ("data.flip=No", False),
        ("detection.max_per_image=null", None),
        ("solver.iterations=+5", 5),
        ("data.metric=voc10", "voc10"),
    ],
)
def test_values_get_the_type_of_their_key(argument: str, expected: object) -> None:
    config = compose("train", [argument])
    value: Any = config
    for name in argument.partition("=")[0].split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("verb", "argument", "said"),
    [
        ("train", "solver.learning_rate=1", "unknown key 'solver.learning_rate'"),
        ("train", "solver.iteration=1", "Did you mean 'solver.iterations'?"),
        ("train", "lr=1", "Did you mean 'solver.lr'?"),
        ("train", "iterations=1", "Did you mean 'solver.iterations'?"),
        ("train", "Data.Root=x", "Did you mean 'data.root'?"),
        ("train", "checkpoint=x", "unknown key 'checkpoint'"),  # a key of another verb
        ("train", "hydra.run.dir=x", "unknown key 'hydra.run.dir'"),
        ("train", "+data.more=1", "unknown key '+data.more'"),
        ("train", "~data.root", "'~data.root' is not of the form key=value"),
        ("train", "data=voc7", "Did you mean 'voc07'? Available: custom, demo, voc07, voc0712,"),
        ("train", "experiment=dmo", "Did you mean 'demo'?"),
        ("train", "model=resnet", "model=resnet: the group 'model' has no option 'resnet'. Available: "),
        ("train", "data=", "data=: the group 'data' has no option ''."),
        ("train", "data=../model/vgg16", "the group 'data' has no option '../model/vgg16'"),
        ("eval", "solver.lr=1", "unknown key 'solver.lr'"),
        ("eval", "spilt=val", "Did you mean 'split'?"),
        ("detect", "experiment=demo", "unknown key 'experiment'"),
        ("train", "--data.root", "unknown key '--data.root'. Use data.root=... instead: "),
        ("train", "data.root", "'data.root' is not of the form key=value. The value is missing: data.root=..."),
        ("train", "experiment", "The value is missing: experiment=..."),
        ("train", "=x", "unknown key ''"),
        ("train", "solver.lr=fast", "solver.lr: must be a number, not 'fast'."),
        ("train", "solver.lr=", "solver.lr: must be a number, not ''."),
        ("train", "solver.lr=null", "solver.lr: must be a number, not 'null'."),
        ("train", "solver.lr=nan", "solver.lr: must be a number, not 'nan'."),
        ("train", "solver.lr=0,01", "solver.lr: must be a number, not '0,01'."),
        ("train", "solver.iterations=1.5", "solver.iterations: must be an integer, not '1.5'."),
        ("train", "runtime.threads=two", "runtime.threads: must be an integer, not 'two'."),
        ("train", "data.flip=maybe", "data.flip: must be true or false, not 'maybe'."),
        (
            "train",
            "data.short_sides=400,600",
            "data.short_sides=400,600: must be a list, such as data.short_sides=[400,600].",
        ),
        ("train", "data.short_sides=[400,x]", "data.short_sides: must be an integer, not 'x'."),
        ("train", "model.roi_op=roialign", "model.roi_op=roialign: must be one of fast_rcnn, partition, "),
        ("train", "model.roi_op=roialign", " Did you mean 'roi_align'?"),
        ("train", "solver.schedule=", "solver.schedule=: must be one of step, cosine."),
        ("train", "resume=yes", "resume=yes: must be auto."),
        ("train", "data.other_classes=ignore", "data.other_classes=ignore: must be one of refuse, leave_out."),
        (
            "detect",
            "formats=[json,cvs]",
            "formats=cvs: must be one of json, csv, comp4, voc, yolo, coco, labelstudio. Did you mean 'csv'?",
        ),
    ],
)
def test_mistakes_are_named(verb: str, argument: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        compose(verb, [argument])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (
            {"solver": {"schedule": "cosin"}},
            "solver.schedule=cosin: must be one of step, cosine. Did you mean 'cosine'?",
        ),
        ({"model": {"network": 5}}, "model.network='5': must be one of vgg16, vgg_cnn_m_1024, caffenet."),
        ({"data": {"metric": ["coco"]}}, "data.metric=list: must be one of voc07, voc10, coco."),
        ({"runtime": {"precision": None}}, "runtime.precision='None': must be one of auto, float32, bfloat16."),
        ({"data": {"short_sides": []}}, "data.short_sides is empty. Give at least one value."),
        ({"resume": "no"}, "resume=no: must be auto."),
    ],
)
def test_values_of_an_earlier_run_are_checked_as_arguments_are(base: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        compose("train", [], base)


def test_a_dollar_is_a_letter_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra resolves nothing in it, neither a key nor the environment."""
    monkeypatch.setenv("SECRET", "abracadabra")
    for text in ("${oc.env:SECRET}", "${data.name}/x"):
        assert compose("train", [f"data.root={text}"]).data.root == text


def test_of_two_values_for_a_key_the_last_counts() -> None:
    assert compose("train", ["solver.lr=1", "solver.lr=2"]).solver.lr == 2


def test_a_key_beats_its_group_wherever_it_stands() -> None:
    for arguments in (["solver=scratch", "solver.lr=7"], ["solver.lr=7", "solver=scratch"]):
        solver = compose("train", arguments).solver
        assert (solver.lr, solver.schedule) == (7.0, "cosine")


def test_an_experiment_chooses_groups_and_the_command_line_beats_it() -> None:
    config = compose("train", ["experiment=demo", "solver=paper", "data.flip=false"])
    assert config.name == "demo"
    assert config.data.name == "demo"
    assert config.solver.iterations == 1500  # the experiment's own number stays
    assert config.solver.schedule == "step"  # the group chosen on the command line
    assert config.data.flip is False


BASE = ["data=custom", "data.root=/old", "data.classes=[x,y]", "data.test_short_sides=99", "detection.nms_iou=0.7"]


def test_eval_inherits_the_run_and_overrides_win() -> None:
    base = asdict(compose("train", [*BASE, "runtime.seed=5"]))
    inherited = compose("eval", ["checkpoint=x"], base)
    assert inherited.checkpoint == "x"
    assert (inherited.data.root, inherited.data.classes, inherited.data.test_short_sides) == ("/old", ["x", "y"], [99])
    assert (inherited.detection.nms_iou, inherited.runtime.seed) == (0.7, 5)

    changed = compose("eval", ["checkpoint=x", "data.root=/new", "data.classes=null", "split=val"], base)
    assert (changed.data.root, changed.data.classes, changed.split) == ("/new", None, "val")
    assert changed.data.test_short_sides == [99]  # the rest stays


def test_a_group_that_is_chosen_replaces_the_inherited_one_whole() -> None:
    base = asdict(compose("train", BASE))
    config = compose("eval", ["checkpoint=x", "detection=paper", "detection.nms_iou=0.4"], base)
    assert (config.detection.score_threshold, config.detection.max_per_class) == (None, 100)
    assert config.detection.nms_iou == 0.4
    assert config.data.root == "/old"
    other = compose("detect", ["checkpoint=x", "data=demo"], base).data
    assert (other.name, other.root, other.classes, other.test_short_sides) == ("demo", "data/demo", None, [160])


def test_what_is_written_beside_a_run_composes_to_the_same_configuration() -> None:
    config = compose("train", ["experiment=demo", f"data.root={TEXTS[0]}", "data.classes=[null, on, 1]"])
    again = yaml.safe_load(as_yaml(asdict(config)))
    assert again == asdict(config)
    assert again["data"]["root"] == TEXTS[0]
    assert again["data"]["classes"] == ["null", "on", "1"]


@pytest.mark.parametrize("verb", SCHEMAS)
def test_every_verb_composes_without_arguments(verb: str) -> None:
    assert type(compose(verb, [])) is SCHEMAS[verb]


def test_checking_the_arguments_needs_no_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hydra", None)  # an import of it now fails
    assert check_overrides("train", ["data=voc07", "solver.lr=1"]) == ["data=voc07", "solver.lr=1"]
    with pytest.raises(UserError):
        compose("train", ["solver.lrr=1"])


def test_the_options_of_a_group_are_its_files() -> None:
    assert options("data") == sorted(p.stem for p in Path(config_folder() / "data").glob("*.yaml"))
    assert "voc07" in options("data")
