"""fastrcnn svm: a checkpoint with SVMs in place of the softmax that the other verbs take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch
from small_run import SETTINGS
from voc_folder import fingerprint

from fastrcnn.deploy import compression
from fastrcnn.training import checkpoint, svm

Call = Callable[..., tuple[int, str, str]]

MADE = Path("run/svm/best.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a demo data set and a run of three steps on it in `run`."""
    return small_run.make(tmp_path_factory.mktemp("a place"))


@pytest.fixture
def place(trained: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with a copy of the run's checkpoints."""
    monkeypatch.setattr(compression, "ROIS", 20)
    return small_run.copy(trained, Path.cwd())


def done(call: Call, *arguments: str) -> str:
    status, out, err = call(*arguments)
    assert status == 0, err
    return out


def test_svms_of_a_run_are_evaluated_detected_and_compressed_with(call: Call, place: Path, trained: Path) -> None:
    data = fingerprint(trained / "data" / "demo")
    out = done(call, "svm", "checkpoint=run", "retrain_after=50")
    assert fingerprint(trained / "data" / "demo") == data
    assert f"Wrote {MADE}" in out
    content, original = checkpoint.load(MADE), checkpoint.load(Path("run/checkpoints/best.pt"))
    assert content["config"]["model"] == original["config"]["model"] | {"classifier": "svm"}
    assert content["config"]["detection"] == original["config"]["detection"] | {"score_threshold": None}
    assert content["config"]["data"] == original["config"]["data"]
    changed = {n for n, v in content["model"].items() if not torch.equal(v, original["model"][n])}
    assert changed == {"cls_score.weight", "cls_score.bias"}
    assert not content["model"]["cls_score.weight"][0].any()
    assert content["model"]["cls_score.weight"][1:].any(dim=1).all()

    # Each as `eval` has it, the results of the SVMs beside their checkpoint, negative scores among them.
    done(call, "eval", "checkpoint=run", "output=softmax")
    done(call, "eval", "checkpoint=run/svm")
    softmax = json.loads(Path("softmax/metrics.json").read_text())["mAP"]
    margins = json.loads(Path("run/svm/eval/test/metrics.json").read_text())["mAP"]
    said = re.search(r"mAP on test: softmax (\S+), SVM (\S+) \((\S+) points\)", out)
    assert said
    expected = [100 * softmax, 100 * margins, 100 * (margins - softmax)]
    assert [float(v) for v in said.groups()] == pytest.approx(expected, abs=0.0051)
    assert margins == content["best"]
    assert "score threshold: 0.01 for the softmax" in out
    lines = [line for p in Path("run/svm/eval/test").glob("comp4*.txt") for line in p.read_text().splitlines()]
    scores = np.array([float(line.split()[1]) for line in lines])
    assert scores.min() < 0
    again = done(call, "reval", "detections=run/svm/eval/test", f"data.root={trained / 'data' / 'demo'}", "data=demo")
    assert re.search(r"^mAP +(\S+)", again, re.MULTILINE)[1] == f"{margins:.3f}"  # type: ignore[index]

    picture = trained / "data" / "demo" / "JPEGImages" / "000001.jpg"
    detect = ["detect", "checkpoint=run/svm", f"source={picture}"]
    done(call, *detect, "draw_threshold=-2.5", "output=found")
    found = json.loads(Path("found/detections.json").read_text())
    assert min(entry["score"] for entry in found) < 0
    assert call(*detect, "draw_threshold=50", "output=nothing")[0] == 3
    limit = (found[2]["score"] + found[3]["score"]) / 2
    assert found[3]["score"] < limit < 0
    done(call, *detect, f"detection.score_threshold={limit}", "draw_threshold=-9", "output=fewer")
    assert json.loads(Path("fewer/detections.json").read_text()) == found[:3]

    smaller = done(call, "compress", "checkpoint=run/svm", "fc7=40", "output=small.pt")
    assert "to fine-tune it" not in smaller
    small = checkpoint.load(Path("small.pt"))
    assert small["config"]["model"]["classifier"] == "svm"
    assert torch.equal(small["model"]["cls_score.weight"], content["model"]["cls_score.weight"])


def test_training_goes_on_from_svms_only_with_a_softmax(
    call: Call, place: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done(call, "svm", "checkpoint=run", "data.test=[]")
    others = [s for s in SETTINGS if not s.startswith(("model.", "solver.it"))]
    arguments = [*others, f"data.root={trained / 'data' / 'demo'}", "solver.iterations=1", "solver.lr=1e-9"]
    status, _, err = call("train", f"start={MADE}", "run=tuned", *arguments)
    assert status == 1
    assert f"start={MADE}: model.classifier=svm: training uses cross-entropy" in err
    assert "Traceback" not in err
    assert not Path("tuned").exists()
    done(call, "train", f"start={MADE}", "run=tuned", "model.classifier=softmax", *arguments)
    assert "consists of SVMs. Training starts with the SVM margins as class logits" in caplog.text
    tuned, made = checkpoint.load(Path("tuned/checkpoints/step-1.pt")), checkpoint.load(MADE)
    assert tuned["config"]["model"]["classifier"] == "softmax"
    torch.testing.assert_close(tuned["model"]["cls_score.weight"], made["model"]["cls_score.weight"], atol=1e-6, rtol=0)


def test_the_keys_reach_the_training(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def watched(
        names: list[str], positives: list, pictures: object, scale: float, settings: svm.SvmSettings, seed: int
    ) -> tuple:
        lengths = [np.linalg.norm(p.features.astype(float), axis=1) for p in pictures]  # type: ignore[attr-defined]
        mean = np.concatenate(lengths[: len(lengths) // (2 if seen["mirrored"] else 1)]).mean()
        seen.update(
            settings=settings, seed=seed, scaled=mean * scale, pictures=len(lengths), positives=sum(map(len, positives))
        )
        dimension = positives[0].shape[1]
        return np.zeros((len(names), dimension), np.float32), np.zeros(len(names), np.float32)

    monkeypatch.setattr(svm, "train_svms", watched)
    seen["mirrored"] = True
    out = done(call, "svm", "checkpoint=run", "data.test=[]", "output=a.pt")
    assert "mAP: not measured, because data.test is empty" in out
    assert seen["settings"] == svm.SvmSettings()
    assert seen["scaled"] == pytest.approx(20, rel=1e-5)
    assert seen["pictures"] == 20  # the ten of trainval, and mirrored
    doubled = seen["positives"]
    seen["mirrored"] = False
    numbers = ["c=0.5", "bias_scaling=3", "positive_weight=4", "negative_iou=0.2", "retrain_after=7", "runtime.seed=9"]
    done(call, "svm", "checkpoint=run", "data.test=[]", "output=b.pt", "data.flip=false", "feature_norm=5", *numbers)
    assert seen["settings"] == svm.SvmSettings(0.5, 3, 4, 0.2, retrain_after=7, feature_norm=5)
    assert seen["seed"] == 9
    assert seen["scaled"] == pytest.approx(5, rel=1e-5)
    assert (seen["pictures"], seen["positives"]) == (10, doubled // 2)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["No model is given. Use `fastrcnn svm checkpoint=PATH`"]),
        (["checkpoint=nothing"], ["checkpoint: nothing does not exist"]),
        (["checkpoint=run", "c=0"], ["c=0: must be greater than 0"]),
        (["checkpoint=run", "negative_iou=30"], ["negative_iou=30: must be at most 1"]),
        (["checkpoint=run", "output=folder"], ["output=folder: the file name must end in", ".pt"]),
        (
            ["checkpoint=run", "output=run/checkpoints/svm.pt"],
            ["a run writes and deletes its checkpoints in the folder run/checkpoints"],
        ),
        (["checkpoint=run", "output=run/checkpoints/../there.pt"], ["already exists"]),
        (["checkpoint=run", "split=vla"], ["Did you mean 'val'?"]),
        (["checkpoint=run", "data.root=nowhere"], ["data.root=nowhere: no such folder"]),
        (["checkpoint=run", "detection.score_threshold=2"], ["detection.score_threshold=2: must be from 0 to 1"]),
        (["checkpoint=run", "C=1"], ["unknown key 'C'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_message_and_write_nothing(
    call: Call, place: Path, arguments: list[str], said: list[str]
) -> None:
    Path("run/there.pt").write_bytes(b"")
    before = fingerprint(place)
    status, out, err = call("svm", *arguments)
    assert (status, out) == (1, "")
    for text in said:
        assert text in err
    assert "Traceback" not in err
    assert fingerprint(place) == before


def test_what_cannot_be_trained_on_is_said(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = checkpoint.load(Path("run/checkpoints/best.pt"))
    content["model"]["head.fc7.weight"].zero_()
    content["model"]["head.fc7.bias"].zero_()
    checkpoint.save(Path("dead.pt"), content)
    content["config"]["model"]["classifier"] = "svm"
    checkpoint.save(Path("margins.pt"), content)
    for name, text in (("dead.pt", "the mean norm of the fc7 features is 0.0"), ("margins.pt", "already has SVMs")):
        status, _, err = call("svm", f"checkpoint={name}", "output=x.pt")
        assert status == 1
        assert text in err
    monkeypatch.setitem(__import__("sys").modules, "sklearn.svm", None)  # an import of it now fails
    status, _, err = call("svm", "checkpoint=run")
    assert status == 1
    assert "pip install 'fastrcnn[svm]'" in err
    assert not Path("x.pt").exists()


def test_probabilities_have_thresholds_from_0_to_1(call: Call, place: Path, trained: Path) -> None:
    picture = trained / "data" / "demo" / "JPEGImages" / "000001.jpg"
    for arguments, key in (
        (["eval", "checkpoint=run", "detection.score_threshold=-1"], "detection.score_threshold=-1"),
        (["detect", "checkpoint=run", f"source={picture}", "draw_threshold=80"], "draw_threshold=80"),
        (["train", "run=new", "detection.score_threshold=5"], "detection.score_threshold=5"),
    ):
        status, _, err = call(*arguments)
        assert status == 1
        assert f"{key}: must be from 0 to 1, because scores are probabilities" in err
