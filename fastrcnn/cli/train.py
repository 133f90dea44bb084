"""fastrcnn train"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.cli import start
from fastrcnn.cli.compose import compose, experiment_content, to_dict, to_yaml
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
EXAMPLES = [
    "fastrcnn train experiment=demo",
    "fastrcnn train data=custom data.root=mydata model=vgg16_slim solver=scratch",
    "fastrcnn train data=voc07 data.root=VOCdevkit",
    "fastrcnn train run=outputs/train/... resume=auto",
    "fastrcnn train start=outputs/train/... data=custom data.root=mydata solver.lr=0.0001",
]


def main(arguments: list[str]) -> int:
    """Trains, evaluates, and says where everything is."""
    run(configure(arguments))
    return 0


def configure(arguments: list[str]) -> TrainConfig:
    """The configuration for the arguments, and for the run that goes on or the checkpoint that is begun with."""
    config = compose("train", arguments)
    if config.resume:  # what is not said again is as it was
        folder, _ = run_folder(config)
        config = compose("train", arguments, base=saved_config(folder))
        config.run = str(folder)
    elif config.start:  # the model is as it was there, but for what is said again
        said = [experiment_content(a.partition("=")[2]) for a in arguments if a.startswith("experiment=")]
        model = start.read(config)["config"]["model"]
        config = compose("train", arguments, base={"model": model | (said[0].get("model", {}) if said else {})})
    return config


def run_folder(config: TrainConfig) -> tuple[Path, bool]:
    """The folder of the run, and whether it goes on there.

    Raises UserError where there is nothing to resume, or a run in the folder already.
    """
    if config.resume not in (None, "auto"):
        raise UserError(f"resume={config.resume}: should be 'auto' (with run=FOLDER to say which run).")
    if config.resume:
        if config.run:
            return Path(config.run).expanduser(), True
        runs = sorted((Path("outputs") / config.name).glob("*/checkpoints"), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise UserError(f"resume=auto: there is no run in outputs/{config.name}. Name one with run=FOLDER.")
        return runs[-1].parent, True
    if config.run is None:
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        return Path("outputs") / config.name / stamp, False
    folder = Path(config.run).expanduser()
    refuse_used(folder)
    return folder, False


def refuse_used(folder: Path) -> None:
    """Raises UserError where there is a run in the folder already."""
    if (folder / "checkpoints").is_dir() or (folder / "config.yaml").exists():
        raise UserError(
            f"run={folder}: there is a run in this folder already. Go on with it by resume=auto, or name a new one."
        )


@contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Messages go to train.log in the folder as well."""
    file = logging.FileHandler(folder / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)
    try:
        yield
    finally:
        log.removeHandler(file)
        file.close()


def saved_config(folder: Path) -> dict[str, Any]:
    """The configuration that the run in the folder was started with. Raises UserError."""
    from omegaconf import OmegaConf

    path = folder / "config.yaml"
    try:
        return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]
    except Exception as error:  # of files, of YAML, of OmegaConf
        raise UserError(f"{path}: the run's configuration cannot be read ({error}); nothing to go on from.") from None


def run(config: TrainConfig) -> tuple[Path, Evaluation | None]:
    """The whole training that the configuration describes; returns the run's folder and the last evaluation, which
    there is none of where `data.test` is empty."""
    from fastrcnn import build, build_data

    build.check_training(config)
    start.refuse_svm(config)
    detection, metric = (
        build.detection(config.detection),
        build_data.metric(config.data),
    )  # mistakes show before the work
    folder, resumed = run_folder(config)
    import torch

    from fastrcnn.data.loader import training_loader
    from fastrcnn.evaluation.evaluate import table, write_results
    from fastrcnn.model.head import parameter_count
    from fastrcnn.training import loop
    from fastrcnn.training.optim import sgd
    from fastrcnn.training.tracking import Tracker, claim, describe_run

    device = build.device(config.runtime)
    dtype = build.precision(config.runtime, device)
    build.threads(config.runtime)
    workers = build.workers(config.runtime)
    solver, seed = config.solver, config.runtime.seed

    build_data.absolute_paths(config.data)
    begin = start.read(config) if config.start and not resumed else None
    if begin:
        start.take_classes(config.data, begin, str(config.start))
    names = build_data.classes(config.data)
    if config.data.test:
        build_data.image_ids(config.data, config.data.test)  # a list that is missing shows before the work
    torch.manual_seed(loop.seed_of(seed))
    model = build.model(config.model, len(names), load=not (resumed or begin))  # before the data: it may lack weights
    if begin:
        start.put_weights(model, begin, str(config.start))
    train_set = build_data.training_set(config.data, names, seed)
    test_set = build_data.test_set(config.data, names) if config.data.test else None
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    build.freeze_unused(model, solver)
    optimizer = sgd(model, solver.momentum, solver.weight_decay, solver.bias_lr_factor, solver.optimizer)
    done, best = 0, -1.0
    if resumed:
        done, best = load_newest(folder / "checkpoints", model, optimizer, names)
    else:
        build_data.say_recall(train_set, names)
        if begin:  # the weights of bbox_pred were trained for the statistics that came with them
            log.info("beginning with the weights of %s", config.start)
            start.say_margins(begin)
            start.statistics(model, train_set, config)
        else:
            log.info("%d training pictures; computing the statistics of their regression targets", len(train_set))
            build.set_delta_statistics(model, train_set, config)

    with claim(folder), log_to(folder):
        if not resumed:
            refuse_used(folder)  # one that began while this one was looking at its data
        describe_run(folder, to_yaml(config))
        log.info(
            "%s: %d training and %d test pictures, classes %s",
            folder,
            len(train_set),
            len(test_set) if test_set else 0,
            ", ".join(names),
        )
        log.info("%s parameters, %s, %s", f"{parameter_count(model):,}", device, str(dtype).removeprefix("torch."))
        state = RunState(config, folder, names, model, optimizer, Tracker(folder, done), best)

        def evaluate(step: int) -> None:
            if test_set is not None:
                state.evaluate(step, test_set, workers, detection, metric, dtype)

        if done >= solver.iterations:
            evaluate(done)
        else:
            loop.train(
                model,
                training_loader(train_set, solver.images_per_batch, workers, done, pin_memory=device.type == "cuda"),
                build.sampler(solver, model),
                optimizer,
                build.schedule(config, done),
                state.tracker,
                save=state.save,
                evaluate=evaluate,
                draw=state.draw,
                failed=state.failed,
                dtype=dtype,
                box_weight=solver.box_weight,
            )
    state.tracker.close()
    if state.outcome is not None:
        split = build_data.split_name(config.data.test)
        write_results(state.outcome, folder / "eval" / split, split)
        print(table(state.outcome))
    print(f"run: {folder}")
    return folder, state.outcome


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
        log.info("step %d: mAP %.4f", step, mean_ap)
        if mean_ap > self.best:
            self.best = mean_ap
            checkpoint.save(self.folder / "checkpoints" / "best.pt", self.content(step))

    def draw(self, step: int, batch: Batch, rois: torch.Tensor, targets: RoITargets) -> None:
        """A picture of the step's RoIs for TensorBoard."""
        from fastrcnn.visualize import draw_batch

        self.tracker.picture(step, "train/rois", draw_batch(batch, rois, targets))
