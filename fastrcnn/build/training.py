"""Reads the configuration: what a training may not ask for, and the settings of detection and SVMs."""

from __future__ import annotations

from dataclasses import fields

from fastrcnn.config.schema import SvmConfig, TrainConfig
from fastrcnn.errors import UserError
from fastrcnn.parallel.launch import launch
from fastrcnn.settings import DetectionSettings, SolverSettings, SvmSettings


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


def svm(config: SvmConfig) -> SvmSettings:
    """How SVMs are trained."""
    return SvmSettings(**{f.name: getattr(config, f.name) for f in fields(SvmSettings)})


def detection(config: DetectionSettings, classifier: str = "softmax") -> DetectionSettings:
    """How scores become detections. Raises UserError for a threshold that the scores cannot have."""
    check_threshold("detection.score_threshold", config.score_threshold, classifier)
    return config


def check_threshold(key: str, value: float | None, classifier: str) -> None:
    """Raises UserError for a threshold that is no probability where scores are; margins can be any number."""
    if classifier == "softmax" and value is not None and not 0 <= value <= 1:
        raise UserError(f"{key}={value:g}: should be from 0 to 1, as the scores are probabilities.")
