"""What a training carries from step to step for the files in its folder: checkpoints, evaluations, pictures."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.cli.compose import to_dict
from fastrcnn.config import TrainConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    import torch

    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.evaluation.evaluate import Evaluation
    from fastrcnn.evaluation.metric import Metric
    from fastrcnn.inference import DetectionSettings
    from fastrcnn.model.fast_rcnn import FastRCNN
    from fastrcnn.structures import Batch, RoITargets
    from fastrcnn.training.tracking import Tracker

log = logging.getLogger("fastrcnn")


def load_newest(
    checkpoints: Path, model: FastRCNN, optimizer: torch.optim.Optimizer, names: list[str]
) -> tuple[int, float]:
    """Puts the newest sound checkpoint into model and optimiser; returns its step and the best mAP so far.

    Raises UserError where there is none, or it is of another model or of other classes.
    """
    from fastrcnn.training import checkpoint

    path, state, refused = checkpoint.newest_sound(checkpoints)
    for reason in refused:
        log.warning("passed over: %s", reason)
    if state["classes"] != names:
        raise UserError(f"{path}: was trained on other classes ({', '.join(state['classes'])}).")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: was trained with another model; go on with the same model.* keys.\n{error}") from None
    optimizer.load_state_dict(state["optimizer"])
    log.info("going on from %s", path)
    best = state["best"]
    if (checkpoints / "best.pt").is_file():  # written by an evaluation that came after the checkpoint
        best = max(best, checkpoint.load(checkpoints / "best.pt")["best"])
    return state["step"], best


@dataclass
class RunState:
    """What the loop's callbacks need to write checkpoints, evaluations and pictures into the run's folder."""

    config: TrainConfig
    folder: Path
    names: list[str]
    model: FastRCNN
    optimizer: torch.optim.Optimizer
    tracker: Tracker
    best: float  # mAP
    outcome: Evaluation | None = None  # the last one

    def content(self, step: int) -> dict[str, Any]:
        """What every checkpoint holds."""
        return {
            "step": step,
            "best": self.best,
            "classes": self.names,
            "config": to_dict(self.config),
            "model": self.model.state_dict(),
        }

    def save(self, step: int) -> None:
        """Writes step-N.pt, from which the run can go on."""
        from fastrcnn.training import checkpoint

        folder = self.folder / "checkpoints"
        checkpoint.save(folder / f"step-{step}.pt", self.content(step) | {"optimizer": self.optimizer.state_dict()})
        checkpoint.keep_last(folder, self.config.runtime.keep_checkpoints)

    def failed(self, step: int, evidence: dict[str, Any]) -> Path:
        """Writes failed-step-N.pt, from which a step whose loss was not finite can be done again."""
        from fastrcnn.training import checkpoint

        path = self.folder / f"failed-step-{step}.pt"
        checkpoint.save(path, self.content(step) | evidence)
        return path

    def evaluate(
        self,
        step: int,
        test_set: DetectionDataset,
        workers: int,
        detection: DetectionSettings,
        metric: Metric,
        dtype: torch.dtype,
    ) -> None:
        """Evaluates, records, and writes best.pt where the mAP is the best so far."""
        from fastrcnn.data.loader import detection_loader
        from fastrcnn.evaluation.evaluate import evaluate
        from fastrcnn.training import checkpoint

        batches = detection_loader(test_set, workers=workers)
        self.outcome = evaluate(self.model, batches, len(test_set), self.names, metric, detection, dtype)
        mean_ap, ap = self.outcome.ap.mean or 0.0, self.outcome.ap.ap
        values = {"mAP": mean_ap} | self.outcome.ap.figures | {f"ap/{n}": v for n, v in ap.items()}
        self.tracker.scalars(step, {f"eval/{n}": v for n, v in values.items() if v is not None})
        for name, curve in self.outcome.ap.classes.items():
            if curve.ap is not None:
                self.tracker.precision_recall(step, f"eval/{name}", curve)
        log.info("step %d: mAP %.4f", step, mean_ap)
        if mean_ap > self.best:
            self.best = mean_ap
            checkpoint.save(self.folder / "checkpoints" / "best.pt", self.content(step))

    def draw(self, step: int, batch: Batch, rois: torch.Tensor, targets: RoITargets) -> None:
        """A picture of the step's RoIs for TensorBoard."""
        from fastrcnn.visualize import draw_batch

        self.tracker.picture(step, "train/rois", draw_batch(batch, rois, targets))
