"""With build_data.py and build_sets.py the only reader of the configuration: turns it into objects."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastrcnn.config import (
    DetectionConfig,
    ModelConfig,
    RuntimeConfig,
    SolverConfig,
    SvmConfig,
    TrainConfig,
)
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.errors import UserError, nearest
from fastrcnn.inference import DetectionSettings
from fastrcnn.launch import cores, launch
from fastrcnn.memory import training_advice
from fastrcnn.model import caffe, weights
from fastrcnn.model.fast_rcnn import CLASSIFIERS, ROI_OPS, FastRCNN, freeze_before
from fastrcnn.model.head import largest_rank
from fastrcnn.model.networks import NETWORKS
from fastrcnn.model.pixels import PIXELS
from fastrcnn.model.sampling import RoISampler, delta_statistics
from fastrcnn.training.loop import Schedule
from fastrcnn.training.optim import OPTIMIZERS, learning_rate
from fastrcnn.training.svm import SvmSettings

log = logging.getLogger(__name__)


def one_of(key: str, value: str, known: Sequence[str]) -> str:
    """The value, or a UserError with the values there are."""
    if value not in known:
        raise UserError(f"{key}={value}: should be one of {', '.join(known)}.{nearest(value, known)}")
    return value


# Machine ---------------------------------------------------------------------------------------------------------


def device(config: RuntimeConfig) -> torch.device:
    """The device to run on. Of several processes on a machine each has a GPU of its own, by its number there."""
    here = launch()
    if config.device == "auto":
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            chosen = torch.device(config.device)
        except RuntimeError:
            raise UserError(f"runtime.device={config.device}: should be auto, cpu, cuda or cuda:N.") from None
    if chosen.type != "cuda":
        return chosen
    there = torch.cuda.device_count()
    if (chosen.index or 0) >= there:
        raise UserError(f"runtime.device={config.device}: torch sees {there} CUDA device(s) here.")
    if here.size == 1:
        return chosen
    if chosen.index is not None:
        raise UserError(f"runtime.device={config.device}: with several processes each takes its own; say cuda.")
    if here.local_size > there:
        raise UserError(
            f"{here.local_size} processes on this machine, and torch sees {there} CUDA device(s): start as many "
            f"processes (torchrun --nproc-per-node {there}), or say runtime.device=cpu."
        )
    return torch.device("cuda", here.local_rank)


def precision(config: RuntimeConfig, on: torch.device) -> torch.dtype:
    """float32, or bfloat16 where it is asked for or, with `auto`, where the device computes in it natively."""
    one_of("runtime.precision", config.precision, ("auto", "float32", "bfloat16"))
    chosen = getattr(torch, config.precision) if config.precision != "auto" else _fastest(on)
    if chosen == torch.float32:  # and not the 10 bits of TF32, which convolutions take by default
        torch.backends.cudnn.allow_tf32 = (
            False  # the old flag too: torch.export reads it, and must find no other answer
        )
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    return chosen


def _fastest(on: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it natively, else float32."""
    if on.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Instructions for bfloat16, not mere support: without them oneDNN is slower than float32. torch knows, but
        # has no public question for it yet.
        known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        fast = any(ask() for ask in known if ask is not None)
    return torch.bfloat16 if fast else torch.float32


def threads(config: RuntimeConfig) -> None:
    """Sets the number of threads that torch uses."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def workers(config: RuntimeConfig) -> int:
    """Loader processes: one for every two cores of this process's, four at most, unless said."""
    if config.workers is not None:
        return config.workers
    return min(4, cores() // 2)


# Model -----------------------------------------------------------------------------------------------------------


def model(config: ModelConfig, num_classes: int, load: bool = True, device: str = "cpu") -> FastRCNN:
    """The network on a device, whatever torch's default is; `load`: with the weights that the configuration names (not
    needed before a checkpoint's)."""
    check_model(config)
    with torch.device(device):
        built = FastRCNN(
            num_classes,
            config.width,
            config.batch_norm,
            config.roi_size,
            config.roi_op,
            config.roi_features,
            config.dropout,
            classifier=config.classifier,
            fc6_rank=config.fc6_rank,
            fc7_rank=config.fc7_rank,
            network=config.network,
            class_agnostic=config.class_agnostic,
        )
    if load and config.weights is not None:
        if config.weights == "imagenet":
            if config.network != "vgg16":
                raise UserError(
                    f"model.weights=imagenet: torchvision has none of {config.network}. Give a file, such as the "
                    "author's .caffemodel, or null to train from scratch."
                )
            state, source = weights.torchvision_vgg16(), "ImageNet weights"
        else:
            state, source = weights.read_state_dict(Path(config.weights).expanduser()), config.weights
        weights.load_pretrained(built, state, source, config.pixels)
    freeze_before(built, config.finetune_from)
    return built


def check_model(config: ModelConfig) -> None:
    """Raises UserError for values that no network can be made of."""
    network = NETWORKS[one_of("model.network", config.network, tuple(NETWORKS))]
    one_of("model.roi_op", config.roi_op, ROI_OPS)
    one_of("model.classifier", config.classifier, CLASSIFIERS)
    one_of("model.finetune_from", config.finetune_from, network.finetune_from)
    one_of("model.pixels", config.pixels, ("auto", *PIXELS))
    for name in config.roi_features or [""]:
        one_of("model.roi_features", name, network.conv_names)
    pooled = network.channels_of(network.conv_names[-1], config.width) * config.roi_size**2
    fc6, fc7 = network.features_of(config.width)
    check_rank("model.fc6_rank", config.fc6_rank, fc6, pooled)
    check_rank("model.fc7_rank", config.fc7_rank, fc7, fc6)


def check_rank(key: str, rank: int | None, rows: int, columns: int) -> None:
    """Raises UserError for a rank whose two factors are no smaller than the layer of rows x columns."""
    if rank is not None and rank > largest_rank(rows, columns):
        raise UserError(
            f"{key}={rank}: two layers of this rank have {rank * (rows + columns):,} weights, no fewer than the "
            f"{rows * columns:,} of the one layer. At most {largest_rank(rows, columns)} makes it smaller."
        )


def trained_model(config: dict[str, Any], num_classes: int) -> FastRCNN:
    """The network of a run's configuration, its weights yet to be loaded."""
    return model(ModelConfig(**config["model"]), num_classes, load=False)


class _WithoutNumbers(TorchFunctionMode):
    """Leaves out the first values of weights: on the meta device they do nothing, and load half of torch for it."""

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def trained_shapes(config: dict[str, Any], num_classes: int) -> dict[str, Tensor]:
    """The state dict of the network that `trained_model` builds, on the meta device: shapes and types, no memory."""
    with _WithoutNumbers():
        return model(ModelConfig(**config["model"]), num_classes, load=False, device="meta").state_dict()


def caffe_detector(path: Path, names: Sequence[str]) -> tuple[ModelConfig, FastRCNN]:
    """A detector that the author's Caffe code trained, its configuration and itself with its weights.

    Raises UserError where it is none of the paper's networks, or not of as many classes."""
    state = caffe.read(path)
    found = weights.detector_layout(state, str(path))
    if found.num_classes != len(names):
        raise UserError(
            f"{path}: a detector of {found.num_classes} classes, but data.classes has {len(names)} "
            f"({', '.join(names[:5])}{' ...' if len(names) > 5 else ''}). It needs the names, in the order of training."
        )
    config = ModelConfig(
        network=found.network,
        width=found.width,
        roi_size=weights.AUTHORS_ROI_SIZE[found.network],
        roi_features=[NETWORKS[found.network].conv_names[-1]],
        finetune_from="conv3_1" if found.network == "vgg16" else "conv2",  # as the author trained it
        fc6_rank=found.ranks["fc6"],
        fc7_rank=found.ranks["fc7"],
    )
    if problems := weights.detector_misfits(state, trained_shapes({"model": asdict(config)}, len(names))):
        raise UserError(f"{path}: these weights do not fit the model ({weights.DETECTOR_FITS}):\n{problems}")
    built = model(config, len(names), load=False)
    weights.load_detector(built, state, str(path))
    return config, built


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


def check_processes(config: SolverConfig, processes: int) -> None:
    """Raises UserError where the pictures of a batch cannot be shared out equally."""
    if config.images_per_batch % processes:
        more = -(-config.images_per_batch // processes) * processes
        raise UserError(
            f"solver.images_per_batch={config.images_per_batch}: {processes} processes take equal shares of them. "
            f"Say solver.images_per_batch={more}, with solver.lr in proportion and solver.iterations the other way."
        )


def check_solver(config: SolverConfig) -> None:
    """Raises UserError for values that no step can be made of."""
    one_of("solver.schedule", config.schedule, ("step", "cosine"))
    one_of("solver.optimizer", config.optimizer, OPTIMIZERS)
    if len(config.bg_iou) != 2 or not config.bg_iou[0] < config.bg_iou[1]:
        raise UserError(f"solver.bg_iou={config.bg_iou}: should be two overlaps, the first below the second.")
    if config.bg_iou[1] > config.fg_iou:
        raise UserError(
            f"solver.bg_iou={config.bg_iou}: a RoI with an overlap of {config.fg_iou:g} (solver.fg_iou) would be both "
            "foreground and background; its second number should be at most that."
        )


def speed_and_memory(model: FastRCNN, config: RuntimeConfig, on: torch.device) -> None:
    """Makes the model train as `runtime.compile` and `runtime.checkpoint_activations` say.

    What is compiled is the trunk, and fc6 and fc7 with what is between them, each when it is first called and for any
    size; RoI pooling, which has its own kernels, the two outputs and the loss are not. Names of weights stay.
    """
    model.trunk.recompute = config.checkpoint_activations
    if config.compile:
        compiler = os.environ.get("CXX", "g++")
        if on.type == "cpu" and shutil.which(compiler) is None:
            raise UserError(
                f"runtime.compile=true: torch.compile needs a C++ compiler on the processor, and there is no "
                f"{compiler}. Install one, name it in the environment variable CXX, or leave the key out."
            )
        model.trunk.compile(dynamic=True)
        model.head.compile(dynamic=True)


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


def freeze_unused(model: FastRCNN, config: SolverConfig) -> None:
    """Keeps weights that the loss does not depend on as they are: without a gradient they would only decay, and several
    processes would wait for it."""
    for name in model.trunk.network.above(model.roi_features):
        model.trunk.convs[name].requires_grad_(False)
        if name in model.trunk.norms:
            model.trunk.norms[name].requires_grad_(False)
    if config.box_weight == 0:
        model.bbox_pred.requires_grad_(False)


def delta_statistics_of(train_set: DetectionDataset, num_classes: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Mean and deviation (classes + 1, 4) of the regression targets over the training set."""
    pairs = (train_set.truth_and_proposals(i) for i in range(len(train_set)))
    return delta_statistics(pairs, num_classes, config.solver.fg_iou, config.data.flip, config.model.class_agnostic)


def set_delta_statistics(model: FastRCNN, train_set: DetectionDataset, config: TrainConfig) -> None:
    """Computes mean and deviation of the regression targets over the training set into the model's buffers."""
    mean, std = delta_statistics_of(train_set, model.num_classes, config)
    model.delta_mean.copy_(mean)
    model.delta_std.copy_(std)


def sampler(config: SolverConfig, model: FastRCNN) -> RoISampler:
    """Draws a step's RoIs; targets are normalised by the model's statistics."""
    return RoISampler(
        model.delta_mean.cpu(),
        model.delta_std.cpu(),
        config.rois_per_image,
        config.fg_fraction,
        config.fg_iou,
        (config.bg_iou[0], config.bg_iou[1]),
    )


def svm(config: SvmConfig) -> SvmSettings:
    """How SVMs are trained."""
    return SvmSettings(
        c=config.c,
        bias_scaling=config.bias_scaling,
        positive_weight=config.positive_weight,
        negative_iou=config.negative_iou,
        retrain_after=config.retrain_after,
        seed=config.runtime.seed,
    )


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


def detection(config: DetectionConfig, classifier: str = "softmax") -> DetectionSettings:
    """How scores become detections."""
    check_threshold("detection.score_threshold", config.score_threshold, classifier)
    return DetectionSettings(**asdict(config))


def check_threshold(key: str, value: float | None, classifier: str) -> None:
    """Raises UserError for a threshold that is no probability where scores are; margins can be any number."""
    if classifier == "softmax" and value is not None and not 0 <= value <= 1:
        raise UserError(f"{key}={value}: should be from 0 to 1, as the scores are probabilities.")
