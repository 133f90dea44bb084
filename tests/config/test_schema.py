"""Every YAML file composes, builds, and has only keys that the schema knows and explains."""

from __future__ import annotations

import importlib
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import nn

from fastrcnn import cli
from fastrcnn.build import datasets, machine, models, run, run_config
from fastrcnn.cli import COMMANDS, main
from fastrcnn.cli.export import SUFFIXES
from fastrcnn.config.compose import compose, config_folder, options
from fastrcnn.config.schema import SCHEMAS, TrainConfig, groups, leaves
from fastrcnn.data.transforms import Augmentation
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.networks import NETWORKS
from fastrcnn.proposals.selective_search import COLOUR_IMAGES
from fastrcnn.settings import ExportFormat, NetworkName, Pixels, SearchMode
from fastrcnn.weights.pixels import PIXELS

FILES = sorted(p.relative_to(config_folder()).as_posix() for p in config_folder().rglob("*.yaml"))


WHOLE = ("recipe", "experiment")  # groups that set keys of several others


def keys(content: dict[str, Any], prefix: str = "") -> set[str]:
    """All keys of nested containers, dotted."""
    found = set()
    for name, value in content.items():
        found |= keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


def content(file: str) -> dict[str, Any]:
    return yaml.safe_load((config_folder() / file).read_text(encoding="utf-8"))


def arguments(file: str) -> list[str]:
    """The command line of `train` that chooses a file."""
    folder, _, name = file.removesuffix(".yaml").partition("/")
    return [f"{folder}={name}"] if name else []


def test_there_is_a_file_for_every_verb_and_group() -> None:
    assert {f.partition("/")[0] for f in FILES if "/" in f} == {*groups(TrainConfig), *WHOLE}
    assert {f.removesuffix(".yaml") for f in FILES if "/" not in f} == set(SCHEMAS)


@pytest.mark.parametrize("file", FILES)
def test_every_key_of_a_file_is_in_the_schema(file: str) -> None:
    own = content(file)
    own.pop("defaults", None)
    group, _, name = file.partition("/")
    prefix = f"{group}." if name and group not in WHOLE else ""
    verb = "train" if name else group.removesuffix(".yaml")
    assert keys(own, prefix) <= set(leaves(SCHEMAS[verb]))


@pytest.mark.parametrize("file", [f for f in FILES if "/" in f])
def test_every_file_composes_to_what_it_says(file: str) -> None:
    config = compose("train", arguments(file))
    group = file.partition("/")[0]
    own = content(file)
    own.pop("defaults", None)

    def check(part: Any, said: dict[str, Any]) -> None:
        for key, value in said.items():
            if isinstance(value, dict):
                check(getattr(part, key), value)
            else:
                assert getattr(part, key) == value, key

    check(config if group in WHOLE else getattr(config, group), own)


def arrives(config: TrainConfig) -> None:
    """That what is built from a configuration has its values, each where it belongs."""
    if config.model.finetune_from == "bbox_pred":
        config.start = "a run"
    run_config.check_training(config)
    data, solver = config.data, config.solver
    train, test = datasets.augmentation(data), datasets.test_scaling(data)
    assert train == Augmentation(
        tuple(data.short_sides),
        data.long_side,
        data.flip,
        data.flip_vertical,
        data.transpose,
        data.colour,
        crop=data.crop,
    )
    assert test == Augmentation(tuple(data.test_short_sides), data.long_side, False, False, False, 0.0)
    plan = run.schedule(config)
    for name in ("log_every", "checkpoint_every", "images_every", "seed"):
        assert getattr(plan, name) == getattr(config.runtime, name), name
    assert plan.evaluate_every == (config.runtime.evaluate_every or 0)
    assert (plan.iterations, plan.accumulate) == (solver.iterations, solver.accumulate)
    fallen = (1 + math.cos(math.pi * solver.warmup / solver.iterations)) / 2 if solver.schedule == "cosine" else 1
    assert plan.rate(solver.warmup) == pytest.approx(solver.lr * fallen)
    assert plan.rate(solver.iterations - 1) < solver.lr
    cpu = torch.device("cpu")
    if config.runtime.precision != "auto":
        assert (
            machine.precision(config.runtime, cpu)
            == {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.runtime.precision]
        )


@pytest.mark.parametrize("file", [f for f in FILES if f.partition("/")[0] in ("model", *WHOLE)])
def test_every_model_and_experiment_builds(file: str) -> None:
    """Its network on no device; what the solver, the detection and the pictures say arrives."""
    config = compose("train", arguments(file))
    model, classes = config.model, 20
    with torch.device("meta"):
        network = models.model(model, classes, load=False)
    assert isinstance(network, FastRCNN)
    table = NETWORKS[model.network]
    layers = [*table.conv_names, "reduce", "fc6", "fc7", "cls_score", "bbox_pred"]
    named = [(next(n for n in reversed(layers) if n in name.split(".")), p) for name, p in network.named_parameters()]
    trained = {name for name, p in named if p.requires_grad}
    begins = "reduce" if model.finetune_from == "fc6" else model.finetune_from  # which makes what fc6 is given
    first = layers.index(begins)
    assert trained == {name for name, _ in named if layers.index(name) >= first}
    assert (network.roi_size, network.roi_op, list(network.roi_features)) == (
        model.roi_size,
        model.roi_op,
        model.roi_features,
    )
    assert network.classifier == model.classifier
    assert network.cls_score.out_features == classes + 1
    assert network.bbox_pred.out_features == (4 if model.class_agnostic else 4 * (classes + 1))
    assert network.head.dropout == model.dropout
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == model.batch_norm
    full = {"vgg16": 64, "vgg_cnn_m_1024": 96, "caffenet": 96}[model.network]
    assert next(network.trunk.parameters()).shape[0] == pytest.approx(full * model.width, abs=1)
    arrives(config)


def test_the_papers_network_has_the_papers_size() -> None:
    """VGG16 with 21 classes: 14,714,688 in the trunk, fc6 and fc7, 21 scores and 84 box numbers."""
    with torch.device("meta"):
        network = models.model(compose("train", ["model=vgg16"]).model, 20, load=False)
    fc6, fc7 = 512 * 7 * 7 * 4096 + 4096, 4096 * 4096 + 4096
    heads = 4096 * 21 + 21 + 4096 * 84 + 84
    assert sum(p.numel() for p in network.parameters()) == 14_714_688 + fc6 + fc7 + heads == 134_690_729


@pytest.mark.parametrize("group", ["data", "solver", "detection", "runtime", "recipe"])
def test_every_option_of_a_group_arrives(group: str) -> None:
    assert options(group)
    for name in options(group):
        arrives(compose("train", [f"{group}={name}"]))


def test_recipe_paper_is_the_papers() -> None:
    """Sections 2.3, 4.1 and 4.5 of Fast R-CNN, for VGG16 on VOC07, and the author's lib/fast_rcnn/config.py."""
    config = compose("train", ["recipe=paper"])
    assert (config.model.network, config.model.width, config.model.batch_norm) == ("vgg16", 1.0, False)
    assert config.model.weights.endswith("VGG16.v2.caffemodel")
    assert (config.model.finetune_from, config.model.roi_size, config.model.dropout) == ("conv3_1", 7, 0.5)
    assert (config.model.roi_op, config.model.roi_features) == ("fast_rcnn", ["conv5_3"])
    assert config.model.classifier == "softmax"
    assert not config.model.class_agnostic
    solver = config.solver
    assert (solver.images_per_batch, solver.rois_per_image, solver.fg_fraction) == (2, 64, 0.25)
    assert (solver.fg_iou, solver.bg_iou, solver.box_weight) == (0.5, [0.1, 0.5], 1.0)
    assert (solver.lr, solver.lr_steps, solver.lr_gamma, solver.iterations) == (0.001, [30000], 0.1, 40000)
    assert (solver.momentum, solver.weight_decay, solver.bias_lr_factor) == (0.9, 0.0005, 2.0)
    assert (solver.optimizer, solver.schedule, solver.warmup) == ("caffe_sgd", "step", 0)
    data = config.data
    assert (data.short_sides, data.long_side, data.test_short_sides) == ([600], 1000, [600])
    assert (data.flip, data.flip_vertical, data.transpose, data.colour) == (True, False, False, 0.0)
    assert (data.metric, data.max_proposals, len(data.classes), data.use_difficult) == ("voc07", 10000, 20, True)
    detection = config.detection
    assert (detection.nms_iou, detection.max_per_class, detection.average_per_class) == (0.3, 100, 40)
    assert (detection.score_threshold, detection.max_per_image, detection.box_regression) == (None, None, True)
    assert config.runtime.precision == "float32"


def test_recipe_modern_is_the_default_and_changes_these_switches_alone() -> None:
    modern, paper = (asdict(compose("train", [f"recipe={name}"])) for name in ("modern", "paper"))
    assert asdict(compose("train", [])) == modern

    def flat(content: dict[str, Any]) -> dict[str, Any]:
        return {f"{g}.{k}": v for g, part in content.items() if isinstance(part, dict) for k, v in part.items()}

    now, then = flat(modern), flat(paper)
    changed = {name: (value, now[name]) for name, value in then.items() if value != now[name]}
    assert changed == {
        "model.weights": ("data/imagenet_models/VGG16.v2.caffemodel", "imagenet"),
        "runtime.precision": ("float32", "auto"),
        "data.max_proposals": (10000, 2000),
        "solver.images_per_batch": (2, 8),
        "solver.group_aspects": (False, True),
        "solver.iterations": (40000, 10000),
        "solver.lr": (0.001, 0.004),
        "solver.schedule": ("step", "cosine"),
        "solver.warmup": (0, 500),
        "solver.optimizer": ("caffe_sgd", "fused_sgd"),
        "detection.score_threshold": (None, 0.05),
        "detection.max_per_class": (100, None),
        "detection.max_per_image": (None, 100),
        "detection.average_per_class": (40, None),
    }
    assert now["solver.images_per_batch"] * now["solver.iterations"] == 2 * 40000, "as many pictures as the paper"


def test_every_item_of_the_recipe_has_a_test_that_exists() -> None:
    page = (config_folder().parent / "docs" / "paper.md").read_text(encoding="utf-8")
    items = page.partition("## The recipe in detail")[2].partition("\n## ")[0]
    rows = [line for line in items.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 20
    root = Path(__file__).parents[2]
    for row in rows:
        named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", row)
        assert named, row
        for file, name in named:
            assert f"\ndef {name}(" in (root / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_the_page_of_recipes_lists_what_modern_changes() -> None:
    page = (config_folder().parent / "docs" / "training.md").read_text(encoding="utf-8")
    page = page.partition("### `modern`")[2].partition("\n### ")[0]
    modern, paper = (asdict(compose("train", [f"recipe={name}"])) for name in ("modern", "paper"))
    for group in ("model", "solver", "detection", "runtime", "data"):
        for key, value in modern[group].items():
            changed = value != paper[group][key]
            assert (f"`{group}.{key}`" in page or f"`{key}`" in page) == changed, key


def test_a_group_on_the_command_line_goes_before_the_recipes() -> None:
    config = compose("train", ["recipe=paper", "model=caffenet", "detection=modern"])
    assert (config.model.network, config.detection.score_threshold, config.solver.optimizer) == (
        "caffenet",
        0.05,
        "caffe_sgd",
    )
    assert compose("train", ["experiment=bccd", "recipe=paper"]).solver.optimizer == "caffe_sgd"


@pytest.mark.parametrize("verb", SCHEMAS)
def test_every_key_is_explained_and_listed_by_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help", "all"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    for name, (_, text) in leaves(SCHEMAS[verb]).items():
        assert text, name
        assert any(line[:1] == [name] for line in lines), name
        assert " ".join(text.split()) in " ".join(out.split()), name
    for group in groups(SCHEMAS[verb]):
        for option in options(group):
            assert option in out


def test_every_command_has_a_module() -> None:
    folder = Path(cli.__file__).parent
    for command in COMMANDS:
        assert (folder / f"{command.replace('-', '_')}.py").is_file(), command
        assert callable(importlib.import_module(f"fastrcnn.cli.{command.replace('-', '_')}").main), command


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("experiment/")])
def test_every_experiment_opens_with_its_command(file: str) -> None:
    lines = (config_folder() / file).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    name = file.removeprefix("experiment/").removesuffix(".yaml")
    assert any(f"experiment={name}" in line for line in lines[1:3] if line.startswith("# fastrcnn")), lines[1]


def test_the_names_that_a_key_can_have_are_those_of_the_tables_they_are_looked_up_in() -> None:
    assert get_args(NetworkName) == tuple(NETWORKS)
    assert get_args(Pixels) == ("auto", *PIXELS)
    assert get_args(SearchMode) == (*COLOUR_IMAGES, "iccv2011")
    assert get_args(ExportFormat) == tuple(SUFFIXES)
