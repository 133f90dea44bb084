"""The model card: its example runs as it stands, and gives what the detector gives."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from slim_detectors import CLASSES, boxes, described, picture, slim

from fastrcnn.data.transforms import Augmentation
from fastrcnn.deploy.card import evaluations, model_card, write_with_card
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
    card = model_card(of, file, True, 1)
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


def test_the_card_says_what_a_user_needs(tmp_path: Path) -> None:
    model = slim(classifier="svm", roi_op="roi_align")
    of = described(model, classifier="svm", roi_op="roi_align")
    two = {**of.config["data"], "test_short_sides": [480, 600]}
    none = {**of.config["detection"], "score_threshold": None, "max_per_image": None}
    (tmp_path / "d.pt2").write_bytes(bytes(3 * 2**19))
    card = model_card(
        replace(of, config={**of.config, "data": two, "detection": none}), tmp_path / "d.pt2", False, 1234
    )
    for text in (
        "SVM margins",
        "the proposals, unchanged; this network does not use box regression",
        "`scale = min(480 / short side, 160 / long side)`",
        "several short sides (480, 600): each proposal",
        "with RoI Align",
        "Each side of `image` must be at least 64 pixels",
        "Keep boxes regardless of their score",
        "Then keep all detections over all classes",
        "3. owl é",
        "| test | 3 | voc07 | 0.500 |",
        "subtracts 123.675, 116.28, 103.53 from",
        "| Parameters | 1,234 |",
        "| File | 1.5 MiB,",
        "## Training data\n\n- Nine images.\n\n",
        "## Training recipe\n\n- Seven steps.\n\n",
    ):
        assert text in card
    assert "somewhere" not in card
    assert "AP per class" not in card


def test_the_card_of_weights_has_figures_limits_and_commands(tmp_path: Path) -> None:
    reach = {"cat": 1.0, "dog": 0.125, "owl é": None}
    metrics = {
        "test": {"metric": "voc07", "mAP": 0.25, "images": 9, "ap": {"cat": 0.25, "dog": None}, "recall": {"cat": 0.9}},
        "a|b": {"metric": "coco", "mAP": 0.5, "images": 8, "ap": {"cat": 0.5}, "unsure": True, "recall": reach},
    }
    record = {"data": [], "recipe": [], "images": 7, "objects": {"cat": 1234}, "precision": "float16"}
    plain = described(slim())
    config = {**plain.config, "model": {**plain.config["model"], "head": [1024, 512]}}
    of = replace(plain, config=config, metrics=metrics, record=record)
    (tmp_path / "d.safetensors").touch()
    card = model_card(of, tmp_path / "d.safetensors", True, 1)
    for text in (
        "detector for 3 classes",
        "| Network | vgg16, width 0.06, fc6 and fc7 with 1024 and 512 features |",
        "| Precision | weights rounded to float16;",
        "fastrcnn eval checkpoint=d.safetensors data.root=DATASET\n",
        "train start=d.safetensors data=custom",
        "| test | 9 | voc07 | 0.250 |\n| a\\|b (\\*) | 8 | coco | 0.500 |",
        "| Class | Training objects | test | a\\|b |\n|---|---|---|---|\n",
        "| cat | 1,234 | 0.250 | 0.500 |\n| dog | 0 |  |  |\n",
        "measured before the weights were rounded to float16",
        "On test, 90.0 % of the objects of every class have a proposal with an IoU of 0.5 or more.",
        "On a|b, 12.5 % (dog) to 100.0 % (cat) of the objects of each class have a proposal with an IoU of 0.5",
        "## Training recipe\n\nNot recorded in the checkpoint.\n",
    ):
        assert text in card, text
    assert "## Inputs" not in card
    compile(example(card), "card", "exec")
    (tmp_path / "d.caffemodel").touch()
    card = model_card(replace(of, classes=("it's",), metrics={}), tmp_path / "d.caffemodel", True, 1)
    said = shlex.split(card[card.index("fastrcnn eval") : card.index("fastrcnn train")].replace("\\\n", ""))
    assert said[:4] == ["fastrcnn", "eval", "checkpoint=d.caffemodel", "data.root=DATASET"]
    assert said[4:] == ['data.classes=["it\'s"]', "data.test_short_sides=[96]", "data.long_side=160"]
    assert "| Precision | float32, converted from weights that were rounded to float16 |" in card
    assert "No evaluation of this detector is recorded." in card
    assert "The detector recognises only the class above." in card


AWKWARD = (
    "a|b",
    "a\nb",
    "<script>alert(1)</script>",
    "`x`",
    "[x](http://x)",
    "![x](y)",
    "# x",
    "- x",
    "123. x",
    "a\\|b",
    "*x* _y_ ~~z~~",
    "&lt;b&gt;",
    "https://x www.x.org",
    "---",
    "\ud800",
)


def test_names_do_not_change_the_structure_of_the_card(tmp_path: Path) -> None:
    """The expected text is Markdown (CommonMark, with tables as on GitHub) that shows the name itself."""
    metrics = {"a|`b`": {"metric": "voc07", "mAP": 0.5, "images": 9, "ap": dict.fromkeys(AWKWARD, 0.5)}}
    metrics["a|`b`"]["recall"] = {"<b>": 0.5, "[y](z)": 1.0}
    record = {"data": ["Data set `a`.\n# <b>[x](y)"], "recipe": [], "objects": dict.fromkeys(AWKWARD, 3)}
    of = replace(described(slim()), classes=AWKWARD, metrics=metrics, record=record)
    (tmp_path / "a`\n```.safetensors").touch()
    card = model_card(of, tmp_path / "a`\n```.safetensors", True, 1)
    assert card.startswith("# MODEL.safetensors\n")
    classes = card.split("## Classes\n\n")[1].split("\n\n##")[0]
    assert classes.splitlines() == [
        "1. a|b",
        "2. a b",
        r"3. \<script\>alert(1)\</script\>",
        r"4. \`x\`",
        r"5. \[x\](http\://x)",
        r"6. !\[x\](y)",
        r"7. \# x",
        r"8. \- x",
        r"9. 123\. x",
        r"10. a\\|b",
        r"11. \*x\* \_y\_ \~\~z\~\~",
        r"12. \&lt;b\&gt;",
        r"13. https\://x www\.x.org",
        r"14. \---",
        "15. \ud800",
    ]
    assert "| a\\|b | 3 | 0.500 |\n| a b | 3 | 0.500 |\n" in card
    assert "\n| a\\\\\\|b | 3 | 0.500 |\n" in card, "a backslash and a bar, each escaped"
    assert "| Class | Training objects | a\\|\\`b\\` |\n" in card
    assert r"On a|\`b\`, 50.0 % (\<b\>) to 100.0 % (\[y\](z)) of the objects" in card
    assert "\n- Data set `a`. # \\<b>\\[x](y)\n" in card


def test_a_card_with_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = slim()
    of = replace(described(model), record={"data": ["Proposals: read from `caf\udce9`."]})
    card = write_with_card(model, of, True, tmp_path / "a.safetensors")
    assert r"- Proposals: read from `caf\udce9`." in card.read_text(encoding="utf-8")


def test_evaluations_of_another_checkpoint_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder of a run has that of the last step, which best.pt need not be of."""

    def write(split: str, **metrics: object) -> None:
        (tmp_path / "eval" / split).mkdir(parents=True, exist_ok=True)
        (tmp_path / "eval" / split / "metrics.json").write_text(json.dumps(metrics))

    write("test", mAP=0.81, metric="voc07", images=3, ap={"cat": 0.81}, proposals={"recall_50": {"cat": 1.0}})
    write("val", mAP=0.6, metric="voc07", images=2, ap={"cat": 0.6})
    write("torn", mAP="high", metric="voc07", images=2, ap={})
    write("none", mAP=None, metric="voc07", images=2, ap={"cat": None})
    (tmp_path / "eval" / "torn2").mkdir()
    (tmp_path / "eval" / "torn2" / "metrics.json").write_text("[" * 10**5)
    val = {"metric": "voc07", "mAP": 0.6, "images": 2, "ap": {"cat": 0.6}, "recall": {}, "unsure": True}
    test = {"metric": "voc07", "mAP": 0.81, "images": 3, "ap": {"cat": 0.81}, "recall": {"cat": 1.0}}
    own = {"split": "test", "metric": "voc07", "mAP": 0.8102}
    assert evaluations(tmp_path, own) == {"test": test, "val": val}
    assert evaluations(tmp_path) == {"test": test | {"unsure": True}, "val": val}
    assert not caplog.text
    own["mAP"] = 0.83
    alone = {"metric": "voc07", "mAP": 0.83, "images": None, "ap": {}}
    assert evaluations(tmp_path, own) == {"val": val, "test": alone}
    assert "the mAP 0.8100 (voc07) in this file differs from the mAP of the checkpoint, 0.8300 (voc07)" in caplog.text
