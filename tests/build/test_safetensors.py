"""Detectors in .safetensors files: read as checkpoints, and refused where they are damaged or hostile."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import slim_run
import torch
from torch import Tensor

from fastrcnn.build import checkpoints
from fastrcnn.cli import main
from fastrcnn.config.compose import compose
from fastrcnn.errors import UserError
from fastrcnn.settings import ModelSettings
from fastrcnn.training import checkpoint

safetensors = pytest.importorskip("safetensors")
save_file = pytest.importorskip("safetensors.torch").save_file
State, Meta = dict[str, Tensor], dict[str, str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that was exported in half precision."""
    folder = tmp_path_factory.mktemp("whole")
    run = slim_run.save(folder / "set", folder / "run")
    file = folder / "whole.safetensors"
    assert main(["export", f"checkpoint={run}", "format=safetensors", "precision=float16", f"output={file}"]) == 0
    return file


def parts(file: Path) -> tuple[State, Meta]:
    with safetensors.safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def read(file: Path) -> checkpoints.Trained:
    return checkpoints.read(str(file), compose("export", [f"checkpoint={file}"]))


def test_it_holds_what_the_checkpoint_does(whole: Path) -> None:
    trained, path = read(whole), whole.parent / "run" / "checkpoints" / "best.pt"
    ours = checkpoint.load(path)
    assert (trained.classes, trained.step) == (ours["classes"], ours["step"])
    model = ours["config"]["model"] | {"weights": ModelSettings().weights}  # a place of the machine it was trained on
    assert trained.config["model"] == model
    assert trained.config["solver"] == ours["config"]["solver"]
    assert trained.run == Path("outputs/whole")
    for name, values in trained.model(torch.device("cpu")).state_dict().items():
        rounded = name.endswith((".weight", ".bias"))
        expected = ours["model"][name].half().float() if rounded else ours["model"][name]
        assert values.dtype == expected.dtype
        assert torch.equal(values, expected), name


def with_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State, Meta], None]:
    return lambda state, _: state.update({name: change(state[name])})


def with_text(key: str, change: Callable[[object], object]) -> Callable[[State, Meta], None]:
    return lambda _, meta: meta.update({key: json.dumps(change(json.loads(meta[key])))})


def in_config(group: str, **values: object) -> Callable[[State, Meta], None]:
    return with_text("config", lambda config: config | {group: config[group] | values})  # type: ignore[operator,index]


FC7, PIXELS = "head.fc7.weight", "pixel_std"
DAMAGE: dict[str, tuple[Callable[[State, Meta], object], str]] = {
    "no metadata": (lambda _, meta: meta.clear(), "not a detector. Its metadata has no format 'fastrcnn 1'"),
    "another program's": (lambda _, meta: meta.update(format="pt"), "model.weights="),
    "a part is missing": (lambda _, meta: meta.pop("config"), "the metadata is damaged"),
    "no JSON": (lambda _, meta: meta.update(config="{"), "the metadata is damaged"),
    "deep JSON": (lambda _, meta: meta.update(config="[" * 10**5), "the metadata is damaged"),
    "step": (lambda _, meta: meta.update(step="Infinity"), "`step` must be a non-negative integer"),
    "classes": (with_text("classes", lambda _: ["a", "a"]), "`classes` must be a list of distinct names"),
    "one class more": (with_text("classes", lambda names: [*names, "owl"]), "cls_score.weight"),  # type: ignore[misc]
    "a class that no file can have": (with_text("classes", lambda _: ["a/b", "c"]), "contains a slash"),
    "metrics": (
        with_text("metrics", lambda _: {"test": {"mAP": "x"}}),
        "the training record .entry `record`. are invalid",
    ),
    "record": (with_text("record", lambda _: {"recipe": [1]}), "the training record .entry `record`. are invalid"),
    "a key out of bounds": (in_config("model", width=1e9), "model.width"),
    "an unknown key": (in_config("model", widht=1), "unknown key 'model.widht'"),
    "a network too large for any machine": (in_config("model", width=100.0), "expected"),
    "no data": (
        with_text("config", lambda config: {"model": config["model"]}),  # type: ignore[index]
        r"damaged: it does not contain the group\(s\) data, detection",
    ),
    "a tensor less": (lambda state, _: state.pop(FC7), f"{FC7}: missing"),
    "a tensor more": (lambda state, _: state.update(x=torch.ones(1)), "x: not in the model"),
    "another shape": (with_tensor(FC7, lambda t: t[:1].clone()), f"{FC7}: shape \\(1, 64\\), expected \\(64, 64\\)"),
    "whole numbers": (with_tensor(FC7, lambda t: t.int()), "dtype torch.int32"),
    "float64": (with_tensor(FC7, lambda t: t.double()), f"{FC7}: torch.float64"),
    "NaN": (with_tensor(FC7, lambda t: t * math.nan), f"{FC7}: .*not finite"),
    "overflow": (with_tensor(FC7, lambda t: t * math.inf), f"{FC7}: .*not finite"),
    "no deviation": (with_tensor(PIXELS, torch.zeros_like), f"{PIXELS}: contains 0, but "),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_message(whole: Path, tmp_path: Path, kind: str) -> None:
    change, said = DAMAGE[kind]
    state, meta = parts(whole)
    change(state, meta)
    file = tmp_path / "torn.safetensors"
    save_file(state, file, meta or None)
    with pytest.raises(UserError, match=said) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_proposals_that_the_file_cannot_bring_are_said(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(whole)
    assert "proposals" not in caplog.text
    state, meta = parts(whole)
    with_text("record", lambda record: record | {"proposals": "mcg.proposals"})(state, meta)  # type: ignore[operator]
    file = tmp_path / "a.safetensors"
    save_file(state, file, meta)
    read(file)
    assert "trained with proposals from mcg.proposals. The exported file does not contain them" in caplog.text
    caplog.clear()
    checkpoints.read(str(file), compose("export", [f"checkpoint={file}", "data.proposals=mine.proposals"]))
    assert "proposals" not in caplog.text


def test_a_negative_variance_is_refused(tmp_path: Path) -> None:
    run = slim_run.save(tmp_path / "set", tmp_path / "run", batch_norm=True)
    whole, name = tmp_path / "a.safetensors", "trunk.norms.conv1_1.running_var"
    assert main(["export", f"checkpoint={run}", "format=safetensors", "precision=float16", f"output={whole}"]) == 0
    state, meta = parts(whole)
    assert {state[f"trunk.norms.conv1_1.{part}"].dtype for part in ("weight", "bias", "running_var")} == {torch.float32}
    save_file(state | {name: -state[name]}, tmp_path / "b.safetensors", meta)
    with pytest.raises(UserError, match=rf"{name}: contains -1, but a variance cannot be negative"):
        read(tmp_path / "b.safetensors")


def test_a_file_cut_short_and_a_header_that_lies(whole: Path, tmp_path: Path) -> None:
    """No more memory is asked for than the file has."""
    content, file = whole.read_bytes(), tmp_path / "cut.safetensors"
    for torn in (b"", content[:7], content[:300], content[:-1], (2**62).to_bytes(8, "little") + content[8:]):
        file.write_bytes(torn)
        with pytest.raises(UserError, match=r"cut.safetensors: the file is truncated or not a .safetensors file"):
            read(file)
    with pytest.raises(UserError, match=r"gone.safetensors: this checkpoint does not exist"):
        read(tmp_path / "gone.safetensors")


def test_weights_without_a_description_still_begin_a_training(whole: Path, tmp_path: Path) -> None:
    """As files of earlier versions, whose metadata had the network, the classes and the pixels alone."""
    from fastrcnn.build import models

    state, _ = parts(whole)
    save_file(state, tmp_path / "old.safetensors", {"format": "pt", "classes": '["cat", "dog"]'})
    settings = ModelSettings(width=slim_run.WIDTH, weights=str(tmp_path / "old.safetensors"))
    model = models.model(settings, 7)
    assert torch.equal(model.head.fc7.weight, state[FC7].float())
    assert torch.equal(model.pixel_mean, state["pixel_mean"])
