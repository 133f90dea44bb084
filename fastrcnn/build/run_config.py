"""The configuration and folder of a run, be it new, resumed, or started with the weights of another one; and what a
training may not ask for."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import asdict
from pathlib import Path

from fastrcnn.build import checkpoints
from fastrcnn.build.checkpoints import Trained
from fastrcnn.config.compose import compose, experiment_content
from fastrcnn.config.schema import TrainConfig
from fastrcnn.config.values import fill
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable
from fastrcnn.parallel.launch import launch
from fastrcnn.settings import ModelSettings, SolverSettings

log = logging.getLogger("fastrcnn")


def configure(arguments: list[str]) -> TrainConfig:
    """The configuration for the arguments of `fastrcnn train`: what a run that resumes, or the checkpoint that `start`
    names, has is kept where the arguments do not set it."""
    config = compose("train", arguments)
    restart_in_place(config)
    if config.resume:
        return resume_config(config, arguments)
    if config.start:
        config = start_config(config, arguments)
    from fastrcnn.training.resume import warn_of_companions

    warn_of_companions([argument.partition("=")[0] for argument in arguments], asdict(config))
    return config


def resume_config(config: TrainConfig, arguments: list[str]) -> TrainConfig:
    """The configuration of the run in its folder, with the arguments on top."""
    from fastrcnn.training.resume import saved_config

    folder, _ = run_folder(config)
    found = compose("train", arguments, base=saved_config(folder))
    for group in ("model", "solver", "detection", "runtime"):
        if any(a.startswith("recipe=") for a in arguments) and getattr(config, group) != getattr(found, group):
            log.warning("recipe= changes nothing in a run that goes on: %s.* stays as it was", group)
    found.run, found.resume = str(folder), "auto"
    return found


def start_config(config: TrainConfig, arguments: list[str]) -> TrainConfig:
    """The configuration, its model that of the checkpoint that `start` names, but for what the arguments, or an
    experiment among them, set. Raises UserError where the experiment is of another network."""
    given = [argument.partition("=")[0] for argument in arguments]
    experiments = [experiment_content(a.partition("=")[2]) for a in arguments if a.startswith("experiment=")]
    model = read_start(config).config["model"]
    network = model.get("network", "vgg16")
    if experiments and config.model.network != network:
        raise UserError(
            f"start={config.start}: is a {network}, but experiment={config.name} is of {config.model.network}. Begin "
            "with a checkpoint of that network."
        )
    if "model" not in given:
        own = experiments[0].get("model", {}) if experiments else {}
        said = {key[6:]: getattr(config.model, key[6:]) for key in given if key.startswith("model.")}
        config.model = fill(ModelSettings, model | own | said, "model.")
    return config


def read_start(config: TrainConfig) -> Trained:
    """The checkpoint, or .caffemodel, that `start` names. Raises UserError."""
    assert config.start is not None
    return checkpoints.read(config.start, config)


def restart_in_place(config: TrainConfig) -> None:
    """Where torchrun starts a run again whose process has died, the run resumes: with --max-restarts any run that is in
    the folder does. Raises UserError where it could not.
    """
    here = launch()
    if not here.restarts:
        return
    if config.run is None:
        raise UserError("with torchrun --max-restarts name the run's folder, run=FOLDER: a restart goes on there.")
    if here.kept_store and here.size > here.local_size:  # each machine counts the restarts for itself
        raise UserError(
            "torchrun --max-restarts on several machines: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on "
            "each of them. Without it the processes of a restart may look for those that are gone, and wait for ever."
        )
    if (Path(config.run).expanduser() / "config.yaml").exists():
        config.resume = "auto"


def run_folder(config: TrainConfig) -> tuple[Path, bool]:
    """The folder of the run, and whether it resumes there.

    Raises UserError where there is nothing to resume, or a run in the folder already.
    """
    from fastrcnn.training.tracking import refuse_used

    outputs = Path("outputs") / config.name
    if config.resume and config.run is None:
        runs = sorted(outputs.glob("*/checkpoints"), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise UserError(f"resume=auto: there is no run in {outputs}. Name one with run=FOLDER.")
        return runs[-1].parent, True
    if config.run is None:
        refuse_unusable(outputs, f"name={config.name}")
        return outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}", False
    folder = Path(config.run).expanduser()
    if not config.resume:
        refuse_unusable(folder, f"run={config.run}")
        refuse_used(folder)
    return folder, bool(config.resume)


def check_training(config: TrainConfig) -> None:
    """Raises UserError for a configuration that cannot be trained with."""
    check_solver(config.solver)
    check_processes(config.solver, launch().size)
    if config.model.classifier == "svm":
        begin = f"start={config.start}: " if config.start else ""
        raise UserError(
            f"{begin}model.classifier=svm: training is by cross-entropy, which makes no SVMs; `fastrcnn svm` makes "
            "them of a trained run. Train with model.classifier=softmax: a checkpoint with SVMs then begins with their "
            "weights as those of the class layer."
        )
    if config.model.finetune_from == "bbox_pred" and config.start is None:
        raise UserError(
            "model.finetune_from=bbox_pred trains the box regression of a network that knows its classes already: say "
            "which by start=RUN."
        )
    if config.solver.box_weight == 0 and config.model.finetune_from == "bbox_pred":
        raise UserError("model.finetune_from=bbox_pred with solver.box_weight=0: nothing is left to train.")
    if config.solver.box_weight == 0 and config.detection.box_regression:
        raise UserError(
            "solver.box_weight=0: no box regression is trained, so detection must not use it: say "
            "detection.box_regression=false as well."
        )


def check_processes(config: SolverSettings, processes: int) -> None:
    """Raises UserError where the pictures of a batch cannot be shared out equally."""
    if config.images_per_batch % processes:
        more = -(-config.images_per_batch // processes) * processes
        raise UserError(
            f"solver.images_per_batch={config.images_per_batch}: {processes} processes take equal shares of them. "
            f"Say solver.images_per_batch={more}, with solver.lr in proportion and solver.iterations the other way."
        )


def check_solver(config: SolverSettings) -> None:
    """Raises UserError for values that no step can be made of."""
    if len(config.bg_iou) != 2 or not config.bg_iou[0] < config.bg_iou[1]:
        raise UserError(f"solver.bg_iou={config.bg_iou}: should be two overlaps, the first below the second.")
    if config.bg_iou[1] > config.fg_iou:
        raise UserError(
            f"solver.bg_iou={config.bg_iou}: a RoI with an overlap of {config.fg_iou:g} (solver.fg_iou) would be both "
            "foreground and background; its second number should be at most that."
        )
