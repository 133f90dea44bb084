"""A TrainingRun of given parts, without a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.transforms import Augmentation
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel.signals import Stop
from fastrcnn.settings import DetectionSettings
from fastrcnn.training.loop import Schedule
from fastrcnn.training.optim import sgd
from fastrcnn.training.run import Settings, TrainingRun
from fastrcnn.training.tracking import Tracker


class QuietRun(TrainingRun):
    """A run that draws nothing, evaluates nothing and saves nothing."""

    def save(self, step: int) -> None:
        self.saved = step

    def evaluate(self, step: int) -> None: ...

    def draw(self, step: Any) -> None: ...


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
        "optimizer": sgd(model),
        "train_set": dataset or DetectionDataset([], lambda _: np.zeros((0, 4), np.float32), Augmentation()),
        "test_set": None,
        "settings": Settings(DetectionSettings(), "voc07"),
        "stop": Stop(),
    } | options
    if "tracker" not in settings:
        settings["tracker"] = Tracker(folder, settings.get("done", 0))
    return kind(folder=folder, model=model, sampler=sampler, schedule=schedule, **settings)
