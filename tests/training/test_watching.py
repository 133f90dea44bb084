"""What is watched: the meter's clock, curves in TensorBoard's own files, profiles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import a_second_later, full_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from test_loop import StoppedError, dataset, run  # noqa: F401 - a fixture

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.errors import UserError
from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth, class_ap
from fastrcnn.model.loss import Losses
from fastrcnn.structures import Batch, RoITargets
from fastrcnn.training import meter as meter_module
from fastrcnn.training.meter import Meter
from fastrcnn.training.profiling import profile_steps
from fastrcnn.training.tracking import Tracker, curve_counts

NAMES = ("loss", "loss_cls", "loss_box", "lr", "grad_norm", "fg_share", "rois", "rois_fg", "accuracy_fg")
NAMES += ("steps_per_s", "images_per_s", "data_wait_share")


def test_tensorboards_curves_of_an_interrupted_run_go_on_without_a_step_twice(
    tmp_path: Path,
    dataset: DetectionDataset,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first attempt went on to step 5 after its last checkpoint, at 4; the second begins at 4."""

    def stop(step: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path / "parts", dataset, iterations=5, evaluate=stop)
    (tmp_path / "parts" / "step-5.pt").unlink()
    a_second_later(monkeypatch)
    run(tmp_path / "parts", dataset, resume=True)
    events = EventAccumulator(str(tmp_path / "parts" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{n}" for n in NAMES}
    rows = [r.split(",") for r in (tmp_path / "parts" / "metrics.csv").read_text().splitlines()[1:]]
    for name in NAMES:
        curve = [(e.step, e.value) for e in events.Scalars(f"train/{name}")]
        assert [step for step, _ in curve] == [1, 2, 3, 4, 5, 6], name
        column = [float(v) for _, n, v in rows if n == f"train/{name}"]
        assert column == pytest.approx([value for _, value in curve], rel=1e-5), name


def test_an_evaluation_that_is_done_again_has_one_row(tmp_path: Path) -> None:
    for start in (0, 6):
        tracker = Tracker(tmp_path, start)
        tracker.scalars(6, {"eval/mAP": 0.5})
        tracker.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,name,value", "6,eval/mAP,0.5"]


def test_speeds_and_the_share_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of two batches of three pictures: 1 s of waiting and 2 s of work for each batch; 50 s go by between
    the steps, in an evaluation."""
    now = 100.0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

    monkeypatch.setattr(meter_module, "time", Clock)

    def slow() -> Iterator[None]:
        nonlocal now
        for _ in range(4):
            now += 1
            yield object()  # type: ignore[misc]

    meter = Meter(accumulate=2)
    losses = Losses(torch.tensor(0.5), torch.tensor(0.25), torch.tensor(0.75))
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    targets = RoITargets(torch.tensor([1, 1, 0, 0]), torch.zeros(4, 4))
    for number, _ in enumerate(meter.time(slow()), 1):  # type: ignore[arg-type]
        now += 2
        meter.add_batch(losses, logits, targets, images=3)
        if number % 2 == 0:
            meter.add_step(torch.tensor(float(number)))
            now += 50
    found = meter.read()
    assert found == pytest.approx(
        {
            "train/loss": 0.75,
            "train/loss_cls": 0.5,
            "train/loss_box": 0.25,
            "train/accuracy_fg": 0.5,  # one of the two foreground RoIs
            "train/rois": 8,
            "train/rois_fg": 4,
            "train/fg_share": 0.5,
            "train/grad_norm": 3,
            "train/steps_per_s": 2 / 12,
            "train/images_per_s": 12 / 12,
            "train/data_wait_share": 4 / 12,
        }
    )


def a_class() -> tuple[ClassDetections, ClassTruth]:
    """Four objects, one of them difficult; by falling score: right, wrong, right, on the difficult one, wrong."""
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]], float)
    found = np.array([boxes[0], [80, 80, 90, 90], boxes[1], boxes[3], [0, 80, 9, 90]])
    truth = ClassTruth(np.zeros(4), boxes, np.array([False, False, False, True]))
    return ClassDetections(np.zeros(5), np.array([0.9, 0.8, 0.5, 0.4, 0.1]), found), truth


def test_the_curve_of_a_class_counted_by_hand() -> None:
    counts = curve_counts(class_ap(*a_class()), np.array([0.0, 0.1, 0.3, 0.5, 0.6, 0.85, 0.95]))
    right, wrong, rejected, missed, precision, recall = counts
    assert right.tolist() == [2, 2, 2, 2, 1, 1, 0]
    assert wrong.tolist() == [2, 2, 1, 1, 1, 0, 0]
    assert missed.tolist() == [1, 1, 1, 1, 2, 2, 3]
    assert rejected.tolist() == [0, 0, 1, 1, 1, 2, 2]
    np.testing.assert_allclose(precision, [1 / 2, 1 / 2, 2 / 3, 2 / 3, 1 / 2, 1, 1])
    np.testing.assert_allclose(recall, np.array([2, 2, 2, 2, 1, 1, 0]) / 3)


def test_tensorboard_holds_the_curve(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.precision_recall(7, "eval/pr/cat", class_ap(*a_class()))
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("eval/pr/cat")
    assert event.step == 7
    table = tensor_util.make_ndarray(event.tensor_proto)  # TP, FP, TN, FN, precision, recall at each threshold
    assert table.shape == (6, 127)
    assert table[:4, 76].tolist() == [1, 1, 1, 2], "at the threshold 76 / 126 = 0.603"
    assert events.summary_metadata["eval/pr/cat"].plugin_data.plugin_name == "pr_curves"


def test_a_profile_is_a_trace_of_steps_10_to_19(tmp_path: Path) -> None:
    seen = []
    with profile_steps([object()] * 60, tmp_path / "profile", accumulate=2) as batches:  # type: ignore[list-item]
        for number, batch in enumerate(batches):
            with torch.profiler.record_function(f"batch {number}"):
                torch.ones(3).add(1)
            seen.append(batch)
    assert len(seen) == 60
    trace = json.loads((tmp_path / "profile" / "steps-10-20.pt.trace.json").read_text())
    names = {str(e["name"]) for e in trace["traceEvents"] if "name" in e}
    assert {f"batch {n}" for n in range(20, 40)} == {n for n in names if n.startswith("batch ")}
    assert {"wait for data", "aten::add"} <= names
    assert "aten::add" in (tmp_path / "profile" / "steps-10-20.txt").read_text()


def test_a_profile_that_does_not_fit_is_an_error_and_nothing_of_it_stays(tmp_path: Path) -> None:
    place = tmp_path / "profile"

    def work() -> None:
        with full_disk(1000), profile_steps([object()] * 60, place) as batches:  # type: ignore[list-item]
            for _ in batches:
                torch.ones(3).add(1)

    with pytest.raises(UserError, match=r"steps-10-20\.txt: cannot be written \(File too large\)"):
        work()
    assert not list(place.iterdir())


def test_a_run_too_short_for_a_profile_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    none: list[Batch] = []
    with profile_steps(none, tmp_path / "profile") as batches:
        assert list(batches) == []
    assert "the run ended after 10 or fewer steps" in caplog.text
    assert not (tmp_path / "profile").exists()
