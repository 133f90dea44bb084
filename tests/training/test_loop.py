"""The training loop on a tiny network and pictures of a few hundred pixels."""

from __future__ import annotations

import contextlib
import csv
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from a_run import QuietRun, a_run, noisy_images

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import training_loader
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN, freeze_before
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel.signals import Stop, Stopped
from fastrcnn.settings import SolverSettings
from fastrcnn.structures import Batch
from fastrcnn.training import checkpoint
from fastrcnn.training.loop import Schedule, Step, seed_of
from fastrcnn.training.optim import learning_rate, load_state, make_optimizer

CLASSES = 2
CLOCK = ("train/steps_per_s", "train/images_per_s", "train/data_wait_share")


class StoppedError(Exception):
    """Stands for whatever ends a run before its time."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    return noisy_images(tmp_path_factory.mktemp("pictures"), Augmentation((48,), 100))


def tiny(**options: object) -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(CLASSES, **({"width": 0.03, "batch_norm": True, "roi_size": 3} | options))  # type: ignore[arg-type]


def some_sampler() -> RoISampler:
    std = torch.full((CLASSES + 1, 4), 0.2)
    return RoISampler(torch.zeros(CLASSES + 1, 4), std, SolverSettings(rois_per_image=12, bg_iou=[0.0, 0.5]))


def sha(model: FastRCNN) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def run(
    folder: Path,
    dataset: DetectionDataset,
    iterations: int = 6,
    workers: int = 0,
    resume: bool = False,
    optimizer_name: str = "caffe_sgd",
    stop_after: int | None = None,
    evaluate: Callable[[int], None] = lambda _: None,
) -> FastRCNN:
    """A run as the command line puts it together; `stop_after`: it ends by an exception after this checkpoint."""
    model = tiny()
    optimizer = make_optimizer(model, optimizer=optimizer_name)
    start = 0
    if resume:
        _, state, _ = checkpoint.newest_sound(folder)
        model.load_state_dict(state["model"])
        load_state(optimizer, state["optimizer"])
        start = state["step"]

    class Run(QuietRun):
        def save(self, step: int) -> None:
            content = self.content(step) | {"best": 0.0, "optimizer": optimizer.state_dict()}
            checkpoint.save(folder / f"step-{step}.pt", content)
            if step == stop_after:
                raise StoppedError

        def evaluate(self, step: int) -> None:
            evaluate(step)

    schedule = Schedule(
        iterations=iterations,
        rate=lambda step: learning_rate(step, iterations, 0.02, "cosine", warmup=2),
        seed=11,
        log_every=1,
        checkpoint_every=2,
        images_every=0,
    )
    found = a_run(folder, model, some_sampler(), schedule, kind=Run, optimizer=optimizer, done=start)
    try:
        found.fit(training_loader(dataset, 2, workers, start))
    finally:
        found.tracker.close()
    return model


def train_on(
    batches: Iterable[Batch],
    model: FastRCNN,
    folder: Path,
    schedule: Schedule,
    **calls: Callable[..., object],
) -> None:
    """Steps on given batches. calls: in place of the methods `save`, `evaluate`, `draw` and `stop` of the run."""
    found = a_run(folder, model, some_sampler(), schedule)
    for name, call in calls.items():
        setattr(found, name, call)
    found.fit(batches)
    found.tracker.close()


def metrics(folder: Path) -> list[tuple[int, str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(r["step"]), r["name"], float(r["value"])) for r in csv.DictReader(file)]


def series(folder: Path, name: str) -> list[float]:
    return [value for _, n, value in metrics(folder) if n == name]


def first_batch(dataset: DetectionDataset) -> Batch:
    return next(iter(training_loader(dataset, 2)))


def test_the_backward_pass_is_in_float32_too(dataset: DetectionDataset, tmp_path: Path) -> None:
    """Not in TF32, which convolutions on a GPU take by default; and the flag is as it was afterwards."""
    flag = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, seen, model = flag.fp32_precision, [], tiny()
    model.bbox_pred.weight.register_hook(lambda _: seen.append(flag.fp32_precision))
    train_on([first_batch(dataset)], model, tmp_path, constant(1, 0.01))
    assert (before, seen, flag.fp32_precision) == ("tf32", ["ieee"], "tf32")


def constant(iterations: int, rate: float, **options: float) -> Schedule:
    return replace(Schedule(iterations, lambda _: rate, log_every=1, images_every=0), **options)


def test_the_loss_falls_on_one_batch(tmp_path: Path, dataset: DetectionDataset) -> None:
    train_on([first_batch(dataset)] * 40, tiny(dropout=0.0), tmp_path, constant(40, 0.03))
    loss = series(tmp_path, "train/loss")
    assert len(loss) == 40
    assert np.mean(loss[-5:]) < 0.3 * loss[0]


@pytest.mark.parametrize("name", ["caffe_sgd", "adamw"])
def test_an_interrupted_run_that_goes_on_ends_with_the_same_bits_whatever_the_workers(
    tmp_path: Path, dataset: DetectionDataset, name: str
) -> None:
    whole = sha(run(tmp_path / "whole", dataset, optimizer_name=name))
    with pytest.raises(StoppedError):
        run(tmp_path / "parts", dataset, stop_after=4, optimizer_name=name)
    assert sha(run(tmp_path / "parts", dataset, workers=2, resume=True, optimizer_name=name)) == whole
    assert sha(run(tmp_path / "shorter", dataset, iterations=4)) != whole

    mine = [(s, n, v) for s, n, v in metrics(tmp_path / "parts") if n not in CLOCK]
    assert [s for s, n, _ in mine if n == "train/loss"] == [1, 2, 3, 4, 5, 6], "every step once, none twice"
    assert mine == [(s, n, v) for s, n, v in metrics(tmp_path / "whole") if n not in CLOCK]


def test_evaluation_in_between_changes_nothing_and_training_mode_returns(
    tmp_path: Path, dataset: DetectionDataset
) -> None:
    """An evaluation that draws random numbers and leaves the model in eval mode."""
    plain, disturbed = tiny(), tiny()
    batches = [first_batch(dataset)] * 4
    modes = []

    def evaluate(_: int) -> None:
        modes.append(disturbed.training)
        disturbed.eval()
        torch.rand(7)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    train_on(batches, plain, tmp_path / "a", constant(4, 0.02))
    train_on(batches, disturbed, tmp_path / "b", constant(4, 0.02, evaluate_every=1), evaluate=evaluate)
    assert modes == [True] * 4
    assert sha(plain) == sha(disturbed)


def test_checkpoints_evaluations_and_pictures_come_when_they_should(tmp_path: Path, dataset: DetectionDataset) -> None:
    calls: list[tuple[str, int]] = []
    schedule = constant(7, 0.0, checkpoint_every=3, evaluate_every=5, images_every=4, log_every=2)
    train_on(
        [first_batch(dataset)] * 9,
        tiny(),
        tmp_path,
        schedule,
        save=lambda step: calls.append(("save", step)),
        evaluate=lambda step: calls.append(("evaluate", step)),
        draw=lambda step: calls.append(("draw", step.done)),
    )
    assert [s for c, s in calls if c == "save"] == [3, 5, 6, 7]
    assert [s for c, s in calls if c == "evaluate"] == [5, 7]
    assert [s for c, s in calls if c == "draw"] == [1, 4]
    assert sorted({s for s, _, _ in metrics(tmp_path)}) == [2, 4, 6, 7]


@pytest.mark.parametrize(("step", "saves"), [(2, [2]), (3, [3]), (5, [3, 5]), (7, [3, 5, 6, 7])])
def test_a_run_that_is_to_end_saves_its_step_once_and_ends_unless_it_is_over(
    tmp_path: Path, dataset: DetectionDataset, step: int, saves: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    saved: list[int] = []

    class Told(Stop):
        asked = 0

        def __call__(self) -> bool:
            self.asked += 1
            return self.asked == step

    class Run(QuietRun):
        def save(self, done: int) -> None:
            saved.append(done)
            self.saved = done

    stop, schedule = Told(), constant(7, 0.0, checkpoint_every=3, evaluate_every=5)
    caplog.set_level("INFO", "fastrcnn")
    found = a_run(tmp_path, tiny(), some_sampler(), schedule, kind=Run, stop=stop)
    with pytest.raises(Stopped) if step < 7 else contextlib.nullcontext():
        found.fit([first_batch(dataset)] * 7)
    assert stop.asked == found.done == step, "once a step"
    assert saved == saves
    assert (f"step {step} is saved" in caplog.text) == (step < 7)


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_weights(
    tmp_path: Path, dataset: DetectionDataset
) -> None:
    model = tiny(batch_norm=False)
    batch = first_batch(dataset)
    seen: list[str] = []

    def spoiled() -> Iterable[Batch]:
        yield batch
        seen.append(sha(model))
        yield replace(batch, images=torch.full(batch.images.shape, float("inf")))

    with pytest.raises(UserError, match="step 1: the loss is nan") as caught:
        train_on(spoiled(), model, tmp_path, constant(3, 0.01))
    assert sha(model) == seen[0]
    assert all(s.image_id in str(caught.value) for s in batch.samples)
    assert "the learning rate of this step is 0.01" in str(caught.value)


def test_frozen_layers_do_not_move_and_the_others_do(tmp_path: Path, dataset: DetectionDataset) -> None:
    model = tiny()
    freeze_before(model, "conv3_1")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_on([first_batch(dataset)] * 3, model, tmp_path, constant(3, 0.05))
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    frozen = ("trunk.convs.conv1", "trunk.convs.conv2", "trunk.norms.conv1", "trunk.norms.conv2")
    own = ("delta_mean", "delta_std", "pixel_mean", "pixel_std")
    still = {k for k in before if k.startswith(frozen) or k in own}
    assert not moved & still
    # A convolution's bias before batch normalisation has no effect, hence no gradient to speak of.
    assert {k for k in before if k.endswith("weight")} - still <= moved


def test_batches_without_any_roi_are_survived(tmp_path: Path, dataset: DetectionDataset) -> None:
    batch = first_batch(dataset)
    none = replace(
        batch,
        proposals=[torch.zeros(0, 4)] * 2,
        boxes=[torch.zeros(0, 4)] * 2,
        labels=[torch.zeros(0, dtype=torch.long)] * 2,
    )
    train_on([none, batch], tiny(), tmp_path, constant(2, 0.01))
    assert series(tmp_path, "train/loss")[0] == 0
    assert series(tmp_path, "train/rois") == [0, 24]


def test_the_loop_hands_on_what_the_sampler_drew(tmp_path: Path, dataset: DetectionDataset) -> None:
    drawn: list[Step] = []
    batch = first_batch(dataset)
    train_on(
        [batch] * 2,
        tiny(),
        tmp_path,
        constant(2, 0.0, seed=4, images_every=1),
        draw=drawn.append,
    )
    for step, each in enumerate(drawn):
        seeds = [seed_of(4, step, 1, place) for place in range(2)]
        expected_rois, expected = some_sampler()(batch.proposals, batch.boxes, batch.labels, seeds)
        assert torch.equal(each.rois, expected_rois)
        assert torch.equal(each.targets.deltas, expected.deltas)
    assert not torch.equal(drawn[0].rois, drawn[1].rois), "another draw in the next step"


def test_the_rate_of_a_step_is_recorded(tmp_path: Path, dataset: DetectionDataset) -> None:
    schedule = Schedule(3, lambda step: 0.001 * (step + 1), log_every=1, images_every=0)
    train_on([first_batch(dataset)] * 3, tiny(), tmp_path, schedule)
    assert series(tmp_path, "train/lr") == pytest.approx([0.001, 0.002, 0.003])


def test_a_step_is_taken_at_its_own_rate(tmp_path: Path, dataset: DetectionDataset) -> None:
    model = tiny()
    before = model.cls_score.weight.detach().clone()
    schedule = Schedule(2, lambda step: 0.05 if step == 0 else 0.0, log_every=1, images_every=0)
    train_on([first_batch(dataset)] * 2, model, tmp_path, schedule)
    assert not torch.equal(model.cls_score.weight, before)


def test_a_step_is_no_longer_than_its_rate_times_the_limit(tmp_path: Path, dataset: DetectionDataset) -> None:
    """Of plain gradient descent; the record has the gradient before it is scaled."""
    model = tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, weight_decay=0.0, bias_lr_factor=1.0, optimizer="sgd")
    schedule = constant(1, 0.5, clip_gradients=0.01)
    found = a_run(tmp_path, model, some_sampler(), schedule, optimizer=optimizer)
    found.fit([first_batch(dataset)])
    found.tracker.close()
    moved = sum((p - before[name]).double().square().sum().item() for name, p in model.named_parameters())
    assert moved**0.5 == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert series(tmp_path, "train/grad_norm")[0] > 0.1


def test_what_lies_in_the_padding_of_a_batch_does_not_matter(tmp_path: Path, dataset: DetectionDataset) -> None:
    batch = first_batch(dataset)
    narrow = replace(batch, sizes=torch.tensor([[48, 64], [48, 40]]))
    dirty = batch.images.clone()
    dirty[1, :, :, 40:] = 200
    models = [tiny(), tiny()]
    for model, images in zip(models, (batch.images, dirty), strict=True):
        train_on([replace(narrow, images=images)] * 2, model, tmp_path, constant(2, 0.02))
    assert sha(models[0]) == sha(models[1])


def test_seeds_differ_for_all_numbers_and_their_order() -> None:
    seeds = {seed_of(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
    assert all(0 <= s < 2**63 for s in seeds)
    assert seed_of(1, 2) == seed_of(1, 2)
