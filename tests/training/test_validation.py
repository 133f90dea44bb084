"""The weights are chosen on the validation images, and the test images are looked at once, at the end."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import exports
import numpy as np
import pytest
import torch
from a_run import a_run, noisy_images

from fastrcnn.build import annotations
from fastrcnn.build.run import check_validation, schedule
from fastrcnn.config.schema import DataConfig, RuntimeConfig, TrainConfig
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.evaluation.evaluate import compare
from fastrcnn.evaluation.voc_ap import ClassDetections
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel.signals import Stop, Stopped
from fastrcnn.settings import DetectionSettings, Metric, SolverSettings
from fastrcnn.training import checkpoint
from fastrcnn.training import run as run_module
from fastrcnn.training.loop import Schedule
from fastrcnn.training.run import Settings, TrainingRun
from fastrcnn.training.tracking import Silent

PLAIN = Augmentation((48,), 100, flip=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    return noisy_images(tmp_path_factory.mktemp("images"), PLAIN, (0, 48))


class Evaluations:
    """Stands for `evaluate`: the mAP of each evaluation is given, and what was evaluated is kept."""

    def __init__(self, *values: float) -> None:
        self.values = iter(values)
        self.seen: list[tuple[int, torch.Tensor]] = []  # number of images, and a layer's weights

    def __call__(self, network: Any, pyramids: Any, images: int, *_: Any) -> Any:
        self.seen.append((images, network.model.cls_score.weight.detach().clone()))
        ap = SimpleNamespace(mean=next(self.values), classes={}, figures={}, ap={})
        return SimpleNamespace(ap=ap, curves=dict)


def train(
    folder: Path,
    images: DetectionDataset,
    val: int,
    steps: int,
    patience: int = 0,
    stop: Stop | None = None,
    stop_after: int = 0,
) -> TrainingRun:
    """A run on five images that evaluates every second step, on `val` of them, and at the end on three; resumed where
    the folder has a checkpoint."""
    torch.manual_seed(0)
    model = FastRCNN(2, width=0.03, roi_size=3, dropout=0.0)
    settings = SolverSettings(rois_per_image=12, bg_iou=[0.0, 0.5])

    class Run(TrainingRun):
        def finish_step(self) -> bool:
            return super().finish_step() or self.done == stop_after

    def first(number: int) -> DetectionDataset | None:
        return DetectionDataset(images.samples[:number], images.proposals, PLAIN) if number else None

    config = TrainConfig(data=DataConfig(val=["val"] if val else []))
    made = a_run(
        folder,
        model,
        RoISampler(torch.zeros(3, 4), torch.full((3, 4), 0.2), settings),
        Schedule(steps, lambda _: 0.02, 11, images_every=0, evaluate_every=2),
        images,
        kind=Run,
        begun=folder.is_dir(),
        resumed=(folder / "checkpoints").is_dir(),
        names=["a", "b"],
        config=asdict(config),
        val_set=first(val),
        test_set=first(3),
        settings=Settings(DetectionSettings(), "voc07", patience=patience),
        stop=stop or Stop(),
        tracker=Silent(),  # until the run opens its own
    )
    made.run()
    return made


def rows(folder: Path, name: str) -> list[tuple[int, float]]:
    """What metrics.csv has of a number."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [(int(step), float(value)) for step, own, value in lines if own == name]


def test_the_best_on_the_validation_images_are_tested_once(
    tmp_path: Path, images: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mAP .2, .5, .3 and .4 on two validation images after steps 2, 4, 6 and 8; then .45 on the three test images."""
    evaluations = Evaluations(0.2, 0.5, 0.3, 0.4, 0.45)
    monkeypatch.setattr(run_module, "evaluate", evaluations)
    made = train(tmp_path / "run", images, val=2, steps=8)
    assert [n for n, _ in evaluations.seen] == [2, 2, 2, 2, 3]
    weights = [w for _, w in evaluations.seen]
    assert torch.equal(weights[4], weights[1])
    assert not torch.equal(weights[4], weights[3])
    best = checkpoint.load(tmp_path / "run/checkpoints/best.pt")
    assert (best["step"], best["best"]) == (4, 0.5)
    assert torch.equal(best["model"]["cls_score.weight"], weights[1])
    assert made.outcome is not None
    assert (made.outcome.ap.mean, made.best) == (0.45, 0.5)
    assert rows(tmp_path / "run", "eval/mAP") == [(2, 0.2), (4, 0.5), (6, 0.3), (8, 0.4)]
    assert rows(tmp_path / "run", "test/mAP") == [(8, 0.45)]


@pytest.mark.parametrize("metric", ["voc07", "voc10", "coco"])
def test_the_threshold_to_draw_with_is_kept_whatever_the_metric(
    tmp_path: Path, images: DetectionDataset, metric: Metric
) -> None:
    """Of two objects one is found at .9 and one at .4, and two detections at .6 and .2 are wrong. F1 after each: 2/3,
    2/4, 4/5, 4/6; so it is halfway from .4 to .2."""
    samples = [s for s in images.samples if s.labels.tolist() == [1]][:2]
    right = [s.boxes[0].astype(np.float64) for s in samples]
    wrong = np.array([60.0, 44, 64, 48])
    boxes, scores = np.stack([right[0], right[1], wrong, wrong]), np.array([0.9, 0.4, 0.6, 0.2])
    detections = {"a": ClassDetections(np.array([0, 1, 0, 1]), scores, boxes)}
    made = a_run(tmp_path, FastRCNN(1, width=0.03, roi_size=3), None, Schedule(2, lambda _: 0.0))  # type: ignore[arg-type]
    made.record(2, compare(detections, samples, ["a"], metric))
    made.tracker.close()
    best = checkpoint.load(tmp_path / "checkpoints/best.pt")
    assert best["record"]["draw_threshold"] == pytest.approx(0.3)


def test_without_validation_images_nothing_is_chosen_by_the_test_images(
    tmp_path: Path, images: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "evaluate", Evaluations(0.9, 0.1))
    train(tmp_path / "run", images, val=0, steps=4)
    best = checkpoint.load(tmp_path / "run/checkpoints/best.pt")
    assert (best["step"], best["best"]) == (4, 0.1)


def test_training_ends_when_it_no_longer_gains_and_stays_over(
    tmp_path: Path, images: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """.5 after step 4, and twice no more: it ends after step 8 of 20."""
    evaluations = Evaluations(0.2, 0.5, 0.5, 0.4, 0.45)
    monkeypatch.setattr(run_module, "evaluate", evaluations)
    made = train(tmp_path / "run", images, val=2, steps=20, patience=2)
    assert (made.done, [n for n, _ in evaluations.seen]) == (8, [2, 2, 2, 2, 3])
    again = Evaluations(0.45)  # resumed, it is tested again, for its report
    monkeypatch.setattr(run_module, "evaluate", again)
    made = train(tmp_path / "run", images, val=2, steps=20, patience=2)
    assert (made.done, [n for n, _ in again.seen]) == (8, [3])
    assert torch.equal(again.seen[0][1], evaluations.seen[1][1])


@pytest.mark.parametrize("stop_after", [3, 5, 6])
def test_a_resumed_run_counts_on(
    tmp_path: Path, images: DetectionDataset, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(run_module, "evaluate", Evaluations(0.5, 0.4, 0.3, 0.3, 0.45))
    with pytest.raises(Stopped):
        train(tmp_path / "run", images, val=2, steps=20, patience=3, stop_after=stop_after)
    made = train(tmp_path / "run", images, val=2, steps=20, patience=3)
    assert (made.done, made.best_step, made.best) == (8, 2, 0.5)


def test_the_last_weights_are_tested_where_the_best_are_lost(
    tmp_path: Path, images: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "evaluate", Evaluations(0.5, 0.4, 0.45))
    train(tmp_path / "run", images, val=2, steps=4)
    (tmp_path / "run/checkpoints/best.pt").unlink()
    again = Evaluations(0.3)
    monkeypatch.setattr(run_module, "evaluate", again)
    made = train(tmp_path / "run", images, val=2, steps=4)
    assert [n for n, _ in again.seen] == [3]
    last = checkpoint.load(tmp_path / "run/checkpoints/step-4.pt")["model"]["cls_score.weight"]
    assert torch.equal(again.seen[0][1], last)
    assert made.best == -1.0


def test_a_run_ends_in_time_and_can_be_resumed(
    tmp_path: Path, images: DetectionDataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fastrcnn")
    stop = Stop()
    stop.most_seconds = 0.0
    with pytest.raises(Stopped) as ended:
        train(tmp_path / "run", images, val=0, steps=4, stop=stop)
    assert ended.value.status == 75
    assert (tmp_path / "run/checkpoints/step-1.pt").is_file()
    log = (tmp_path / "run/train.log").read_text()
    assert "ended by runtime.max_hours: step 1 is saved. To resume: " in log
    assert train(tmp_path / "run", images, val=0, steps=4).done == 4


@pytest.mark.parametrize(
    ("export", "found"),
    [
        (exports.roboflow_yolo, ["val"]),
        (exports.ultralytics, ["val"]),
        (exports.coco, ["val"]),
        (exports.tensorflow_csv, ["val"]),
        (exports.cvat_images, ["val"]),
        (exports.labelimg_yolo, []),
        (exports.voc_of_other_names, []),
    ],
    ids=lambda x: x.__name__ if callable(x) else None,
)
def test_the_validation_split_of_a_data_set_is_found(tmp_path: Path, export: Any, found: list[str]) -> None:
    root = tmp_path / "set"
    export(root)
    config = DataConfig(root=str(root), val=None)
    assert annotations.validation_splits(config) == found
    assert annotations.validation_splits(DataConfig(root=str(root))) == []
    if export is exports.roboflow_yolo:  # its images would be tested on
        assert annotations.validation_splits(DataConfig(root=str(root), val=None, test=["val"])) == []


def test_a_tenth_of_the_steps_lies_between_evaluations_on_validation_images() -> None:
    def every(**given: Any) -> int:
        config = TrainConfig(data=DataConfig(val=given.pop("val")), runtime=RuntimeConfig(**given))
        config.solver.iterations = 1234
        return schedule(config).evaluate_every

    assert every(val=["val"]) == 123
    assert every(val=[]) == 0
    assert every(val=["val"], evaluate_every=0) == 0
    assert every(val=[], evaluate_every=50) == 50


def test_patience_needs_validation_images_and_evaluations() -> None:
    config = TrainConfig()
    config.solver.patience = 3
    with pytest.raises(
        UserError, match=r"solver\.patience=3: early stopping needs a validation split.*data\.val=\[SPLIT\]"
    ):
        check_validation(config)
    config.data.val = ["val"]
    check_validation(config)
    config.runtime.evaluate_every = 0
    with pytest.raises(UserError, match=r"runtime\.evaluate_every=0 turns them off"):
        check_validation(config)
