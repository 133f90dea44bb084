"""`fastrcnn.load`: the library in three lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import caffemodel
import cv2
import hydra
import numpy as np
import pytest
import slim_run
import torch
from hydra.core.global_hydra import GlobalHydra

import fastrcnn
from fastrcnn.cli import main
from fastrcnn.errors import UserError
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.training import checkpoint

PLAIN = {"device": "cpu", "precision": "float32"}
BOXES = np.array([[2, 3, 40, 30], [20, 10, 60, 44], [0, 0, 64, 48]], np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slim_run.save(Path("nowhere"), tmp_path_factory.mktemp("api") / "run")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_importing_costs_nothing_and_unknown_names_are_unknown() -> None:
    code = "import sys, fastrcnn; print(sorted({'torch', 'numpy', 'hydra'} & set(sys.modules)), fastrcnn.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {fastrcnn.__version__}"
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        fastrcnn.lod  # noqa: B018


def test_a_run_and_its_checkpoint_are_the_same_detector(run: Path, image: np.ndarray) -> None:
    model = fastrcnn.load(run, **PLAIN, score_threshold=0.01)
    assert model.classes == ("cat", "dog")
    found = model.detect(image, BOXES)
    assert len(found) > 1
    again = fastrcnn.load(str(run / "checkpoints" / "best.pt"), **PLAIN, score_threshold=0.01).detect(image, BOXES)
    assert torch.equal(found.boxes, again.boxes)
    best = float(found.scores[0])
    fewer = fastrcnn.load(run, **PLAIN, score_threshold=best, max_per_image=1, nms_iou=0.5)
    assert len(fewer.detect(image, BOXES)) == 1
    assert fewer.settings.nms_iou == 0.5
    assert (
        len(fastrcnn.load(run, **PLAIN, score_threshold=None, max_per_image=None, nms_iou=1).detect(image, BOXES)) == 6
    )


def test_weights_are_kept_in_the_precision_that_is_detected_in(run: Path) -> None:
    for precision in ("float32", "bfloat16"):
        network = fastrcnn.load(run, device="cpu", precision=precision).network
        assert isinstance(network, TorchNetwork)
        assert network.model.head.fc7.weight.dtype == getattr(torch, precision)


def test_the_threads_of_the_training_are_not_those_of_the_process(run: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    content = checkpoint.load(run / "checkpoints" / "best.pt")
    content["config"]["runtime"] = {"threads": threads + 1}
    checkpoint.save(tmp_path / "x.pt", content)
    fastrcnn.load(tmp_path / "x.pt", **PLAIN)
    assert torch.get_num_threads() == threads


def test_a_caller_that_uses_hydra_keeps_its_own(run: Path, image: np.ndarray, tmp_path: Path) -> None:
    """Inside an initialised Hydra a detector loads and detects, and Hydra is initialised as before."""
    (tmp_path / "own.yaml").write_text("a: 1\n")
    assert not GlobalHydra.instance().is_initialized()
    fastrcnn.load(run, **PLAIN)
    assert not GlobalHydra.instance().is_initialized()
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        fastrcnn.load(run, **PLAIN).detect(image, BOXES)
        assert GlobalHydra.instance().hydra is before
        assert hydra.compose("own") == {"a": 1}


@pytest.mark.parametrize("flags", [("tf32", "tf32"), ("none", "none"), ("tf32", "ieee"), ("ieee", "none")])
def test_the_flags_of_cudnn_are_float32s_while_it_detects_and_the_callers_afterwards(
    run: Path, image: np.ndarray, flags: tuple[str, str]
) -> None:
    cudnn = torch.backends.cudnn
    seen: list[str] = []

    def now() -> tuple[str, str]:
        return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision  # type: ignore[attr-defined]

    cudnn.allow_tf32 = flags == ("tf32", "tf32")  # as torch has it: the old flag says what the two do, or they differ
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = flags  # type: ignore[attr-defined]
    try:
        detector = fastrcnn.load(run, **PLAIN)
        assert now() == flags
        assert isinstance(detector.network, TorchNetwork)
        detector.network.model.trunk.register_forward_hook(lambda *_: seen.append(now()[0]))
        detector.detect(image, BOXES)
        assert seen == ["ieee"]
        assert now() == flags
    finally:
        cudnn.allow_tf32 = True


@pytest.fixture
def defaults() -> Iterator[None]:
    """Puts torch's defaults back."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.bfloat16),
        lambda: torch.set_default_device("meta"),  # nothing can be read from a tensor there
    ],
    ids=["float64", "bfloat16", "meta"],
)
def test_torchs_defaults_change_no_detection(
    run: Path, image: np.ndarray, when: str, change: Callable[[], None]
) -> None:
    expected = fastrcnn.load(run, **PLAIN, score_threshold=0.01).detect(image, BOXES)
    assert len(expected) > 1
    if when == "before":
        change()
    detector = fastrcnn.load(run, **PLAIN, score_threshold=0.01)
    change()
    found = detector.detect(image, BOXES)
    for field in ("boxes", "scores", "labels"):
        one, other = getattr(found, field), getattr(expected, field)
        assert one.dtype == other.dtype
        assert one.device == other.device
        assert torch.equal(one, other)


def test_an_onnx_file_is_the_same_detector_again(
    run: Path, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "a.onnx"
    assert main(["export", f"checkpoint={run}", "format=onnx", f"output={file}", "detection.score_threshold=0.02"]) == 0
    by_torch = fastrcnn.load(run, **PLAIN, score_threshold=0.02).detect(image, BOXES)
    monkeypatch.setattr(FastRCNN, "__init__", None)  # it does without
    model = fastrcnn.load(file, device="cpu")
    assert repr(model) == "Detector(2 classes: cat, dog; OnnxNetwork on cpu)"
    found = model.detect(image, BOXES)
    assert found.names == by_torch.names
    assert len(found) > 1
    torch.testing.assert_close(found.boxes, by_torch.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, by_torch.scores, rtol=0, atol=1e-5)


def test_a_file_in_half_precision_is_the_network_that_its_tensors_make_by_hand(
    run: Path, image: np.ndarray, tmp_path: Path
) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    file = tmp_path / "a.safetensors"
    assert main(["export", f"checkpoint={run}", "format=safetensors", "precision=float16", f"output={file}"]) == 0
    model = FastRCNN(2, width=slim_run.WIDTH).eval()
    model.load_state_dict(load_file(file))
    scale = 600 / 48
    large = cv2.resize(image, None, fx=scale, fy=scale)
    rois = torch.from_numpy(np.concatenate((np.zeros((3, 1), np.float32), BOXES), axis=1))
    with torch.no_grad():
        logits, deltas = model(torch.from_numpy(large).permute(2, 0, 1)[None], rois, scales=torch.tensor([scale]))
    scores = torch.softmax(logits.double(), dim=1).numpy()
    moves = (deltas * model.delta_std + model.delta_mean).double().numpy()
    size, centre = BOXES[:, 2:] - BOXES[:, :2], (BOXES[:, 2:] + BOXES[:, :2]) / 2
    rows = []
    for label in (1, 2):
        middle, sides = centre + moves[:, label, :2] * size, np.exp(moves[:, label, 2:]) * size
        corners = np.concatenate((middle - sides / 2, middle + sides / 2), axis=1).clip(0, [64, 48, 64, 48])
        rows += [(scores[k, label], label, *corners[k]) for k in range(3)]
    detector = fastrcnn.load(file, **PLAIN, score_threshold=None, max_per_image=None, nms_iou=1)
    assert detector.classes == ("cat", "dog")
    found = detector.detect(image, BOXES)
    ours = [(float(s), int(n), *b.tolist()) for b, s, n in zip(found.boxes, found.scores, found.labels, strict=True)]
    np.testing.assert_allclose(np.array(ours), np.array(sorted(rows, reverse=True)), rtol=0, atol=1e-4)


def test_a_caffemodel_needs_its_classes(tmp_path: Path, image: np.ndarray) -> None:
    path = caffemodel.write(tmp_path / "author.caffemodel", caffemodel.network("caffenet", 1 / 16, classes=2))
    with pytest.raises(UserError, match="does not contain class names"):
        fastrcnn.load(path)
    model = fastrcnn.load(path, classes=["cat", "dog"], **PLAIN, score_threshold=0)
    assert set(model.detect(image, BOXES).names) == {"cat", "dog"}


@pytest.mark.parametrize(
    ("source", "options", "error", "said"),
    [
        ("gone", {}, UserError, "gone does not exist"),
        (None, {"scorethreshold": 1}, TypeError, "argument 'scorethreshold'. Did you mean 'score_threshold'?"),
        (None, {"score_threshold": 2}, UserError, "detection.score_threshold=2: must be from 0 to 1"),
        (None, {"nms_iou": -1}, UserError, "detection.nms_iou=-1: must be at least 0"),
        (None, {"device": "gpu"}, UserError, "runtime.device=gpu: must be auto, cpu, cuda"),
    ],
)
def test_mistakes_are_one_message(
    run: Path, source: str | None, options: dict, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as raised:
        fastrcnn.load(source or run, **options)
    assert said in str(raised.value)
