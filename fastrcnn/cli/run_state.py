"""What a training carries from step to step for the files in its folder: checkpoints, evaluations, pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastrcnn.build.checkpoints import checked
from fastrcnn.config.compose import to_dict
from fastrcnn.config.schema import TrainConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    import torch

    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.evaluation.evaluate import Evaluation
    from fastrcnn.model.fast_rcnn import FastRCNN
    from fastrcnn.settings import DetectionSettings, Metric
    from fastrcnn.structures import Batch, RoITargets
    from fastrcnn.training.tracking import Tracker

log = logging.getLogger("fastrcnn")
Pyramid = TypeVar("Pyramid")


def load_newest(
    checkpoints: Path, model: FastRCNN, optimizer: torch.optim.Optimizer, names: list[str], config: TrainConfig
) -> tuple[int, float]:
    """Puts the newest sound checkpoint into model and optimiser; returns its step and the best mAP so far.

    The best mAP is forgotten where it was measured in another way, or on other pictures, than now.
    Raises UserError where there is none, or it is of another model, of other classes, or of another optimiser.
    """
    from fastrcnn.training import checkpoint
    from fastrcnn.training.optim import load_state

    path, state, refused = checkpoint.newest_sound(checkpoints, check=checked)
    for reason in refused:
        log.warning("passed over: %s", reason)
    if state["classes"] != names:
        raise UserError(f"{path}: was trained on other classes ({', '.join(state['classes'])}).")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: was trained with another model; go on with the same model.* keys.\n{error}") from None
    before = state["config"]
    for group, key in (("solver", "optimizer"), ("solver", "box_weight"), ("model", "finetune_from")):
        was, now = before[group].get(key), getattr(getattr(config, group), key)
        if was != now and (key != "box_weight" or (was == 0) != (now == 0)):
            raise UserError(
                f"{group}.{key}={now}: the run was started with {was}, and its optimiser's state fits nothing else. "
                f"Leave it out, or begin a new run with start={path}."
            )
    try:
        load_state(optimizer, state["optimizer"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: its optimiser's state is not this model's or solver's ({error}).") from None
    log.info("going on from %s", path)
    written = [state]
    if (checkpoints / "best.pt").is_file():  # by an evaluation that came after the checkpoint
        try:
            written.append(checked(checkpoints / "best.pt", checkpoint.load(checkpoints / "best.pt")))
        except UserError as error:
            log.warning("passed over: %s", error)
    alike = [w for w in written if all(w["config"]["data"][k] == getattr(config.data, k) for k in ("metric", "test"))]
    return state["step"], max((w["best"] for w in alike), default=-1.0)


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
    done: int = 0  # steps of the run that are over, with all that belongs to them
    interrupted: Callable[[], bool] = lambda: False
    saved: int = 0  # the step saved last
    outcome: Evaluation | None = None  # the last one
    cut_short: bool = False  # whether this process left its share of the last evaluation

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
        """Writes step-N.pt, from which the run can go on. Of several processes the first writes."""
        from fastrcnn.parallel import distributed
        from fastrcnn.training import checkpoint

        if distributed.leads():
            folder = self.folder / "checkpoints"
            checkpoint.save(folder / f"step-{step}.pt", self.content(step) | {"optimizer": self.optimizer.state_dict()})
            checkpoint.keep_last(folder, self.config.runtime.keep_checkpoints)
        self.saved = step

    def step_over(self) -> bool:
        """For the loop, after each step: whether the run is to end."""
        self.done += 1
        return self.interrupted()

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
        """Evaluates, records, and writes best.pt where there is a mAP and it is the best so far.

        Raises Interrupted, at the next picture, where the run is to end; with several processes all do, each when its
        share is done or it is itself told to end.
        """
        from fastrcnn.build.annotations import NO_TRUTH
        from fastrcnn.data.loader import detection_loader
        from fastrcnn.inference.evaluate import evaluate
        from fastrcnn.inference.network import TorchNetwork
        from fastrcnn.parallel import distributed
        from fastrcnn.training import checkpoint
        from fastrcnn.training.loop import Interrupted
        from fastrcnn.training.tracking import EVALUATED

        batches = self.until_interrupted(detection_loader(test_set, workers=workers))

        def detected() -> None:
            if distributed.any_of(self.cut_short):
                raise Interrupted(step)

        network = TorchNetwork(self.model, dtype)
        outcome = evaluate(network, batches, len(test_set), self.names, metric, detection, detected)
        if outcome is None:  # the first process has it
            return
        self.outcome = outcome
        mean_ap, ap = self.outcome.ap.mean, self.outcome.ap.ap
        for name, curve in self.outcome.ap.classes.items():
            if curve.ap is not None:
                self.tracker.precision_recall(step, f"eval/pr/{name}", curve)
        if mean_ap is not None and mean_ap > self.best:
            self.best = mean_ap
            checkpoint.save(self.folder / "checkpoints" / "best.pt", self.content(step))
        values = self.outcome.ap.figures | {f"ap/{n}": v for n, v in ap.items()}
        known = {f"eval/{n}": v for n, v in values.items() if v is not None}
        self.tracker.scalars(step, known | {EVALUATED: mean_ap})  # last
        if mean_ap is None:
            log.warning("step %d: %s, so no best.pt is chosen", step, NO_TRUTH)
        else:
            log.info("step %d: mAP %.4f", step, mean_ap)

    def until_interrupted(self, batches: Iterable[Pyramid]) -> Iterator[Pyramid]:
        """The batches, as long as nothing asks the run to end."""
        self.cut_short = False
        for batch in batches:
            if self.interrupted():
                self.cut_short = True
                return
            yield batch

    def draw(self, step: int, batch: Batch, rois: torch.Tensor, targets: RoITargets) -> None:
        """A picture of the step's RoIs, of several processes those of the first, for TensorBoard."""
        from fastrcnn.parallel import distributed

        if not distributed.leads():
            return
        from fastrcnn.visualize import draw_batch

        self.tracker.picture(step, "train/rois", draw_batch(batch, rois, targets))
