"""A detector in a .caffemodel where a checkpoint is wanted, and training that begins from weights in one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import caffemodel
import numpy as np
import pytest
import torch
from voc_folder import VocFolder

from fastrcnn.build import models
from fastrcnn.settings import ModelSettings
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
    assert f"Wrote the results to {folder}" in out
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
        ([], ["does not contain class names", "data=voc07"]),
        (["data=voc07"], ["this detector has 2 classes, but data.classes has 20 (aeroplane, bicycle"]),
        (["data.classes=[cat]"], ["this detector has 2 classes, but data.classes has 1 (cat)"]),
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
    assert (status, err) == (1, f"fastrcnn: {path}: file not found. Set the path of a .caffemodel file.\n")
    path.write_bytes(b"<html>")
    status, _, err = call("eval", f"checkpoint={path}", TWO)
    assert (status, err.startswith(f"fastrcnn: {path}: "), "not a .caffemodel" in err) == (1, True, True)
    caffemodel.write(path, caffemodel.vgg16(1 / 64))
    status, _, err = call("eval", f"checkpoint={path}", TWO)
    assert (status, "not a detector. Missing layers: cls_score, bbox_pred" in err) == (1, True)


def same_as_in_the_file(state: dict[str, torch.Tensor], weights: dict[str, np.ndarray], *layers: str) -> bool:
    found = {
        f"{layer}.{part}": f"{name}.{part}"
        for layer, name in zip(layers[::2], layers[1::2], strict=True)
        for part in ("weight", "bias")
    }
    return all(np.array_equal(state[ours].numpy(), weights[theirs]) for ours, theirs in found.items())


@pytest.mark.parametrize("kind", ["vgg16", "caffenet"])
def test_compress_takes_a_caffemodel(call: Call, tiny: VocFolder, tmp_path: Path, kind: str) -> None:
    weights = caffemodel.network(kind, 1 / 16, classes=2)
    path = caffemodel.write(tmp_path / "small.caffemodel", weights)
    status, out, err = call("compress", f"checkpoint={path}", "fc7=5", f"data.root={tiny.root}", TWO, *FAST)
    assert (status, "Traceback" in err) == (0, False), err
    written = Path("outputs/small/compressed/fc7-5/best.pt")
    assert f"Wrote {written}" in out
    content = checkpoint.load(written)
    model, state = content["config"]["model"], content["model"]
    assert (content["step"], content["classes"], model["network"], model["fc7_rank"]) == (0, ["cat", "dog"], kind, 5)
    assert state["pixel_mean"].flatten().tolist() == pytest.approx([122.7717, 115.9465, 102.9801])
    assert state["pixel_std"].eq(1).all()
    assert state["delta_mean"].eq(0).all()
    assert state["delta_std"].eq(1).all()
    first = next(iter(weights)).partition(".")[0]
    assert np.array_equal(state[f"trunk.convs.{first}.weight"].numpy(), weights[f"{first}.weight"][:, ::-1])
    assert same_as_in_the_file(state, weights, "head.fc6", "fc6", "cls_score", "cls_score", "bbox_pred", "bbox_pred")
    u, s, v = np.linalg.svd(weights["fc7.weight"].astype(float), full_matrices=False)
    product = (state["head.fc7.U.weight"] @ state["head.fc7.L.weight"]).numpy()
    np.testing.assert_allclose(product, u[:, :5] * s[:5] @ v[:5], atol=1e-5)
    status, out, err = call("eval", f"checkpoint={written}")  # the classes and the data set are in it now
    assert (status, "mAP" in out) == (0, True), err
    again = ("compress", f"checkpoint={path}", "fc7=5", "data.root=null", TWO)
    assert call(*again)[0] == 0
    path.write_bytes(path.read_bytes() + caffemodel.field(1, b"another file"))
    status, _, err = call(*again)
    assert (status, f"{written} already exists and was created from another file" in err) == (1, True)


def test_svm_takes_a_caffemodel(call: Call, tiny: VocFolder, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    weights = caffemodel.vgg16(1 / 64, classes=2)
    path = caffemodel.write(tmp_path / "d.caffemodel", weights)
    status, out, err = call("svm", f"checkpoint={path}", "data.root=../set", TWO, *FAST)
    assert (status, "Wrote outputs/d/svm/best.pt" in out) == (0, True), err
    content = checkpoint.load(Path("outputs/d/svm/best.pt"))
    assert content["config"]["model"]["classifier"] == "svm"
    assert content["config"]["data"]["root"] == str(tiny.root)
    state = content["model"]
    assert same_as_in_the_file(state, weights, "head.fc6", "fc6", "head.fc7", "fc7", "bbox_pred", "bbox_pred")
    assert not same_as_in_the_file(state, weights, "cls_score", "cls_score")


def test_train_starts_with_a_caffemodel(call: Call, tiny: VocFolder, tmp_path: Path) -> None:
    """As the same detector, its box layer normalised by the training set's statistics."""
    weights = caffemodel.vgg16(1 / 64, classes=2)
    path = caffemodel.write(tmp_path / "d.caffemodel", weights)
    few = ["solver.iterations=1", "solver.lr=1e-12", "data.short_sides=[48]", "model.dropout=0", *FAST]
    arguments = ["data=custom", f"data.root={tiny.root}", *few]
    status, _, err = call("train", f"start={path}", "run=run", *arguments)
    assert (status, "does not contain class names" in err, Path("run").exists()) == (1, True, False)
    status, _, err = call("train", f"start={path}", "run=run", TWO, *arguments)
    assert (status, "Traceback" in err) == (0, False), err
    content = checkpoint.load(Path("run/checkpoints/step-1.pt"))
    model, state = content["config"]["model"], content["model"]
    assert (content["classes"], model["network"], model["width"]) == (["cat", "dog"], "vgg16", 1 / 64)
    assert model["finetune_from"] == "conv3_1", "as the author trained it"
    assert torch.equal(state["trunk.convs.conv1_1.weight"].flip(1), torch.from_numpy(weights["conv1_1.weight"]))
    std, mean = state["delta_std"][1:].flatten().numpy(), state["delta_mean"][1:].flatten().numpy()
    assert np.unique(std).size == std.size, "statistics of this set"
    found = state["bbox_pred.weight"][4:].numpy() * std[:, None]
    np.testing.assert_allclose(found, weights["bbox_pred.weight"][4:], rtol=1e-4, atol=1e-6)
    found = state["bbox_pred.bias"][4:].numpy() * std + mean
    np.testing.assert_allclose(found, weights["bbox_pred.bias"][4:], rtol=1e-4, atol=1e-6)
    status, _, err = call("train", "start=run", "run=again", "data.flip=false", *arguments)
    assert status == 0, err
    again = checkpoint.load(Path("again/checkpoints/step-1.pt"))["model"]
    assert torch.equal(again["delta_std"], state["delta_std"]), "those of a normalised layer stay"


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
    assert "pixel normalisation is caffe_bgr (the layers have the names of Caffe or Keras)" in caplog.text
    state = checkpoint.load(checkpoint.resolve(Path("run")))["model"]
    assert torch.equal(state["trunk.convs.conv1_1.weight"].flip(1), torch.from_numpy(weights["conv1_1.weight"]))
    assert state["pixel_mean"].flatten().tolist() == pytest.approx([122.7717, 115.9465, 102.9801])
    assert state["pixel_std"].flatten().tolist() == [1, 1, 1]
    assert models.model(ModelSettings(width=1 / 64, weights=str(path), pixels="imagenet_rgb"), 2).pixel_std[1] > 50
    status, _, err = call("train", "data=custom", f"data.root={tiny.root}", "model.pixels=bgr")
    assert (status, "model.pixels=bgr: must be one of auto, imagenet_rgb, caffe_bgr, caffe_rgb" in err) == (1, True)
