"""Determine and check the configuration and folder of a run that is new, is resumed or starts from a checkpoint."""

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
    """Return the configuration for the arguments of `fastrcnn train`.

    If a run is resumed, keys without an argument keep their values from that run. With `start`, the model.* keys are
    those of that checkpoint (see start_config). Raises UserError for invalid arguments.
    """
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
    """Return the saved configuration of the run to resume, overridden by the arguments."""
    from fastrcnn.training.resume import saved_config

    folder, _ = run_folder(config)
    found = compose("train", arguments, base=saved_config(folder))
    for group in ("model", "solver", "detection", "runtime"):
        if any(a.startswith("recipe=") for a in arguments) and getattr(config, group) != getattr(found, group):
            log.warning("recipe= has no effect on a resumed run: %s.* is unchanged", group)
    found.run, found.resume = str(folder), "auto"
    return found


def start_config(config: TrainConfig, arguments: list[str]) -> TrainConfig:
    """Return the configuration with the model.* keys of the checkpoint `start`, unless the arguments select a model.

    model.* keys in the arguments and in an experiment take precedence. Raises UserError if the experiment is for
    another network.
    """
    given = [argument.partition("=")[0] for argument in arguments]
    experiments = [experiment_content(a.partition("=")[2]) for a in arguments if a.startswith("experiment=")]
    model = read_start(config).config["model"]
    network = model.get("network", "vgg16")
    if experiments and config.model.network != network:
        raise UserError(
            f"start={config.start}: this checkpoint has the network {network}, but the experiment uses "
            f"{config.model.network}. Start from a checkpoint of {config.model.network}, or remove experiment=NAME."
        )
    if "model" not in given:
        own = experiments[0].get("model", {}) if experiments else {}
        said = {key[6:]: getattr(config.model, key[6:]) for key in given if key.startswith("model.")}
        config.model = fill(ModelSettings, model | own | said, "model.")
    return config


def read_start(config: TrainConfig) -> Trained:
    """Read the checkpoint or .caffemodel in `start`. Raises UserError if it is missing or invalid."""
    assert config.start is not None
    return checkpoints.read(config.start, config)


def restart_in_place(config: TrainConfig) -> None:
    """Set the configuration to resume the run if `torchrun --max-restarts` has restarted its processes.

    Raises UserError if the run could not be resumed after a restart.
    """
    here = launch()
    if not here.restarts:
        return
    if config.run is None:
        raise UserError(
            "torchrun --max-restarts needs run=FOLDER, because restarted processes resume the run in this folder."
        )
    if here.kept_store and here.size > here.local_size:  # each machine counts its own restarts
        raise UserError(
            "torchrun --max-restarts on several machines needs the environment variable "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each machine. Without it, restarted processes can wait forever "
            "for processes that no longer exist."
        )
    if (Path(config.run).expanduser() / "config.yaml").exists():
        config.resume = "auto"


def run_folder(config: TrainConfig) -> tuple[Path, bool]:
    """Return the folder of the run, and whether to resume the run in it.

    Raises UserError if there is nothing to resume, or if the folder of a new run is not writable or contains a run.
    """
    from fastrcnn.training.tracking import newest_first, refuse_used

    outputs = Path("outputs") / config.name
    if config.resume and config.run is None:
        runs = newest_first(p.parent for p in outputs.glob("*/checkpoints"))
        if not runs:
            raise UserError(
                f"resume=auto: there is no run in {outputs}. Set run=FOLDER to the folder of the run to resume."
            )
        return runs[0], True
    if config.run is None:
        refuse_unusable(outputs, f"name={config.name}")
        return outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}", False
    folder = Path(config.run).expanduser()
    if not config.resume:
        refuse_unusable(folder, f"run={config.run}")
        refuse_used(folder)
    return folder, bool(config.resume)


def check_training(config: TrainConfig) -> None:
    """Raise UserError if training is not possible with this configuration."""
    check_solver(config.solver)
    check_processes(config.solver, launch().size)
    if config.model.classifier == "svm":
        begin = f"start={config.start}: " if config.start else ""
        raise UserError(
            f"{begin}model.classifier=svm: training uses cross-entropy, which does not train SVMs. `fastrcnn svm` "
            "trains SVMs for a trained network. Set model.classifier=softmax. If the checkpoint has SVMs, the class "
            "layer is then initialised with their weights."
        )
    if config.model.finetune_from == "bbox_pred" and config.start is None:
        raise UserError(
            "model.finetune_from=bbox_pred trains only the box regression, so the class layer must already be trained. "
            "Set start=RUN to a trained network."
        )
    if config.solver.box_weight == 0 and config.model.finetune_from == "bbox_pred":
        raise UserError(
            "model.finetune_from=bbox_pred with solver.box_weight=0: no layer would be trained. Remove one of these "
            "keys."
        )
    if config.solver.box_weight == 0 and config.detection.box_regression:
        raise UserError(
            "solver.box_weight=0: box regression is not trained, so detection must not use it. Also set "
            "detection.box_regression=false."
        )


def check_processes(config: SolverSettings, processes: int) -> None:
    """Raise UserError if the images of a batch cannot be split equally among the processes."""
    if config.images_per_batch % processes:
        more = -(-config.images_per_batch // processes) * processes
        raise UserError(
            f"solver.images_per_batch={config.images_per_batch}: must be a multiple of {processes}, the number of "
            f"processes. Set solver.images_per_batch={more}, and scale solver.lr proportionally and solver.iterations "
            "inversely."
        )


def check_solver(config: SolverSettings) -> None:
    """Raise UserError if solver.bg_iou is not a range of IoUs, or contains an IoU of foreground RoIs."""
    if len(config.bg_iou) != 2 or not config.bg_iou[0] < config.bg_iou[1]:
        raise UserError(
            f"solver.bg_iou={config.bg_iou}: must be two IoU values, and the first must be less than the second."
        )
    if config.bg_iou[1] > config.fg_iou:
        raise UserError(
            f"solver.bg_iou={config.bg_iou}: an RoI with an IoU of {config.fg_iou:g} (solver.fg_iou) would be both "
            f"foreground and background. The second value must be at most {config.fg_iou:g}."
        )
