"""The model card: its example runs as it stands, and gives what the detector gives."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from slim_detectors import CLASSES, boxes, described, picture, slim

from fastrcnn.data.transforms import Augmentation
from fastrcnn.deploy.card import model_card
from fastrcnn.deploy.onnx_graph import write_onnx
from fastrcnn.deploy.program import write_program
from fastrcnn.inference.detector import Detector
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.proposals.selective_search import propose
from fastrcnn.settings import DetectionSettings

SETTINGS = DetectionSettings(score_threshold=0.2, nms_iou=0.4, max_per_class=30, max_per_image=12)


def example(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_example_runs(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    model = slim()
    plain = described(model)
    limits = {key: getattr(SETTINGS, key) for key in plain.config["detection"]}
    of = replace(plain, config={**plain.config, "detection": limits})
    file = tmp_path / f"a{suffix}"
    (write_onnx if suffix == ".onnx" else write_program)(model, of, True, file)
    card = model_card(of, file.name, True)
    (tmp_path / "example.py").write_text(example(card))
    cv2.imwrite(str(tmp_path / "a.png"), picture(120, 150)[:, :, ::-1])
    proposals = boxes(60, 120, 150).numpy()
    np.save(tmp_path / "a.npy", proposals)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example.py", file.name, "a.png", "a.npy"])
    runpy.run_path("example.py")
    said = capsys.readouterr().out
    if suffix == ".pt2":
        assert said.startswith("torch.Size([60, 4]) torch.Size([60, 4, 4])")
        return
    scaling = Augmentation((96,), 160, flip=False)
    detector = Detector(TorchNetwork(model), CLASSES, SETTINGS, scaling, propose)
    found = detector.detect(picture(120, 150), proposals)
    rows = []
    for line in said.splitlines():
        found_what, *box = line.split("\t")
        name, score = found_what.rsplit(" ", 1)
        rows.append((name, *(float(v) for v in box), float(score)))
    assert len(found) == len(rows) == 12
    assert [row[-1] for row in rows] == sorted((row[-1] for row in rows), reverse=True)
    ours = sorted((d.name, *d.box, d.score) for d in found)  # RoIs of the same cells share a score: by name and place
    assert [row[0] for row in sorted(rows)] == [row[0] for row in ours]
    np.testing.assert_allclose([row[1:] for row in sorted(rows)], [row[1:] for row in ours], rtol=0, atol=0.006)


def test_the_card_says_what_a_user_needs() -> None:
    model = slim(classifier="svm", roi_op="roi_align")
    of = described(model, classifier="svm", roi_op="roi_align")
    two = {**of.config["data"], "test_short_sides": [480, 600]}
    none = {**of.config["detection"], "score_threshold": None, "max_per_image": None}
    card = model_card(replace(of, config={**of.config, "data": two, "detection": none}), "d.pt2", False)
    for text in (
        "margins of SVMs",
        "the proposals; this network does not move them",
        "`scale = min(480 / short side, 160 / long side)`",
        "short sides 480, 600: each proposal",
        "by RoI Align",
        "No side of `image` may be shorter than 64 pixels",
        "Keep all scores",
        "Then keep all of all classes",
        "3. owl é",
        "voc07 mAP on test (3 images): 0.500",
        "123.675, 116.28, 103.53 is subtracted",
    ):
        assert text in card
    assert "somewhere" not in card
