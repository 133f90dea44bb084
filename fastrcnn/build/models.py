"""Build networks and detection settings from the configuration or a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastrcnn.config.values import one_of
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN, freeze_before
from fastrcnn.model.head import largest_rank
from fastrcnn.model.networks import NETWORKS
from fastrcnn.settings import DetectionSettings, ModelSettings, SolverSettings
from fastrcnn.training import checkpoint
from fastrcnn.weights import caffe, pretrained
from fastrcnn.weights.fitting import in_lines, misfits, needs_scale

log = logging.getLogger("fastrcnn")


def model(config: ModelSettings, num_classes: int, load: bool = True, device: str = "cpu") -> FastRCNN:
    """Build the network on `device`, independent of torch's default device.

    load: whether to load config.weights. Pass False if the weights of a checkpoint are loaded afterwards. Raises
    UserError if the settings are invalid or the weights do not fit.
    """
    check_model(config)
    with torch.device(device):
        of_weights = ("weights", "pixels", "finetune_from")
        built = FastRCNN(num_classes, **{k: v for k, v in vars(config).items() if k not in of_weights})
    if load and config.weights is not None:
        state, source = weights(config)
        fresh = pretrained.load_pretrained(built, state, source, config.pixels)
        check_frozen(config, fresh, source)
        if config.scale_maps is None and needs_scale(built, fresh):
            built.map_scale = built.delta_mean.new_ones(len(built.strides))
        if built.map_scale is not None and config.scale_maps is False:
            raise UserError(
                f"model.scale_maps=false: {source} was trained with scaled feature maps. Remove model.scale_maps."
            )
    elif load and config.finetune_from != NETWORKS[config.network].conv_names[0]:
        log.warning(
            "model.finetune_from=%s without model.weights: all earlier layers are frozen at their random initial "
            "weights. To train all layers, set model.finetune_from=%s",
            config.finetune_from,
            NETWORKS[config.network].conv_names[0],
        )
    freeze_before(built, config.finetune_from)
    return built


def weights(config: ModelSettings) -> tuple[dict[str, Tensor], str]:
    """Return the state dict of `config.weights`, and its name for messages. Raises UserError if it cannot be read."""
    assert config.weights is not None
    if config.weights == "imagenet":
        if config.network != "vgg16":
            raise UserError(
                f"model.weights=imagenet: torchvision has no weights for {config.network}. Set model.weights to a file "
                "(e.g. Girshick's .caffemodel), or to null to train from scratch."
            )
        return pretrained.torchvision_vgg16(), "ImageNet weights"
    path = Path(config.weights).expanduser()
    if path.is_dir() or checkpoint.is_one(path):
        path = checkpoint.resolve(path, "model.weights")
        return checkpoint.load(path)["model"], str(path)
    return pretrained.read_state_dict(path), config.weights


def check_frozen(config: ModelSettings, fresh: Mapping[str, str], source: str) -> None:
    """Raise UserError if a layer with random initial weights would be frozen."""
    order = NETWORKS[config.network].finetune_from
    frozen = order[: order.index(config.finetune_from)]
    stuck = [name for name in fresh if name in frozen or (name == "reduce" and "fc6" in frozen)]
    if stuck:
        first = stuck[0] if stuck[0] in order else "fc6"
        raise UserError(
            f"model.finetune_from={config.finetune_from}: {' and '.join(stuck)} would be frozen at random initial "
            f"weights, because {source} has no weights that fit ({fresh[stuck[0]]}). Set model.finetune_from={first}."
        )


def check_model(config: ModelSettings) -> None:
    """Raise UserError for settings that do not define a valid network."""
    network = NETWORKS[config.network]
    one_of("model.finetune_from", config.finetune_from, network.finetune_from)
    for name in config.roi_features:
        one_of("model.roi_features", name, network.conv_names)
    pooled = network.channels_of(network.conv_names[-1], config.width) * config.roi_size**2
    if config.head is not None and len(config.head) != 2:
        raise UserError(
            f"model.head={config.head}: expected two integers, the output sizes of fc6 and fc7, such as [1024,1024]."
        )
    fc6, fc7 = network.features_of(config.width, config.head)
    check_rank("model.fc6_rank", config.fc6_rank, fc6, pooled)
    check_rank("model.fc7_rank", config.fc7_rank, fc7, fc6)


def check_rank(key: str, rank: int | None, rows: int, columns: int) -> None:
    """Raise UserError if two layers of this rank would not have fewer weights than one layer of rows x columns."""
    if rank is not None and rank > largest_rank(rows, columns):
        raise UserError(
            f"{key}={rank}: two layers of this rank have {rank * (rows + columns):,} weights, but the original layer "
            f"has only {rows * columns:,}. To make it smaller, use a rank of at most {largest_rank(rows, columns)}."
        )


def trained_model(config: dict[str, Any], num_classes: int) -> FastRCNN:
    """Build the network of a run's configuration (nested dicts) without loading weights."""
    return model(ModelSettings(**config["model"]), num_classes, load=False)


class _WithoutNumbers(TorchFunctionMode):
    """Context manager that skips random initialisation, which has no effect on the meta device except slow imports."""

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def trained_shapes(config: dict[str, Any], num_classes: int) -> dict[str, Tensor]:
    """Return the state dict of the network of a run's configuration, on the meta device (shapes and dtypes only)."""
    with _WithoutNumbers():
        return model(ModelSettings(**config["model"]), num_classes, load=False, device="meta").state_dict()


def caffe_detector(path: Path, names: Sequence[str]) -> tuple[ModelSettings, FastRCNN]:
    """Load a detector that was trained with the author's Caffe code, and return its settings and the network.

    Raises UserError if it is not one of the paper's networks, or if the number of `names` is not its number of classes.
    """
    state = caffe.read(path)
    config, num_classes = pretrained.detector_settings(state, str(path))
    if num_classes != len(names):
        raise UserError(
            f"{path}: this detector has {num_classes} classes, but data.classes has {len(names)} "
            f"({', '.join(names[:5])}{' ...' if len(names) > 5 else ''}). Set data.classes to the class names "
            "of this detector, in the order that was used in training. To fine-tune its layers on other classes, set "
            f"model.weights={path}."
        )
    shapes = trained_shapes({"model": asdict(config)}, num_classes)
    wanted = {k: v for k, v in shapes.items() if k.startswith((*pretrained.PARTS, *pretrained.OUTPUTS))}
    if problems := misfits(pretrained.translate(state), wanted):
        raise UserError(f"{path}: the weights do not fit the model ({pretrained.DETECTOR_FITS}):\n{in_lines(problems)}")
    built = model(config, len(names), load=False)
    pretrained.load_detector(built, state, str(path))
    return config, built


def freeze_unused(model: FastRCNN, config: SolverSettings) -> None:
    """Freeze weights that the loss does not depend on.

    Otherwise weight decay would change them, and distributed processes would wait for their gradients.
    """
    for name in model.trunk.network.above(model.roi_features):
        model.trunk.convs[name].requires_grad_(False)
        if name in model.trunk.norms:
            model.trunk.norms[name].requires_grad_(False)
    if config.box_weight == 0:
        model.bbox_pred.requires_grad_(False)


def detection(config: DetectionSettings, classifier: str = "softmax") -> DetectionSettings:
    """Check the detection settings and return them. Raises UserError for a threshold outside the range of scores."""
    check_threshold("detection.score_threshold", config.score_threshold, classifier)
    return config


def check_threshold(key: str, value: float | None, classifier: str) -> None:
    """Raise UserError for a threshold outside 0 to 1 if the classifier is a softmax. SVM margins can be any number."""
    if classifier == "softmax" and value is not None and not 0 <= value <= 1:
        raise UserError(f"{key}={value:g}: must be from 0 to 1, because scores are probabilities.")
