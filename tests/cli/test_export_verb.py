"""fastrcnn export: files that eval, detect and train take again, and a checkpoint that stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import caffemodel
import numpy as np
import pytest
import slim_run
import torch
from slim_run import WIDTH
from voc_folder import VocFolder, fingerprint

from fastrcnn.files import MADE
from fastrcnn.training import checkpoint

Call = Callable[..., tuple[int, str, str]]
FAST = [
    "runtime.device=cpu",
    "runtime.precision=float32",
    "runtime.workers=0",
    "data.selective_search.side=40",
    "data.test_short_sides=48",
]


@pytest.fixture
def run(call: Call, tiny: VocFolder) -> Path:
    """A run in the empty folder that commands are called in."""
    return slim_run.save(tiny.root, Path("run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MADE}


def done(call: Call, *arguments: str) -> str:
    status, out, err = call(*arguments)
    assert status == 0, err
    return out


def found(call: Call, source: Path, where: str, *more: str) -> list[dict]:
    done(
        call, "detect", f"checkpoint={where}", f"source={source}", "draw_threshold=0", f"output=d{where}", *more, *FAST
    )
    return json.loads(Path(f"d{where}/detections.json").read_text())


def test_a_caffemodel_detects_what_the_run_does(call: Call, run: Path, tiny: VocFolder) -> None:
    before = fingerprint(run)
    out = done(call, "export", "checkpoint=run", "format=caffemodel", "output=new/d.caffemodel")
    assert out.startswith("model card: new/d.caffemodel.md\nWrote new/d.caffemodel (")
    assert fingerprint(run) == before
    source = tiny.root / "JPEGImages" / "a.jpg"
    again = found(call, source, "new/d.caffemodel", "data.classes=[cat,dog]", "detection.score_threshold=0.01")
    ours = found(call, source, "run", "detection.score_threshold=0.01")
    assert len(ours) > 5
    assert len({entry["score"] for entry in ours}) > 5
    assert [e["category"] for e in again] == [e["category"] for e in ours]
    for theirs, entry in zip(again, ours, strict=True):
        assert theirs["bbox"] == pytest.approx(entry["bbox"], abs=0.011)  # written with two digits
        assert theirs["score"] == pytest.approx(entry["score"], abs=2e-5)


def test_safetensors_lie_in_the_runs_folder_and_begin_a_training(call: Call, run: Path, tiny: VocFolder) -> None:
    safetensors = pytest.importorskip("safetensors")
    done(call, "export", "checkpoint=run", "format=safetensors")
    path = Path("run/export/vgg16.safetensors")
    with safetensors.safe_open(path, "np") as file:
        network = json.loads(file.metadata()["config"])["model"]
    assert (network["network"], network["width"], network["roi_features"]) == ("vgg16", WIDTH, ["conv5_3"])
    assert b"somewhere" not in path.read_bytes(), "a path of the machine it was trained on"
    few = ["solver.iterations=1", "data.short_sides=[48]", *FAST]
    model = ["model=vgg16", f"model.width={WIDTH}", f"model.weights={path}"]
    done(call, "train", "data=custom", f"data.root={tiny.root}", "run=tuned", *model, *few)
    tuned = checkpoint.load(Path("tuned/checkpoints/step-1.pt"))["model"]
    ours = checkpoint.load(Path("run/checkpoints/best.pt"))["model"]
    frozen = [k for k in ours if k.startswith(("trunk.convs.conv1", "trunk.convs.conv2", "pixel"))]
    assert len(frozen) == 10
    assert all(torch.equal(tuned[k], ours[k]) for k in frozen)
    status, _, err = call("train", "data=custom", f"data.root={tiny.root}", "run=other", *model, "model.fc6_rank=5")
    assert (status, "head.fc6.L.weight: missing, expected shape (5, 392)" in err) == (1, True)


def rounded_run(run: Path, other: Path) -> None:
    """A run whose weights are those of `run`, each rounded to half precision by numpy."""
    content = checkpoint.load(run / "checkpoints" / "best.pt")
    for name, values in content["model"].items():
        if name.endswith((".weight", ".bias")):  # no batch normalisation here
            content["model"][name] = torch.from_numpy(values.numpy().astype(np.float16).astype(np.float32))
    content.pop("format")
    checkpoint.save(other / "checkpoints" / "best.pt", content)


def test_half_precision_detects_and_is_evaluated_as_weights_rounded_by_hand(
    call: Call, run: Path, tiny: VocFolder
) -> None:
    pytest.importorskip("safetensors")
    done(call, "export", "checkpoint=run", "format=safetensors", "output=w.safetensors")
    done(call, "export", "checkpoint=run", "format=safetensors", "precision=float16", "output=h.safetensors")
    rounded_run(run, Path("hand"))
    source = tiny.picture("larger", size=(100, 80))
    at = "detection.score_threshold=0.01"
    half, hand, whole = (found(call, source, where, at) for where in ("h.safetensors", "hand", "run"))
    assert half == hand
    assert half != whole
    assert len(half) == len(whole) > 5
    assert [e["score"] for e in half] == pytest.approx([e["score"] for e in whole], abs=1e-3)
    assert found(call, source, "w.safetensors", at) == whole
    for where, folder in (("h.safetensors", "e1"), ("hand", "e2")):
        done(call, "eval", f"checkpoint={where}", f"data.root={tiny.root}", f"output={folder}", at, *FAST)
    metrics = json.loads(Path("e1/metrics.json").read_text())
    assert metrics == json.loads(Path("e2/metrics.json").read_text())
    assert metrics["mAP"] is not None
    done(call, "eval", "checkpoint=h.safetensors", f"data.root={tiny.root}", *FAST)
    assert Path("outputs/h/eval/test/metrics.json").is_file()
    card = Path("h.safetensors.md").read_text()
    assert "| test |  | voc10 | 0.500 |" in card
    assert "Initial weights: `vgg16.pth`." in card


def test_half_precision_begins_a_training_and_is_made_into_other_files(call: Call, run: Path, tiny: VocFolder) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("onnx")
    done(call, "export", "checkpoint=run", "format=safetensors", "precision=float16", "output=h.safetensors")
    rounded_run(run, Path("hand"))
    few = [
        "data=custom",
        f"data.root={tiny.root}",
        "solver.iterations=1",
        "data.short_sides=[48]",
        "data.test=[]",
        *FAST,
    ]
    for where, folder in (("h.safetensors", "t1"), ("hand", "t2")):
        done(call, "train", f"start={where}", f"run={folder}", *few)
    ours, theirs = (checkpoint.load(Path(f"{folder}/checkpoints/step-1.pt")) for folder in ("t1", "t2"))
    assert all(torch.equal(values, theirs["model"][name]) for name, values in ours["model"].items())
    assert ours["classes"] == ["cat", "dog"]
    assert ours["record"] == {"images": 2, "objects": {"cat": 1, "dog": 2}}
    done(call, "compress", "checkpoint=h.safetensors", "fc6=5", "data.root=null", "output=small/best.pt", *FAST)
    done(call, "export", "checkpoint=small/best.pt", "format=onnx", "output=small.onnx")
    card = Path("small.onnx.md").read_text()
    for text in ("weights that were rounded to float16", "Initial weights: `vgg16.pth`.", "split `trainval`."):
        assert text in card
    done(call, "export", "checkpoint=t1", "format=caffemodel", "output=t.caffemodel")
    card = Path("t.caffemodel.md").read_text()
    assert "2 images with 3 objects." in card
    assert "Initial weights: the checkpoint `h.safetensors`." in card
    assert "No evaluation of this detector is recorded." in card


def test_a_caffemodel_becomes_safetensors(call: Call, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = caffemodel.write(tmp_path / "author.caffemodel", caffemodel.network("caffenet", 1 / 16, classes=2))
    arguments = ["export", f"checkpoint={path}", "format=safetensors"]
    status, _, err = call(*arguments)
    assert (status, "does not contain class names" in err) == (1, True)
    done(call, *arguments, "data.classes=[cat,dog]")
    with safetensors.safe_open("outputs/author/export/caffenet.safetensors", "np") as file:
        assert json.loads(file.metadata()["classes"]) == ["cat", "dog"]
        assert json.loads(file.metadata()["pixels"])["mean"] == pytest.approx([122.7717, 115.9465, 102.9801])
    card = Path("outputs/author/export/caffenet.safetensors.md").read_text()
    assert "Converted from `author.caffemodel`, which does not record" in card
    assert "ImageNet" not in card
    assert "`trainval`" not in card


def test_an_onnx_file_detects_and_is_evaluated_as_the_run(call: Call, run: Path, tiny: VocFolder) -> None:
    pytest.importorskip("onnxruntime")
    metrics = {"metric": "voc10", "mAP": 0.5, "images": 3, "ap": {"cat": 0.5}}  # best.pt says .5
    Path("run/eval/test").mkdir(parents=True)
    Path("run/eval/test/metrics.json").write_text(json.dumps(metrics))
    Path("run/eval/torn").mkdir()
    Path("run/eval/torn/metrics.json").write_text("{")
    for_files = ["detection.score_threshold=0.01", "data.selective_search.side=40", "data.test_short_sides=48"]
    out = done(call, "export", "checkpoint=run", "format=onnx", *for_files)
    assert out.splitlines()[0] == "model card: run/export/vgg16.onnx.md"
    card = Path("run/export/vgg16.onnx.md").read_text(encoding="utf-8")
    assert "| test | 3 | voc10 | 0.500 |" in card
    assert "48 / short side" in card
    assert str(tiny.root) not in card
    assert "somewhere" not in card
    Path("run/export/vgg16.onnx").rename("n.onnx")
    source = tiny.picture("larger", size=(100, 80))
    run_alone = ["runtime.device=cpu", "runtime.precision=float32"]
    done(call, "detect", "checkpoint=n.onnx", f"source={source}", "draw_threshold=0", "output=found", *run_alone)
    theirs = json.loads(Path("found/detections.json").read_text())
    ours = found(call, source, "run", "detection.score_threshold=0.01")
    assert len(ours) > 5
    assert [e["category"] for e in theirs] == [e["category"] for e in ours]
    for entry, other in zip(theirs, ours, strict=True):
        assert entry["bbox"] == pytest.approx(other["bbox"], abs=0.011)
        assert entry["score"] == pytest.approx(other["score"], abs=2e-5)
    for where, folder in (("n.onnx", "e1"), ("run", "e2")):
        done(call, "eval", f"checkpoint={where}", f"data.root={tiny.root}", f"output={folder}", *for_files, *run_alone)
    assert json.loads(Path("e1/metrics.json").read_text()) == json.loads(Path("e2/metrics.json").read_text())
    for verb in (["export", "format=onnx"], ["compress", "fc6=5"]):
        status, _, err = call(*verb, "checkpoint=n.onnx")
        assert (status, "n.onnx: an .onnx file can only be used for evaluation and detection" in err) == (1, True)


def test_a_program_of_torch_export_has_its_card(call: Call, run: Path) -> None:
    out = done(call, "export", "checkpoint=run", "format=pt2", "output=new/net.pt2")
    assert "model card: new/net.pt2.md" in out
    assert sorted(p.name for p in Path("new").iterdir() if p.name != MADE) == ["net.pt2", "net.pt2.md"]
    assert Path("new/net.pt2.md").read_text(encoding="utf-8").startswith("# net.pt2\n")


def test_formats_share_a_folder_and_an_export_can_run_again(call: Call, run: Path) -> None:
    """After it was killed between network and card, after it was whole, and with other settings; not over others'."""
    pytest.importorskip("onnx")
    for form in ("onnx", "pt2", "safetensors"):
        done(call, "export", "checkpoint=run", f"format={form}")
    folder, command = Path("run/export"), ("export", "checkpoint=run", "format=onnx")
    there = contents(folder)
    (folder / "vgg16.onnx.md").unlink()
    done(call, *command)
    done(call, *command)
    assert contents(folder) == there
    done(call, *command, "detection.score_threshold=0.5")
    assert contents(folder).keys() == there.keys()
    assert contents(folder) != there
    (folder / "vgg16.onnx.md").write_text("mine")
    status, _, err = call(*command)
    assert (status, "vgg16.onnx.md already exists. Remove it" in err) == (1, True)
    (folder / "vgg16.onnx.md").unlink()
    content = checkpoint.load(Path("run/checkpoints/best.pt"))
    checkpoint.save(Path("run/checkpoints/best.pt"), content | {"step": 10})
    status, _, err = call(*command)
    assert (status, "vgg16.onnx already exists and was created from another file" in err) == (1, True)


def test_an_export_killed_before_its_file_has_the_name_leaves_the_old_one(
    call: Call, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    command = ("export", "checkpoint=run", "format=safetensors")
    done(call, *command)
    before = Path("run/export/vgg16.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        replace = Path.replace
        patch.setattr(
            Path, "replace", lambda a, b: replace(a, b) if b.name == MADE else (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert call(*command)[0] == 130
    assert Path("run/export/vgg16.safetensors").read_bytes() == before
    done(call, *command)
    assert sorted(p.name for p in Path("run/export").iterdir()) == [MADE, "vgg16.safetensors", "vgg16.safetensors.md"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["No model is given. Use `fastrcnn export checkpoint=PATH`", ".caffemodel"]),
        (["checkpoint=run"], ["format=FORMAT", "onnx, pt2, caffemodel, safetensors, torchvision"]),
        (["checkpoint=run", "format=cafemodel"], ["format=cafemodel: must be one of", "Did you mean 'caffemodel'?"]),
        (
            ["checkpoint=nothing", "format=caffemodel"],
            ["nothing does not exist", "or a file"],
        ),
        (["checkpoint=run", "format=caffemodel", "output=x.pt"], ["output=x.pt", "must end in .caffemodel"]),
        (["checkpoint=run", "format=torchvision", "output=there.pth"], ["there.pth already exists"]),
        (
            ["checkpoint=run", "format=torchvision"],
            ["torchvision's VGG16 exists only with width 1", "Use format=safetensors"],
        ),
        (["checkpoint=run", "format=caffemodel", "output=there.pth/x.caffemodel"], ["there.pth is not a folder"]),
        (
            ["checkpoint=run", "format=onnx", "precision=float16"],
            ["precision=float16: format=onnx supports float32 only"],
        ),
        (
            ["checkpoint=run", "format=pt2", "precision=float16"],
            ["format=pt2 supports float32 only", "format=safetensors"],
        ),
        (["checkpoint=run", "format=caffemodel", "precision=float16"], ["format=caffemodel supports float32 only"]),
        (["checkpoint=run", "format=torchvision", "precision=float16"], ["format=torchvision supports float32 only"]),
        (["checkpoint=run", "format=safetensors", "precision=bfloat16"], ["precision=bfloat16: must be one of"]),
        (["checkpoint=run", "form=x"], ["unknown key 'form'", "Did you mean 'format'?"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_message_and_write_nothing(
    call: Call, run: Path, arguments: list[str], said: list[str]
) -> None:
    Path("there.pth").write_bytes(b"")
    before = fingerprint(Path())
    status, out, err = call("export", *arguments)
    assert (status, out) == (1, "")
    for text in said:
        assert text in err
    assert "Traceback" not in err
    assert fingerprint(Path()) == before
