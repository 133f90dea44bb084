"""Opening .onnx files: ours, others, broken ones."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slim_detectors import CLASSES, boxes, described, picture, slim

from fastrcnn.data.transforms import Augmentation
from fastrcnn.deploy.onnx_graph import write_onnx
from fastrcnn.errors import UserError
from fastrcnn.inference.detector import Detector
from fastrcnn.inference.network import Network, TorchNetwork
from fastrcnn.inference.onnx_network import OnnxNetwork
from fastrcnn.proposals.selective_search import propose
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Detections

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = slim()
    write_onnx(model, described(model), True, tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def test_no_proposals_give_nothing(file: Path) -> None:
    scores, found = OnnxNetwork(file)(torch.from_numpy(picture(70, 90)), boxes(0, 70, 90), 1.0, (70, 90))
    assert (scores.shape, found.shape) == ((0, 4), (0, 4, 4))


def test_every_proposal_is_seen_at_its_scale(file: Path) -> None:
    """Two short sides, as a network of torch takes them too; with one of them alone the scores are others."""
    image, rois = picture(120, 150), boxes(40, 120, 150).numpy()

    def found(network: Network, *sides: int) -> Detections:
        settings = DetectionSettings(score_threshold=0.0, nms_iou=1.0, max_per_image=None)
        scaling = Augmentation(sides, 1000, flip=False)
        return Detector(network, CLASSES, settings, scaling, propose).detect(image, rois)

    ours, theirs = found(OnnxNetwork(file), 200, 600), found(TorchNetwork(slim()), 200, 600)
    assert len(ours) == len(theirs) == 3 * len({tuple(box) for box in rois.tolist()})
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-5)
    alone = [found(TorchNetwork(slim()), side).scores for side in (200, 600)]
    assert all((scores - theirs.scores).abs().max() > 1e-3 for scores in alone)


def test_files_that_cannot_be_run_are_one_message(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.onnx: file not found"):
        OnnxNetwork(tmp_path / "gone.onnx")
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"other.onnx: .* not written by `fastrcnn export`"):
        OnnxNetwork(tmp_path / "other.onnx")
    props = {prop.key: prop.value for prop in onnx.load(file).metadata_props}
    onnx.helper.set_model_props(model, {key: text for key, text in props.items() if key != "record"})
    onnx.save(model, tmp_path / "earlier.onnx")
    assert OnnxNetwork(tmp_path / "earlier.onnx").description.record == {}
    onnx.helper.set_model_props(model, {"format": "fastrcnn 1", "classes": "[", "step": "x"})
    onnx.save(model, tmp_path / "torn.onnx")
    with pytest.raises(UserError, match=r"torn.onnx: the metadata is damaged"):
        OnnxNetwork(tmp_path / "torn.onnx")
    for key, text in (
        ("config", "[1]"), ("config", '{"model": 1}'), ("classes", '["a", 1]'), ("classes", "5"), ("step", "many"),
        ("metrics", "[" * 100_000),
    ):  # fmt: skip
        whole = described(slim()).metadata()
        onnx.helper.set_model_props(model, whole | {key: text})
        onnx.save(model, tmp_path / "torn.onnx")
        with pytest.raises(UserError, match=r"torn.onnx: the metadata is damaged"):
            OnnxNetwork(tmp_path / "torn.onnx")
    model.graph.output[0].name = "marks"
    for node in model.graph.node:
        node.output[:] = ["marks" if name == "scores" else name for name in node.output]
    onnx.save(model, tmp_path / "names.onnx")
    with pytest.raises(UserError, match=r"names.onnx: the inputs and outputs are boxes, image, marks"):
        OnnxNetwork(tmp_path / "names.onnx")
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut.onnx: ONNX Runtime cannot open this network \("):
        OnnxNetwork(tmp_path / "cut.onnx")
    if "CUDAExecutionProvider" not in __import__("onnxruntime").get_available_providers():
        with pytest.raises(UserError, match="the installed ONNX Runtime cannot use a GPU"):
            OnnxNetwork(file, torch.device("cuda"))


def test_a_missing_package_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"running .* requires .* pip install 'fastrcnn\[export\]'"):
        OnnxNetwork(file)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"new.onnx: writing .* requires .* pip install 'fastrcnn\[export\]'"):
        write_onnx(slim(), described(slim()), True, tmp_path / "new.onnx")


def test_weights_that_are_not_finite_and_classes_that_are_not_there_are_said(tmp_path: Path) -> None:
    """What is in the graph is known when it has run: nothing is found in silence."""

    def found(network: Network) -> Detections:
        scaling = Augmentation((96,), 160, flip=False)
        detector = Detector(network, CLASSES, DetectionSettings(), scaling, propose)
        return detector.detect(picture(70, 90), boxes(9, 70, 90).numpy())

    model = slim()
    about = described(model)
    write_onnx(model, replace(about, classes=("cat",)), True, tmp_path / "few.onnx")
    with pytest.raises(
        UserError, match=r"few.onnx: .* scores of shape \(9, 4\) and boxes of shape \(9, 4, 4\) for 9 proposals and 1"
    ):
        found(OnnxNetwork(tmp_path / "few.onnx"))
    for layer in ("cls_score", "bbox_pred"):
        model = slim()
        with torch.no_grad():
            getattr(model, layer).bias[1] = float("nan")
        write_onnx(model, about, True, tmp_path / f"{layer}.onnx")
        for network in (OnnxNetwork(tmp_path / f"{layer}.onnx"), TorchNetwork(model)):
            with pytest.raises(UserError, match="scores or boxes that are not finite"):
                found(network)
