"""`eval` and `detect` with a detector in a .caffemodel, and training that begins from one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import caffemodel
import pytest
import torch
from voc_folder import VocFolder

from fastrcnn import build
from fastrcnn.config import ModelConfig
from fastrcnn.training import checkpoint

Call = Callable[..., tuple[int, str, str]]
FAST = ["runtime.device=cpu", "runtime.workers=0", "data.selective_search.side=40", "data.test_short_sides=48"]
TWO = "data.classes=[cat,dog]"


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    return caffemodel.write(tmp_path / "vgg16_fast_rcnn_iter_40.caffemodel", caffemodel.vgg16(1 / 64, classes=2))


def test_eval_takes_a_caffemodel(call: Call, tiny: VocFolder, detector: Path) -> None:
    before = detector.read_bytes()
    arguments = [f"checkpoint={detector}", f"data.root={tiny.root}", TWO, *FAST]
    status, out, err = call("eval", *arguments)
    assert (status, "Traceback" in err) == (0, False)
    folder = Path("outputs/vgg16_fast_rcnn_iter_40/eval/test")
    assert f"written to {folder}" in out
    assert set(json.loads((folder / "metrics.json").read_text())["ap"]) == {"cat", "dog"}
    assert detector.read_bytes() == before
    assert sorted(p.name for p in detector.parent.iterdir()) == ["here", "set", detector.name]


def test_detect_takes_a_caffemodel_with_the_names_in_their_order(call: Call, tiny: VocFolder, tmp_path: Path) -> None:
    """A detector that calls every box its second class."""
    weights = caffemodel.vgg16(1 / 64, classes=2)
    for name in ("cls_score", "bbox_pred"):
        weights[f"{name}.weight"][:] = 0
        weights[f"{name}.bias"][:] = 0
    weights["cls_score.bias"][2] = 9
    path = caffemodel.write(tmp_path / "d.caffemodel", weights)
    source = next((tiny.root / "JPEGImages").iterdir())
    status, _, err = call("detect", f"checkpoint={path}", f"source={source}", TWO, "output=found", *FAST)
    assert (status, "Traceback" in err) == (0, False)
    assert {entry["category"] for entry in json.loads(Path("found/detections.json").read_text())} == {"dog"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["does not name its classes", "data=voc07"]),
        (["data=voc07"], ["a detector of 2 classes, but data.classes has 20 (aeroplane, bicycle"]),
        (["data.classes=[cat]"], ["a detector of 2 classes, but data.classes has 1 (cat)"]),
    ],
)
def test_the_classes_must_be_said_and_fit(call: Call, detector: Path, arguments: list[str], said: list[str]) -> None:
    status, out, err = call("detect", f"checkpoint={detector}", "source=x.jpg", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith(f"fastrcnn: {detector}: ")
    assert all(text in err for text in said)


def test_a_caffemodel_that_is_none_or_no_detector_is_one_clear_message(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "x.caffemodel"
    status, _, err = call("eval", f"checkpoint={path}", TWO)
    assert (status, err) == (1, f"fastrcnn: there is no file {path}. Give the path of a .caffemodel.\n")
    path.write_bytes(b"<html>")
    status, _, err = call("eval", f"checkpoint={path}", TWO)
    assert (status, err.startswith(f"fastrcnn: {path}: not a .caffemodel")) == (1, True)
    caffemodel.write(path, caffemodel.vgg16(1 / 64))
    status, _, err = call("eval", f"checkpoint={path}", TWO)
    assert (status, "not a detector, it has no cls_score, bbox_pred" in err) == (1, True)


def test_a_training_begins_from_a_caffemodel(
    call: Call, tiny: VocFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Frozen layers come out of the run as they were in the file, with their channels turned and Caffe's mean."""
    caplog.set_level(logging.INFO, "fastrcnn")
    weights = caffemodel.vgg16(1 / 64)
    path = caffemodel.write(tmp_path / "VGG_ILSVRC_16_layers.caffemodel", weights, old=True)
    status, _, err = call(
        "train",
        "data=custom",
        f"data.root={tiny.root}",
        "model=vgg16",
        "model.width=0.015625",
        f"model.weights={path}",
        "run=run",
        "solver.iterations=1",
        "data.short_sides=[48]",
        *FAST,
    )
    assert (status, "Traceback" in err) == (0, False)
    assert "pixels as caffe_bgr (the layers bear Caffe's names)" in caplog.text
    state = checkpoint.load(checkpoint.resolve(Path("run")))["model"]
    assert torch.equal(state["trunk.convs.conv1_1.weight"].flip(1), torch.from_numpy(weights["conv1_1.weight"]))
    assert state["pixel_mean"].flatten().tolist() == pytest.approx([122.7717, 115.9465, 102.9801])
    assert state["pixel_std"].flatten().tolist() == [1, 1, 1]
    assert build.model(ModelConfig(width=1 / 64, weights=str(path), pixels="imagenet_rgb"), 2).pixel_std[1] > 50
    status, _, err = call("train", "data=custom", f"data.root={tiny.root}", "model.pixels=bgr")
    assert (status, "model.pixels=bgr: should be one of auto, imagenet_rgb, caffe_bgr, caffe_rgb" in err) == (1, True)
