"""Several batches in a step: the gradient of one large batch, and the random numbers and pictures of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from a_run import a_run
from test_loop import CLASSES, metrics, some_sampler

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import training_loader
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.structures import Batch, Sample
from fastrcnn.training import checkpoint
from fastrcnn.training.loop import Schedule


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    """Seven pictures of one size, each with RoIs enough of both kinds."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    samples, proposals = [], {}
    for i in range(7):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        box = np.array([[10, 8, 44, 36]], np.float32)
        samples.append(Sample(str(i), folder / f"{i}.png", 64, 48, box, np.array([1 + i % 2]), np.zeros(1, dtype=bool)))
        near = box + rng.uniform(-4, 4, (12, 4))
        far = box * 0.4 + rng.uniform(0, 12, (20, 4))
        proposals[str(i)] = np.concatenate((near, far)).astype(np.float32)
    return DetectionDataset(samples, proposals.__getitem__, Augmentation((48,), 100), seed=3)


def trained(folder: Path, batches: Iterable[Batch], accumulate: int, iterations: int = 1) -> FastRCNN:
    """A network without batch normalisation and dropout, in double precision, after so many steps; its gradients are
    those of the last."""
    torch.manual_seed(0)
    model = FastRCNN(CLASSES, width=0.03, roi_size=3, dropout=0.0).double()
    plan = Schedule(iterations, lambda _: 0.01, 5, log_every=1, images_every=0, accumulate=accumulate)
    run = a_run(folder, model, some_sampler(), plan)
    run.fit(batches)
    run.tracker.close()
    return model


def gradients(model: FastRCNN) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_two_batches_of_two_give_the_gradient_of_one_of_four(tmp_path: Path, dataset: DetectionDataset) -> None:
    whole = trained(tmp_path / "whole", training_loader(dataset, 4), 1, iterations=3)
    parts = trained(tmp_path / "parts", training_loader(dataset, 2), 2, iterations=3)
    expected, found = gradients(whole), gradients(parts)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3, "there is something to compare"
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-6, atol=1e-9)

    one, other = ({(s, n): v for s, n, v in metrics(tmp_path / name)} for name in ("whole", "parts"))
    for name in ("loss", "loss_cls", "loss_box", "rois", "rois_fg", "fg_share", "grad_norm", "accuracy_fg"):
        for step in (1, 2, 3):
            assert other[step, f"train/{name}"] == pytest.approx(one[step, f"train/{name}"], rel=1e-5), (name, step)
    assert one[1, "train/rois"] == 48


def test_a_steps_loss_is_the_mean_of_its_batches_each_by_its_own_rois(
    tmp_path: Path, dataset: DetectionDataset
) -> None:
    """A batch of two RoIs weighs as much as one of 24."""
    many, other = islice(training_loader(dataset, 2), 2)
    few = replace(other, proposals=[p[:0] for p in other.proposals])  # the truth alone: nothing to draw
    alone = [gradients(trained(tmp_path / "alone", [batch], 1)) for batch in (many, few)]
    found = gradients(trained(tmp_path / "both", [many, few], 2))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, (alone[0][name] + alone[1][name]) / 2, rtol=1e-6, atol=1e-9)
    rows = {n: v for _, n, v in metrics(tmp_path / "both")}
    assert rows["train/rois"] == 26
    norm = sum(float(g.square().sum()) for g in found.values()) ** 0.5
    assert rows["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert rows["train/fg_share"] == pytest.approx((6 + 2) / 26)


def test_a_broken_batch_in_the_middle_of_a_step_leaves_the_weights(tmp_path: Path, dataset: DetectionDataset) -> None:
    sound = next(iter(training_loader(dataset, 2)))
    spoiled = replace(sound, images=torch.full(sound.images.shape, float("inf")))
    model = FastRCNN(CLASSES, width=0.03, roi_size=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = Schedule(1, lambda _: 0.01, 5, images_every=0, accumulate=2)
    with pytest.raises(UserError, match=r"step 0: the loss is nan[^\0]*fastrcnn replay .*failed-step-0\.pt"):
        a_run(tmp_path, model, some_sampler(), plan).fit([sound, spoiled])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    kept = checkpoint.load(tmp_path / "failed-step-0.pt")
    assert (kept["step"], bool(kept["images"].isinf().any())) == (0, True)
