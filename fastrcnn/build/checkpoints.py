"""What `checkpoint=` and `start=` may name: a run's folder, a .pt file, a detector's .caffemodel, or an exported
.safetensors or .onnx.

A .caffemodel and a .safetensors are given the form of a checkpoint, so that every verb takes them as one. The network
of an .onnx file can be run, and no more.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.config.compose import check_overrides, compose, inherit
from fastrcnn.config.schema import TrainConfig, groups
from fastrcnn.config.values import fill
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastrcnn.inference.network import Network
    from fastrcnn.model.fast_rcnn import FastRCNN

log = logging.getLogger("fastrcnn")


@dataclass(frozen=True)
class Trained:
    """A checkpoint that was read and checked, its network not made yet.

    classes: names; label k is classes[k - 1]. step: of the training; 0 of a .caffemodel. config: by group the
    configuration that it was trained with, with all keys. state: the weights. record: what else is known of its
    training, see inference/description.py. metrics: of evaluations, where the file itself has them. best: the mAP of
    the run's best checkpoint, -1 where it is not known.
    """

    file: Path
    classes: list[str]
    step: int
    config: dict[str, Any]
    state: dict[str, Tensor]
    record: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    best: float = -1.0

    @property
    def run(self) -> Path:
        """The folder of its run; see run_of."""
        return run_of(self.file)

    def model(self, device: torch.device) -> FastRCNN:
        """The network with its weights, for detection."""
        import torch

        from fastrcnn.build import models

        model = models.trained_model(self.config, len(self.classes))
        model.load_state_dict(self.state)
        return model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def compose_for(verb: str, arguments: list[str]) -> Any:
    """The verb's configuration of the arguments alone, which have to name a checkpoint.

    Raises UserError where they do not, before Hydra is needed.
    """
    given = dict(a.split("=", 1) for a in check_overrides(verb, arguments))
    if given.get("checkpoint", "null") == "null":
        raise UserError(
            f"which model? fastrcnn {verb} checkpoint=RUN, the folder of a run, a .pt or exported .safetensors "
            "file, or a detector's .caffemodel."
        )
    return compose(verb, arguments)


def load(verb: str, arguments: list[str]) -> tuple[Any, Network, list[str], Path]:
    """The configuration of the training with the arguments on top, and what `open_network` gives. Raises UserError."""
    config = compose_for(verb, arguments)
    from fastrcnn.build import machine

    network, names, run = open_network(config, arguments)
    machine.threads(config.runtime)
    return config, network, names, run


def open_network(config: Any, given: Collection[str]) -> tuple[Network, list[str], Path]:
    """The network that `config.checkpoint` names, ready to detect, its classes, and the folder of its run.

    Puts the configuration of its training into `config`, but for the groups and keys that are `given`, alone or with
    values. The weights are rounded for good to the precision that it detects in. Raises UserError.
    """
    from fastrcnn.build import machine

    path = Path(config.checkpoint).expanduser()
    if path.suffix == ".onnx":
        from fastrcnn.inference.onnx_network import OnnxNetwork

        device = None if config.runtime.device == "auto" else machine.device(config.runtime)
        network = OnnxNetwork(path, device, config.runtime.threads)
        names = list(network.description.classes)
        _say_proposals(path, network.description.record, config)
        _take_threshold(network.description.record, config)
        _take_over(config, checked_config(path, network.description.config, names), given, path)
        return network, names, run_of(path)
    trained = open_trained(config, given)
    from fastrcnn.inference.network import TorchNetwork
    from fastrcnn.model.fast_rcnn import round_weights

    device = machine.device(config.runtime)
    dtype = machine.precision(config.runtime, device)
    _take_threshold(trained.record, config)
    model = trained.model(device)
    round_weights(model, dtype)
    return TorchNetwork(model, dtype), trained.classes, trained.run


def open_trained(config: Any, given: Collection[str]) -> Trained:
    """The checkpoint that `config.checkpoint` names. Puts its configuration into `config`, as open_network does.

    Raises UserError.
    """
    trained = read(config.checkpoint, config)
    _take_over(config, trained.config, given, trained.file)
    return trained


def _take_over(config: Any, base: dict[str, Any], given: Collection[str], path: Path) -> None:
    inherit(config, base, [key.partition("=")[0] for key in given])
    alone = base.get("solver", {}).get("box_weight") == 0
    if alone and "detection" in groups(type(config)) and config.detection.box_regression:
        log.info("%s: trained without box regression, so RoIs are taken as they are", path)
        config.detection.box_regression = False


def _take_threshold(record: Mapping[str, Any], config: Any) -> None:
    """Puts the threshold that was best in the network's evaluation into the configuration of `detect`, where none is
    given."""
    if getattr(config, "draw_threshold", 0.0) is None and "draw_threshold" in record:
        config.draw_threshold = record["draw_threshold"]
        log.info("draw_threshold=%.2f: the score of the best F1 in its evaluation", config.draw_threshold)


def read(where: str, config: Any) -> Trained:
    """The checkpoint that a user means by `where`.

    config: of the verb; a .caffemodel, which names no classes, takes them from there. Raises UserError.
    """
    named = Path(where).expanduser()
    if named.suffix == ".onnx":
        raise UserError(
            f"{named}: an .onnx file can be evaluated and detected with, and no more. Give the run that it was "
            "exported from."
        )
    if named.suffix == ".caffemodel":
        return _read_caffe(named, config)
    if named.suffix == ".safetensors":
        return _read_safetensors(named, config)
    from fastrcnn.training import checkpoint

    path = checkpoint.resolve(named)
    loaded = checkpoint.load(path)
    content = check_content(path, loaded)
    record = _record(path, loaded, content["config"])
    classes, step, best = content["classes"], content["step"], float(content["best"])
    return Trained(path, classes, step, content["config"], content["model"], record, best=best)


def _record(path: Path, content: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What is known of the training of a checkpoint with this content; see inference/description.py.

    config: that in the content, checked. Raises UserError.
    """
    from fastrcnn.deploy.recipe import training_record
    from fastrcnn.inference.description import sound_record

    kept = content.get("record", {})
    if not sound_record(kept):
        raise UserError(f"{path}: record in the checkpoint is not what training writes. Use another one.")
    if "recipe" in kept:
        return dict(kept)
    return training_record({**config, "start": content["config"].get("start")}, content["step"], kept)


def check_content(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint, the groups of its configuration with all their keys.

    Raises UserError, before anything is allocated, for a configuration or classes that are out of the bounds which the
    command line has, and for weights that are not those of the network that they describe.
    """
    from fastrcnn.build import models
    from fastrcnn.weights.fitting import in_lines, misfits

    config = checked_config(path, content["config"], content["classes"])
    if problems := misfits(content["model"], models.trained_shapes(config, len(content["classes"]))):
        raise UserError(
            f"{path}: the weights do not fit the model they were saved with:\n{in_lines(problems)}\n"
            "Use another checkpoint."
        )
    return content | {"config": config}


def checked_config(path: Path, config: Any, names: list[str]) -> dict[str, Any]:
    """The groups of a configuration in a file, with all their keys. Raises UserError; see check_content."""
    from fastrcnn.build import annotations, models

    try:
        whole = fill(TrainConfig, config)
        lacking = [name for name in ("model", "data", "detection") if name not in config]
        if lacking:
            raise UserError(f"it lacks {', '.join(lacking)}.")
        models.check_model(whole.model)
        annotations.checked_names(names, whole.data.test)
    except annotations.EncodingError as error:
        raise UserError(f"{path}: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: the configuration in it is damaged: {error}") from None
    return {name: group for name, group in asdict(whole).items() if name in config and isinstance(group, dict)}


def _read_safetensors(path: Path, config: Any) -> Trained:
    """A detector that `fastrcnn export format=safetensors` wrote. config: of the verb. Raises UserError for any other
    file."""
    import torch

    from fastrcnn.inference.description import FORMAT, read_metadata
    from fastrcnn.weights import fitting, safetensors_files

    if not path.is_file():
        raise UserError(f"checkpoint: there is no file {path}.")
    state, metadata = safetensors_files.read(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: is not a detector: its metadata has no format '{FORMAT}', so its network and classes are not "
            "known. `fastrcnn export checkpoint=RUN format=safetensors` writes detectors. To begin a training from "
            f"weights alone: model.weights={path}."
        )
    description = read_metadata(metadata, str(path))
    wide = [f"{name}: {values.dtype}" for name, values in state.items() if values.dtype == torch.float64]
    if problems := wide + fitting.unusable(state):
        raise UserError(
            f"{path}: its weights are not what `fastrcnn export` writes:\n{fitting.in_lines(problems)}\n"
            "Export it again."
        )
    names = list(description.classes)
    content = check_content(path, {"classes": names, "config": description.config, "model": state})
    record, metrics = dict(description.record), dict(description.metrics)
    _say_proposals(path, record, config)
    return Trained(path, names, description.step, content["config"], state, record, metrics)


def _say_proposals(path: Path, record: Mapping[str, Any], config: Any) -> None:
    """Says that an exported file does not bring the proposals that it was trained with, unless the verb has some."""
    if record.get("proposals") and config.data.proposals is None:
        log.warning(
            "%s: trained with the proposals of %s, which are not in this file; selective search makes others. To use "
            "those: data.proposals=STORE",
            path,
            record["proposals"],
        )


def _read_caffe(path: Path, config: Any) -> Trained:
    """A detector in a .caffemodel as a checkpoint of step 0 that was trained by the verb's configuration."""
    if config.data.classes is None:
        raise UserError(
            f"{path}: a .caffemodel does not name its classes. Say data=voc07 for the author's detectors of VOC, or "
            "data.classes=[...] (from Python: classes=[...]) with the names in the order they were trained in."
        )
    from fastrcnn.build import annotations, models
    from fastrcnn.deploy.recipe import converted_record

    names = annotations.classes(config.data)
    model_config, model = models.caffe_detector(path, names)
    known = copy.deepcopy(config)
    if known.data.root is not None and Path(known.data.root).expanduser().exists():
        annotations.absolute_paths(known.data)
    whole = asdict(known)
    own = {name: whole[name] for name in groups(type(config))} | {"model": asdict(model_config)}
    return Trained(path, names, 0, own, model.state_dict(), converted_record(path.name))


def evaluations_of(trained: Trained) -> dict[str, Any]:
    """What evaluations found of a checkpoint, by split, for its model card; see deploy/card.py."""
    if trained.metrics:
        return trained.metrics
    from fastrcnn.build.annotations import split_name
    from fastrcnn.deploy.card import evaluations

    data, own = trained.config["data"], None
    if trained.file.name == "best.pt" and trained.file.parent.name == "checkpoints" and trained.best >= 0:
        own = {"split": split_name(data["test"]), "metric": data["metric"], "mAP": trained.best}
    return evaluations(trained.run, own)


def run_of(path: Path) -> Path:
    """The folder of the run that a checkpoint's file belongs to; of a .caffemodel, .safetensors or .onnx outputs/<its
    name>, as what lies beside it is none of ours."""
    if path.suffix in (".caffemodel", ".safetensors", ".onnx"):
        return Path("outputs") / path.stem
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent
