"""Build a training run from the configuration."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from fastrcnn.build import checkpoints, datasets, machine, models
from fastrcnn.build.annotations import (
    NO_TRUTH,
    absolute_paths,
    classes,
    has_truth,
    image_ids,
    validation_splits,
    warn_of_same_files,
)
from fastrcnn.build.checkpoints import Trained
from fastrcnn.build.run_config import check_training, read_start, run_folder
from fastrcnn.config.schema import TrainConfig
from fastrcnn.errors import UserError
from fastrcnn.memory import training_advice
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.networks import VGG16
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel import distributed
from fastrcnn.parallel.signals import Stop
from fastrcnn.training import checkpoint
from fastrcnn.training.loop import Schedule, seed_of
from fastrcnn.training.optim import learning_rate, make_optimizer
from fastrcnn.training.run import Settings, TrainingRun
from fastrcnn.weights.classes import for_classes

log = logging.getLogger("fastrcnn")
EVALUATIONS = 10  # default number of evaluations during training if data.val is set
MANY_IMAGES = 2000  # number of images, over all steps, from which faster recipes are suggested on a CPU


@contextmanager
def open_run(config: TrainConfig, stop: Stop) -> Iterator[TrainingRun]:
    """Yield the training run of a configuration. In distributed jobs, the process group exists in the `with` block.

    stop: records signals that request the end of the run. Raises UserError for an invalid configuration, data set or
    checkpoint, if possible before any expensive work.
    """
    check_training(config)
    models.detection(config.detection)  # reports errors early
    if config.data.test:
        datasets.test_scaling(config.data)
    folder, begun = run_folder(config)
    with distributed.join_processes(machine.device(config.runtime)):
        yield prepare(config, distributed.from_first(folder), begun, stop)


def prepare(config: TrainConfig, folder: Path, begun: bool, stop: Stop) -> TrainingRun:
    """Build the run in the folder. begun: whether the run already exists in the folder. stop: see open_run."""
    resumed = begun and bool(checkpoint.in_order(folder / "checkpoints"))
    if begun and not resumed:
        log.info("Restarting %s, which stopped before its first checkpoint", folder)
    device, dtype = machine.set_up(config.runtime)
    if distributed.leads() and not resumed and device.type == "cpu":
        warn_of_slow_training(config)
    if distributed.leads():
        machine.warn_of_others(device)

    absolute_paths(config.data)
    config.data.val = validation_splits(config.data)
    check_validation(config)
    given = read_start(config) if config.start and not resumed else None
    if given:
        take_classes(config, given)
    names = classes(config.data)
    warn_of_same_files(names)
    if config.data.test:
        image_ids(config.data, config.data.test)  # reports a missing split early
    torch.manual_seed(seed_of(config.runtime.seed))
    model = models.model(
        config.model, len(names), load=not (resumed or given)
    )  # before the data, to report missing weights early
    kept = put_weights(model, given, str(config.start), names) if given else []
    train_set, val_set, test_set = datasets.run_sets(config.data, names, config.runtime.seed)
    for chosen, splits in ((val_set, config.data.val), (test_set, config.data.test)):
        if distributed.leads() and chosen and not has_truth(chosen.samples):
            log.warning("%s: there will be %s", ", ".join(splits), NO_TRUTH)
    if distributed.leads() and not resumed:
        datasets.say_recall(train_set, names)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    models.freeze_unused(model, config.solver)
    machine.speed_and_memory(model, config.runtime, device)
    if model.map_scale is not None:
        config.model.scale_maps = True  # so that a resumed run creates the buffer for the factors
    solver = config.solver
    return TrainingRun(
        folder=folder,
        begun=begun,
        resumed=resumed,
        started=bool(kept),
        new_labels=[label for label, name in enumerate(names, 1) if kept and name not in kept],
        config=asdict(config),
        check=checkpoints.check_content,
        names=names,
        model=model,
        optimizer=make_optimizer(model, solver.momentum, solver.weight_decay, solver.bias_lr_factor, solver.optimizer),
        train_set=train_set,
        val_set=val_set,
        test_set=test_set,
        sampler=RoISampler(model.delta_mean.cpu(), model.delta_std.cpu(), solver),
        schedule=schedule(config),
        settings=run_settings(config, dtype),
        stop=stop,
    )


def check_validation(config: TrainConfig) -> None:
    """Raise UserError if solver.patience is set but there are no evaluations on data.val."""
    if config.solver.patience and not config.data.val:
        raise UserError(
            f"solver.patience={config.solver.patience}: early stopping needs a validation split. Set data.val=[SPLIT] "
            "to a split that is not used for training or testing."
        )
    if config.solver.patience and config.runtime.evaluate_every == 0:
        raise UserError(
            f"solver.patience={config.solver.patience}: early stopping needs evaluations during training, but "
            "runtime.evaluate_every=0 turns them off. Remove runtime.evaluate_every."
        )


def warn_of_slow_training(config: TrainConfig) -> None:
    """Log a warning that suggests faster recipes if this run trains VGG16's convolutions on many images on a CPU."""
    model, solver = config.model, config.solver
    images = solver.iterations * solver.images_per_batch * solver.accumulate
    most = VGG16.conv_names[: VGG16.conv_names.index("conv5_1")]  # from conv5_1 on, only few layers are trained
    large = model.network == VGG16.name and model.width >= 0.5
    if large and model.finetune_from in most and images >= MANY_IMAGES:
        log.warning(
            "Without a GPU, training %s from %s on takes several seconds per image, and this run processes %s images. "
            "recipe=transfer trains only a head on frozen pre-trained layers, and recipe=scratch trains a small "
            "network without pre-trained weights. Both take minutes for a few hundred images",
            model.network,
            model.finetune_from,
            f"{images:,}",
        )


def take_classes(config: TrainConfig, given: Trained) -> None:
    """Set data.classes to the classes of the checkpoint `given` if it is null.

    Raises UserError if the data set then has other classes, or if weights of new classes would be frozen.
    """
    known = given.classes
    if config.data.classes is None:
        dropped = config.data.skip_bad or config.data.other_classes == "leave_out"  # the excluded objects are logged
        others = [] if dropped else classes(config.data)
        if unknown := [name for name in others if name not in known]:
            raise UserError(
                f"start={config.start}: this checkpoint was trained on the classes {', '.join(known)}, but the data "
                f"set also has {', '.join(unknown)}. Set the classes to train, for example data.classes="
                f"[{','.join(others)}]. The output weights of classes that the checkpoint and the data set share are "
                "then kept, and the output weights of all other classes are newly initialised. To exclude the objects "
                "of other classes instead, set data.other_classes=leave_out."
            )
        config.data.classes = list(known)
    new = [name for name in config.data.classes if name not in known]
    if new and config.model.finetune_from == "bbox_pred":
        raise UserError(
            f"model.finetune_from=bbox_pred: start={config.start} does not have the classes {', '.join(new)}. "
            "Their weights in cls_score would be initialised at random and stay frozen. Set model.finetune_from=fc6."
        )


def put_weights(model: FastRCNN, given: Trained, where: str, names: list[str]) -> list[str]:
    """Copy the weights and regression statistics of a checkpoint to the model, whose classes are `names`.

    where: the path of the checkpoint. Returns the classes whose output weights were copied. Raises UserError if the
    checkpoint has a different model.
    """
    state, known = given.state, given.classes
    kept = [name for name in names if name in known]
    try:
        if names != known:
            state = for_classes(state, known, model.state_dict(), names)
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"start={where}: the checkpoint has a different model. Remove the keys model and model.*. To load only the "
            f"layers that fit, set model.weights={where} instead of start.\n{error}"
        ) from None
    log.info("Initialised the model with the weights of %s", where)
    if names != known:
        new, gone = ([n for n in some if n not in kept] for some in (names, known))
        log.info(
            "%s was trained on different classes, or in a different order. Output weights copied: %s; newly "
            "initialised: %s; not used: %s",
            where,
            *(", ".join(some) or "none" for some in (kept, new, gone)),
        )
    if given.config["model"].get("classifier") == "svm":
        log.warning(
            "The class layer of %s consists of SVMs. Their outputs are used as the initial logits. The logit of the "
            "background is 0",
            where,
        )
    return kept


def schedule(config: TrainConfig) -> Schedule:
    """Return the schedule of training: the learning rate of each step, and the intervals between outputs."""
    s, r = config.solver, config.runtime
    every = r.evaluate_every
    if every is None:
        every = max(1, s.iterations // EVALUATIONS) if config.data.val else 0
    return Schedule(
        iterations=s.iterations,
        rate=lambda step: learning_rate(step, s.iterations, s.lr, s.schedule, s.lr_steps, s.lr_gamma, s.warmup),
        seed=r.seed,
        log_every=r.log_every,
        evaluate_every=every,
        checkpoint_every=r.checkpoint_every,
        images_every=r.images_every,
        accumulate=s.accumulate,
        clip_gradients=math.inf if s.clip_gradients is None else s.clip_gradients,
    )


def run_settings(config: TrainConfig, dtype: torch.dtype) -> Settings:
    """Return all settings of the run except its schedule, and advice for out-of-memory errors."""
    solver, data, runtime = config.solver, config.data, config.runtime
    return Settings(
        detection=config.detection,
        metric=data.metric,
        images_per_batch=solver.images_per_batch,
        group_aspects=solver.group_aspects,
        workers=machine.workers(runtime),
        box_weight=solver.box_weight,
        dtype=dtype,
        keep_checkpoints=runtime.keep_checkpoints,
        profile=runtime.profile,
        patience=solver.patience,
        cache=runtime.cache,
        advice=training_advice(
            solver.images_per_batch,
            solver.accumulate,
            data.short_sides,
            data.long_side,
            solver.rois_per_image,
            norm=config.model.batch_norm,
            recompute=runtime.checkpoint_activations,
        ),
    )
