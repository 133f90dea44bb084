"""fastrcnn export: files that eval, detect and train take again, and a checkpoint that stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import caffemodel
import pytest
import torch
from voc_folder import VocFolder, fingerprint

from fastrcnn import build
from fastrcnn.cli.compose import compose, to_dict
from fastrcnn.training import checkpoint

Call = Callable[..., tuple[int, str, str]]
FAST = [
    "runtime.device=cpu",
    "runtime.precision=float32",
    "runtime.workers=0",
    "data.selective_search.side=40",
    "data.test_short_sides=48",
]
WIDTH = 1 / 64


@pytest.fixture
def run(call: Call, tiny: VocFolder) -> Path:
    """The folder of a run with a slim VGG16, its outputs large enough to differ from RoI to RoI."""
    config = compose("train", ["data=custom", f"data.root={tiny.root}", "model=vgg16", f"model.width={WIDTH}"])
    config.model.weights = "somewhere/vgg16.pth"
    config.data.classes = ["cat", "dog"]
    torch.manual_seed(0)
    model = build.model(config.model, 2, load=False)
    with torch.no_grad():
        model.cls_score.weight.mul_(30)
        model.bbox_pred.weight.mul_(300)
        model.pixel_mean.copy_(torch.tensor([122.7717, 115.9465, 102.9801]).view(3, 1, 1))
        model.delta_mean.copy_(torch.randn(3, 4) * 0.01)
        model.delta_std.copy_(torch.rand(3, 4) * 0.1 + 0.1)
    content = {"step": 9, "best": 0.5, "classes": ["cat", "dog"], "config": to_dict(config)}
    checkpoint.save(Path("run/checkpoints/best.pt"), content | {"model": model.state_dict()})
    return Path("run")


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
    assert out.startswith("written to new/d.caffemodel, ")
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
        network = json.loads(file.metadata()["network"])
    assert (network["network"], network["width"], network["roi_features"]) == ("vgg16", WIDTH, ["conv5_3"])
    assert "weights" not in network, "a path of the machine it was trained on"
    few = ["solver.iterations=1", "data.short_sides=[48]", *FAST]
    model = ["model=vgg16", f"model.width={WIDTH}", f"model.weights={path}"]
    done(call, "train", "data=custom", f"data.root={tiny.root}", "run=tuned", *model, *few)
    tuned = checkpoint.load(Path("tuned/checkpoints/step-1.pt"))["model"]
    ours = checkpoint.load(Path("run/checkpoints/best.pt"))["model"]
    frozen = [k for k in ours if k.startswith(("trunk.convs.conv1", "trunk.convs.conv2", "pixel"))]
    assert len(frozen) == 10
    assert all(torch.equal(tuned[k], ours[k]) for k in frozen)
    status, _, err = call("train", "data=custom", f"data.root={tiny.root}", "run=other", *model, "model.fc6_rank=5")
    assert (status, "head.fc6.L.weight: missing, (5, 392) wanted" in err) == (1, True)


def test_a_caffemodel_becomes_safetensors(call: Call, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = caffemodel.write(tmp_path / "author.caffemodel", caffemodel.network("caffenet", 1 / 16, classes=2))
    arguments = ["export", f"checkpoint={path}", "format=safetensors"]
    status, _, err = call(*arguments)
    assert (status, "does not name its classes" in err) == (1, True)
    done(call, *arguments, "data.classes=[cat,dog]")
    with safetensors.safe_open("outputs/author/export/caffenet.safetensors", "np") as file:
        assert json.loads(file.metadata()["classes"]) == ["cat", "dog"]
        assert json.loads(file.metadata()["pixels"])["mean"] == pytest.approx([122.7717, 115.9465, 102.9801])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["which model? fastrcnn export checkpoint=RUN", ".caffemodel"]),
        (["checkpoint=run"], ["which format?", "caffemodel, safetensors, torchvision"]),
        (["checkpoint=run", "format=cafemodel"], ["format=cafemodel: should be one of", "Did you mean 'caffemodel'?"]),
        (
            ["checkpoint=nothing", "format=caffemodel"],
            ["there is no file or folder nothing", "a detector's .caffemodel"],
        ),
        (["checkpoint=run", "format=caffemodel", "output=x.pt"], ["output=x.pt", "ends in .caffemodel"]),
        (["checkpoint=run", "format=torchvision", "output=there.pth"], ["there.pth: is there already"]),
        (["checkpoint=run", "format=torchvision"], ["model.width: torchvision's is 1", "format=safetensors takes any"]),
        (["checkpoint=run", "format=caffemodel", "output=there.pth/x.caffemodel"], ["cannot be written"]),
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
