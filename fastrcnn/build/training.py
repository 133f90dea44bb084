"""Reads the configuration: the solver, and what a training is made of."""

from __future__ import annotations

import logging
from dataclasses import fields

from torch import Tensor

from fastrcnn.config.schema import SvmConfig, TrainConfig
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.errors import UserError
from fastrcnn.memory import training_advice
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.sampling import RoISampler, delta_statistics
from fastrcnn.parallel.launch import launch
from fastrcnn.settings import DetectionSettings, SolverSettings, SvmSettings
from fastrcnn.training.loop import Schedule
from fastrcnn.training.optim import learning_rate

log = logging.getLogger(__name__)


def check_training(config: TrainConfig) -> None:
    """Raises UserError for a configuration that cannot be trained with."""
    check_solver(config.solver)
    check_processes(config.solver, launch().size)
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


def training_memory(config: TrainConfig) -> str:
    """What to turn down where memory runs out in training."""
    s, d = config.solver, config.data
    return training_advice(
        s.images_per_batch,
        s.accumulate,
        d.short_sides,
        d.long_side,
        s.rois_per_image,
        norm=config.model.batch_norm,
        recompute=config.runtime.checkpoint_activations,
    )


def delta_statistics_of(train_set: DetectionDataset, num_classes: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Mean and deviation (classes + 1, 4) of the regression targets over the training set."""
    pairs = (train_set.truth_and_proposals(i) for i in range(len(train_set)))
    return delta_statistics(pairs, num_classes, config.solver.fg_iou, config.data.flip, config.model.class_agnostic)


def set_delta_statistics(model: FastRCNN, train_set: DetectionDataset, config: TrainConfig) -> None:
    """Computes mean and deviation of the regression targets over the training set into the model's buffers."""
    mean, std = delta_statistics_of(train_set, model.num_classes, config)
    model.delta_mean.copy_(mean)
    model.delta_std.copy_(std)


def sampler(config: SolverSettings, model: FastRCNN) -> RoISampler:
    """Draws a step's RoIs; targets are normalised by the model's statistics."""
    return RoISampler(model.delta_mean.cpu(), model.delta_std.cpu(), config)


def svm(config: SvmConfig) -> SvmSettings:
    """How SVMs are trained."""
    return SvmSettings(**{f.name: getattr(config, f.name) for f in fields(SvmSettings)})


def schedule(config: TrainConfig, start: int) -> Schedule:
    """What happens at which step."""
    s, r = config.solver, config.runtime
    return Schedule(
        iterations=s.iterations,
        rate=lambda step: learning_rate(step, s.iterations, s.lr, s.schedule, s.lr_steps, s.lr_gamma, s.warmup),
        start=start,
        seed=r.seed,
        log_every=r.log_every,
        evaluate_every=r.evaluate_every,
        checkpoint_every=r.checkpoint_every,
        pictures_every=r.pictures_every,
        accumulate=s.accumulate,
    )


def detection(config: DetectionSettings, classifier: str = "softmax") -> DetectionSettings:
    """How scores become detections. Raises UserError for a threshold that the scores cannot have."""
    check_threshold("detection.score_threshold", config.score_threshold, classifier)
    return config


def check_threshold(key: str, value: float | None, classifier: str) -> None:
    """Raises UserError for a threshold that is no probability where scores are; margins can be any number."""
    if classifier == "softmax" and value is not None and not 0 <= value <= 1:
        raise UserError(f"{key}={value:g}: should be from 0 to 1, as the scores are probabilities.")
