"""A training that starts with a run of other classes, and the scale of maps from the first step to every format."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch
from small_run import SETTINGS
from torch import Tensor

from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.training import checkpoint
from fastrcnn.weights.classes import for_classes

Call = Callable[..., tuple[int, str, str]]
OLD = ["circle", "cross", "square", "star", "triangle"]
SHAPE = [s for s in SETTINGS if not s.startswith(("model.", "solver.it"))]
ONE = "model.roi_features=[conv5_3]"  # the run has three maps


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a demo data set; `run`, a run on it; and the same images with other names of two classes."""
    folder = small_run.make(tmp_path_factory.mktemp("made"), "solver.iterations=2", "data.test=[]")
    shutil.copytree(folder / "data/demo", folder / "data/other")
    for path in (folder / "data/other/Annotations").iterdir():
        path.write_text(path.read_text().replace(">circle<", ">ball<").replace(">cross<", ">plus<"))
    return folder


@pytest.fixture
def train(call: Call, made: Path) -> Callable[..., tuple[int, str]]:
    """Trains for a step of no size in an empty folder, with the run's checkpoints in `run`."""
    small_run.copy(made, Path.cwd())

    def run(data: str, *arguments: str) -> tuple[int, str]:
        few = ["solver.iterations=1", "solver.lr=1e-12", "solver.warmup=0", "data.test=[]"]
        given = [*SHAPE, f"data.root={made / 'data' / data}", *few, *arguments]
        status, _, err = call("train", "run=new", *given)
        return status, err

    return run


def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    old = checkpoint.load(checkpoint.resolve(Path("run")))["model"]
    return old, checkpoint.load(Path("new/checkpoints/step-1.pt"))["model"]


def rows(state: dict[str, Tensor], label: int) -> list[Tensor]:
    box = slice(4 * label, 4 * label + 4)
    outputs = [state["cls_score.weight"][label], state["cls_score.bias"][label]]
    outputs += [state["bbox_pred.weight"][box], state["bbox_pred.bias"][box]]
    return [*outputs, state["delta_mean"][label], state["delta_std"][label]]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-5, atol=1e-8) for x, y in zip(a, b, strict=True))


def test_shared_classes_keep_their_outputs_at_their_new_places(
    train: Callable[..., tuple[int, str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastrcnn")
    names = ["triangle", "ball", "plus", "square", "star"]
    status, err = train("other", "start=run", f"data.classes=[{','.join(names)}]")
    assert status == 0, err
    old, new = states()
    for name in ("triangle", "square", "star"):
        assert same(rows(new, names.index(name) + 1), rows(old, OLD.index(name) + 1)), name
    assert same(rows(new, 0), rows(old, 0))
    assert all(torch.allclose(v, old[k], atol=1e-8) for k, v in new.items() if k.startswith(("trunk.convs", "head")))
    for label in (2, 3):
        assert new["cls_score.weight"][label].std() == pytest.approx(0.01, rel=0.3)
        assert new["bbox_pred.weight"][4 * label : 4 * label + 4].std() == pytest.approx(0.001, rel=0.3)
        assert (new["delta_std"][label] < 0.9).all(), "of this training set"
    kept = "Output weights copied: triangle, square, star; newly initialised: ball, plus; not used: "
    assert f"run was trained on different classes, or in a different order. {kept}circle, cross" in caplog.text
    status, err = train("other", "resume=auto", "solver.iterations=2")
    assert status == 0, err
    assert checkpoint.load(Path("new/checkpoints/step-2.pt"))["classes"] == names


def test_the_same_classes_in_another_order_move(train: Callable[..., tuple[int, str]]) -> None:
    status, err = train("demo", "start=run", f"data.classes=[{','.join(reversed(OLD))}]")
    assert status == 0, err
    old, new = states()
    assert all(same(rows(new, 6 - label), rows(old, label)) for label in range(1, 6))


def test_without_a_shared_class_all_outputs_begin_anew(
    train: Callable[..., tuple[int, str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastrcnn")
    status, err = train("other", "start=run", "data.classes=[ball,plus]", "data.other_classes=leave_out")
    assert status == 0, err
    _, new = states()
    assert new["cls_score.weight"].abs().max() < 0.06
    assert new["bbox_pred.bias"].abs().max() < 1e-6, "and predict the mean of this training set"
    assert (new["delta_std"][1:] < 0.9).all()
    assert "Output weights copied: none;" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["start=run"], "start=run: this checkpoint was trained on the classes circle, cross, square, star, "
         "triangle, but the data set also has ball, plus. Set the classes to train, for example "
         "data.classes=[ball,plus,square,star,triangle]. "),
        (["start=run", "data.classes=[ball,star]", "data.other_classes=leave_out", "model.finetune_from=bbox_pred"],
         "model.finetune_from=bbox_pred: start=run does not have the classes ball. Their weights in cls_score "),
        (["start=run", "data.other_classes=leave_out", "model.head=[9,9]"],
         "start=run: the checkpoint has a different model. Remove the keys model and model.*. To load only the layers "
         "that fit, set model.weights=run instead of start."),
        (["model=vgg16_slim", "model.width=0.05", "model.weights=run", "model.head=[9,205]", "model.finetune_from=fc7"],
         "model.finetune_from=fc7: fc6 would be frozen at random initial weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_says_what_to_do(
    arguments: list[str], said: str, train: Callable[..., tuple[int, str]]
) -> None:
    status, err = train("other", *arguments)
    assert status == 1
    assert said in err
    assert "Traceback" not in err
    assert not Path("new").exists()


def test_weights_of_a_run_for_other_classes(
    train: Callable[..., tuple[int, str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastrcnn")
    status, err = train("other", "model=vgg16_slim", "model.width=0.05", "model.weights=run")
    assert status == 0, err
    old, new = states()
    assert all(torch.allclose(v, old[k], atol=1e-8) for k, v in new.items() if k.startswith(("trunk.convs", "head")))
    assert (new["delta_std"][1:] < 0.9).all()
    assert "loaded: conv1_1 to conv5_3, reduce, fc6, fc7; initialised: cls_score, bbox_pred" in caplog.text
    assert "map_scale" not in new


def test_a_scale_is_measured_once_and_stays_with_the_run(
    train: Callable[..., tuple[int, str]], call: Call, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastrcnn")
    new_head = ["model=vgg16_slim", "model.width=0.05", "model.weights=run", "model.head=[16,12]", ONE]
    status, err = train("demo", *new_head, "model.finetune_from=fc6")
    assert status == 0, err
    content = checkpoint.load(Path("new/checkpoints/step-1.pt"))
    assert content["config"]["model"]["scale_maps"] is True
    scale = content["model"]["map_scale"]
    assert scale.shape == (1,)
    assert caplog.text.count("multiplied by") == 1
    status, err = train("demo", "resume=auto", "solver.iterations=2")
    assert status == 0, err
    shutil.move("new", "first")
    status, err = train("other", "start=first", ONE, "data.classes=[ball]", "data.other_classes=leave_out")
    assert status == 0, err
    assert caplog.text.count("multiplied by") == 1
    later = checkpoint.load(Path("new/checkpoints/step-1.pt"))["model"]
    assert torch.equal(later["map_scale"], scale)
    status, _, err = call("eval", "checkpoint=first", "data.test=[test]", f"data.root={made / 'data/demo'}")
    assert status == 0, err


def test_class_agnostic_boxes_and_their_statistics_serve_all_classes() -> None:
    """By hand: labels 1 and 2 become 2 and none; label 1 is new."""
    old, new = (FastRCNN(n, width=0.02, roi_size=1, class_agnostic=True) for n in (2, 2))
    old.delta_std.fill_(0.2)
    old.cls_score.bias.data.copy_(torch.tensor([5.0, 6, 7]))
    state = for_classes(old.state_dict(), ["a", "b"], new.state_dict(), ["c", "a"])
    assert state["cls_score.bias"].tolist() == [5, 0, 6]
    assert torch.equal(state["bbox_pred.weight"], old.bbox_pred.weight)
    np.testing.assert_allclose(state["delta_std"], 0.2)
    new.load_state_dict(state)
