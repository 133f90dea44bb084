"""A TrainingRun of given parts, without a configuration, and images for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.transforms import Augmentation
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel.signals import Stop
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Sample
from fastrcnn.training.loop import Schedule
from fastrcnn.training.optim import make_optimizer
from fastrcnn.training.run import Settings, TrainingRun
from fastrcnn.training.tracking import Tracker


class QuietRun(TrainingRun):
    """A run that draws nothing, evaluates nothing and saves nothing."""

    def save(self, step: int) -> None:
        self.saved = step

    def evaluate(self, step: int) -> None: ...

    def draw(self, step: Any) -> None: ...


def noisy_images(
    folder: Path, augmentation: Augmentation, within: tuple[float, float] = (-np.inf, np.inf)
) -> DetectionDataset:
    """Five noisy images of 64 x 48, each with a bright rectangle of one class or a dark one of the other.

    within: limits of the coordinates of proposals.
    """
    rng = np.random.default_rng(0)
    samples, proposals = [], {}
    for i in range(5):
        image = rng.integers(90, 160, (48, 64, 3), dtype=np.uint8)
        x, y = rng.integers(2, 20, 2)
        image[y : y + 24, x : x + 30] = 250 if i % 2 else 5
        cv2.imwrite(str(folder / f"{i}.png"), image)
        box = np.array([[x, y, x + 30, y + 24]], np.float32)
        samples.append(Sample(str(i), folder / f"{i}.png", 64, 48, box, np.array([1 + i % 2]), np.zeros(1, dtype=bool)))
        near = box + rng.uniform(-4, 4, (12, 4))
        far = box * 0.4 + rng.uniform(0, 12, (20, 4))
        proposals[str(i)] = np.concatenate((near, far)).astype(np.float32).clip(*within)
    return DetectionDataset(samples, proposals.__getitem__, augmentation, seed=3)


def a_run(
    folder: Path,
    model: FastRCNN,
    sampler: RoISampler,
    schedule: Schedule,
    dataset: DetectionDataset | None = None,
    kind: type[TrainingRun] = QuietRun,
    **options: Any,
) -> TrainingRun:
    """A new run in the folder, its records open, on batches or on a data set; options: of TrainingRun."""
    folder.mkdir(exist_ok=True)
    settings = {
        "begun": False,
        "resumed": False,
        "started": False,
        "config": {},
        "check": lambda _, content: content,
        "names": ["a"],
        "optimizer": make_optimizer(model),
        "train_set": dataset or DetectionDataset([], lambda _: np.zeros((0, 4), np.float32), Augmentation()),
        "val_set": None,
        "test_set": None,
        "settings": Settings(DetectionSettings(), "voc07"),
        "stop": Stop(),
    } | options
    if "tracker" not in settings:
        settings["tracker"] = Tracker(folder, settings.get("done", 0))
    return kind(folder=folder, model=model, sampler=sampler, schedule=schedule, **settings)
