"""Open the models that `checkpoint=` and `start=` accept: a run, a .pt file, a detector's .caffemodel, or an exported
.safetensors file. `checkpoint=` of `eval` and `detect` also accepts an exported .onnx file.

.caffemodel and .safetensors files are converted to checkpoints, so all commands accept them.
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
    """The checked content of a checkpoint. The method `model` creates its network.

    file: the checkpoint. classes: class names; label k is classes[k - 1]. step: training step; 0 for a .caffemodel.
    config: the groups of the training configuration as nested dicts, with all keys. state: the state dict. record: more
    information about the training, see inference/description.py. metrics: evaluation results, if the file contains
    them. best: the best mAP (0 to 1) of the run so far, or -1 if unknown.
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
        """Return the folder of the run that the checkpoint belongs to; see run_of."""
        return run_of(self.file)

    def model(self, device: torch.device) -> FastRCNN:
        """Create the network with its weights, in evaluation mode."""
        import torch

        from fastrcnn.build import models

        model = models.trained_model(self.config, len(self.classes))
        model.load_state_dict(self.state)
        return model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def compose_for(verb: str, arguments: list[str]) -> Any:
    """Compose the configuration of a command from its arguments only, without the checkpoint's configuration.

    Raises UserError if the arguments do not name a checkpoint. This is checked before Hydra is imported.
    """
    given = dict(a.split("=", 1) for a in check_overrides(verb, arguments))
    if given.get("checkpoint", "null") == "null":
        exported = ".safetensors or .onnx" if verb in ("eval", "detect") else ".safetensors"
        raise UserError(
            f"No model is given. Use `fastrcnn {verb} checkpoint=PATH`, where PATH is the folder of a run, "
            f"outputs/NAME for the newest run of that name, a .pt file, an exported {exported} file, or a .caffemodel "
            "of a detector."
        )
    return compose(verb, arguments)


def load(verb: str, arguments: list[str]) -> tuple[Any, Network, list[str], Path]:
    """Return the configuration of a command, and the network, class names and run folder of its checkpoint."""
    config = compose_for(verb, arguments)
    from fastrcnn.build import machine

    network, names, run = open_network(config, arguments)
    machine.threads(config.runtime)
    return config, network, names, run


def open_network(config: Any, given: Collection[str]) -> tuple[Network, list[str], Path]:
    """Load the network of `config.checkpoint`, and return it with its class names and the folder of its run.

    The training configuration is copied to `config`, except for the groups and keys in `given` (KEY or KEY=VALUE). The
    weights of the network are rounded to runtime.precision, except in an .onnx file. Raises UserError if the checkpoint
    is missing or invalid, or if the device is not available.
    """
    from fastrcnn.build import machine

    path = Path(config.checkpoint).expanduser()
    if path.suffix == ".onnx":
        from fastrcnn.inference.onnx_network import OnnxNetwork, describe

        device = None if config.runtime.device == "auto" else machine.device(config.runtime)
        description = describe(path)
        names = list(description.classes)
        stored = checked_config(path, description.config, names)
        network = OnnxNetwork(path, device, config.runtime.threads)
        _say_proposals(path, description.record, config)
        _take_threshold(description.record, config)
        _take_over(config, stored, given, path)
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
    """Read the checkpoint `config.checkpoint`, and copy its configuration to `config` as open_network does.

    Raises UserError if the checkpoint is missing, invalid or an .onnx file.
    """
    trained = read(config.checkpoint, config)
    _take_over(config, trained.config, given, trained.file)
    return trained


def _take_over(config: Any, base: dict[str, Any], given: Collection[str], path: Path) -> None:
    if "runtime" in base:  # another machine's numbers of threads and workers
        base = base | {"runtime": base["runtime"] | {"threads": None, "workers": None}}
    inherit(config, base, [key.partition("=")[0] for key in given])
    alone = base.get("solver", {}).get("box_weight") == 0
    if alone and "detection" in groups(type(config)) and config.detection.box_regression:
        log.info("%s was trained without box regression, so the boxes of detections are the unchanged RoIs", path)
        config.detection.box_regression = False


def _take_threshold(record: Mapping[str, Any], config: Any) -> None:
    """Set draw_threshold, if it is null, to the threshold with the best F1 in the evaluation of the checkpoint."""
    if getattr(config, "draw_threshold", 0.0) is None and "draw_threshold" in record:
        config.draw_threshold = record["draw_threshold"]
        log.info(
            "Using draw_threshold=%.2f, the threshold with the best F1 when the checkpoint was evaluated",
            config.draw_threshold,
        )


def read(where: str, config: Any) -> Trained:
    """Read the checkpoint at `where`: a file, the folder of a run, or a folder of runs, whose newest run is used.

    config: the configuration of the command, which provides the classes of a .caffemodel. Raises UserError if the
    checkpoint is missing, invalid or an .onnx file.
    """
    named = Path(where).expanduser()
    if named.suffix == ".onnx":
        raise UserError(
            f"{named}: an .onnx file can only be used for evaluation and detection. Use the run that it was exported "
            "from."
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
    """Return the training record of a checkpoint, which inference/description.py describes.

    config: the checked configuration of the content. Raises UserError if the record is invalid.
    """
    from fastrcnn.deploy.recipe import training_record
    from fastrcnn.inference.description import sound_record

    kept = content.get("record", {})
    if not sound_record(kept):
        raise UserError(f"{path}: the training record in the checkpoint is invalid. Use another checkpoint.")
    if "recipe" in kept:
        return dict(kept)
    return training_record({**config, "start": content["config"].get("start")}, content["step"], kept)


def check_content(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Check the content of a checkpoint. Return it, with default values for missing keys of its configuration.

    Raises UserError if the configuration or the classes would be invalid on the command line, or if the weights do not
    fit the network. The weights are checked before memory for the network is allocated.
    """
    from fastrcnn.build import models
    from fastrcnn.weights.fitting import in_lines, misfits

    config = checked_config(path, content["config"], content["classes"])
    if problems := misfits(content["model"], models.trained_shapes(config, len(content["classes"]))):
        raise UserError(
            f"{path}: the weights do not fit the model configuration in this file:\n{in_lines(problems)}\n"
            "Use another checkpoint."
        )
    return content | {"config": config}


def checked_config(path: Path, config: Any, names: list[str]) -> dict[str, Any]:
    """Check a file's configuration and class names; return its groups with all keys. Raises UserError if invalid."""
    from fastrcnn.build import annotations, models

    try:
        whole = fill(TrainConfig, config)
        lacking = [name for name in ("model", "data", "detection") if name not in config]
        if lacking:
            raise UserError(f"it does not contain the group(s) {', '.join(lacking)}.")
        models.check_model(whole.model)
        annotations.checked_names(names, whole.data.test)
    except annotations.EncodingError as error:
        raise UserError(f"{path}: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: the configuration in this file is damaged: {error}") from None
    return {name: group for name, group in asdict(whole).items() if name in config and isinstance(group, dict)}


def _read_safetensors(path: Path, config: Any) -> Trained:
    """Read a detector that `fastrcnn export format=safetensors` wrote. Raises UserError for any other file.

    config: the configuration of the command.
    """
    import torch

    from fastrcnn.inference.description import FORMAT, read_metadata
    from fastrcnn.weights import fitting, safetensors_files

    if not path.is_file():
        raise UserError(f"{path}: this checkpoint does not exist. Check the path.")
    state, metadata = safetensors_files.read(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: this file is not a detector. Its metadata has no format '{FORMAT}', so its network and classes "
            "are unknown. `fastrcnn export checkpoint=RUN format=safetensors` writes detectors. To initialise training "
            f"with these weights, set model.weights={path}."
        )
    description = read_metadata(metadata, str(path))
    wide = [f"{name}: {values.dtype}" for name, values in state.items() if values.dtype == torch.float64]
    if problems := wide + fitting.unusable(state):
        raise UserError(
            f"{path}: the file contains weights that `fastrcnn export` does not write:\n{fitting.in_lines(problems)}\n"
            "Export the detector again."
        )
    names = list(description.classes)
    content = check_content(path, {"classes": names, "config": description.config, "model": state})
    record, metrics = dict(description.record), dict(description.metrics)
    _say_proposals(path, record, config)
    return Trained(path, names, description.step, content["config"], state, record, metrics)


def _say_proposals(path: Path, record: Mapping[str, Any], config: Any) -> None:
    """Warn that an exported file does not contain the proposals used in training, unless data.proposals is set."""
    if record.get("proposals") and config.data.proposals is None:
        log.warning(
            "%s was trained with proposals from %s. The exported file does not contain these proposals, so selective "
            "search is used, which generates different ones. To use the original proposals, set data.proposals to the "
            "path of the proposal store",
            path,
            record["proposals"],
        )


def _read_caffe(path: Path, config: Any) -> Trained:
    """Convert a detector in a .caffemodel to a checkpoint of step 0 with the configuration of the command."""
    if config.data.classes is None:
        raise UserError(
            f"{path}: a .caffemodel does not contain class names. Set data=voc07 for Girshick's VOC detectors, or "
            "data.classes=[...] (in Python: classes=[...]) with the names in the order that was used in training."
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
    """Return the evaluation results of a checkpoint, a dict by split, for its model card; see deploy/card.py."""
    if trained.metrics:
        return trained.metrics
    from fastrcnn.build.annotations import split_name
    from fastrcnn.deploy.card import evaluations

    data, own = trained.config["data"], None
    if trained.file.name == "best.pt" and trained.file.parent.name == "checkpoints" and trained.best >= 0:
        own = {"split": split_name(data["test"]), "metric": data["metric"], "mAP": trained.best}
    return evaluations(trained.run, own)


def run_of(path: Path) -> Path:
    """Return the folder of the run that a checkpoint file belongs to.

    .caffemodel, .safetensors and .onnx files are not in the folder of a run. For them, the result is outputs/NAME,
    where NAME is the name of the file without its suffix.
    """
    if path.suffix in (".caffemodel", ".safetensors", ".onnx"):
        return Path("outputs") / path.stem
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent
