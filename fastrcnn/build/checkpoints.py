"""What `checkpoint=` and `start=` may name: a run's folder, a .pt file, a detector's .caffemodel or an exported .onnx.

The last two are given the form of a checkpoint: a .caffemodel so that every verb takes it as one; the network of an
.onnx file can be run, and no more.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastrcnn.config.compose import check_overrides, compose, to_dict
from fastrcnn.config.schema import DetectConfig, EvalConfig, TrainConfig, groups
from fastrcnn.config.values import fill
from fastrcnn.errors import UserError

log = logging.getLogger("fastrcnn")


def require(verb: str, arguments: list[str]) -> None:
    """Raises UserError where no checkpoint is named, before Hydra or torch are needed."""
    given = dict(a.split("=", 1) for a in check_overrides(verb, arguments))
    if given.get("checkpoint", "null") == "null":
        raise UserError(
            f"which model? fastrcnn {verb} checkpoint=RUN, the folder of a run, a .pt file, or a detector's "
            ".caffemodel."
        )


def opened(verb: str, config: Any, arguments: list[str]) -> tuple[Any, Path, dict[str, Any]]:
    """The configuration of the run that `config.checkpoint` names with the arguments on top, its file and content.

    config: composed of the arguments alone. Raises UserError.
    """
    path, content = read(config.checkpoint, config)
    found = compose(verb, arguments, base=content["config"])
    alone = content["config"].get("solver", {}).get("box_weight") == 0
    if alone and "detection" in groups(type(found)) and found.detection.box_regression:
        log.info("%s: trained without box regression, so RoIs are taken as they are", path)
        found.detection.box_regression = False
    return found, path, content


def read(where: str, config: Any) -> tuple[Path, dict[str, Any]]:
    """The checkpoint's file that a user means by `where`, and its content.

    config: of the verb; a .caffemodel, which names no classes, takes them from there. Raises UserError.
    """
    named = Path(where).expanduser()
    if named.suffix == ".onnx":
        return named, _of_onnx(named, config)
    if named.suffix == ".caffemodel":
        return named, _of_caffe(named, config)
    from fastrcnn.training import checkpoint

    path = checkpoint.resolve(named)
    return path, checked(path, checkpoint.load(path))


def checked(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint, the groups of its configuration with all their keys.

    Raises UserError, before anything is allocated, for a configuration or classes that are out of the bounds which the
    command line has, and for weights that are not those of the network that they describe.
    """
    from fastrcnn.build import models
    from fastrcnn.weights.pretrained import misfits

    config = checked_config(path, content["config"], content["classes"])
    if problems := misfits(content["model"], models.trained_shapes(config, len(content["classes"]))):
        raise UserError(
            f"{path}: the weights do not fit the model they were saved with:\n{problems}\nUse another checkpoint."
        )
    return content | {"config": config}


def checked_config(path: Path, config: Any, names: list[str]) -> dict[str, Any]:
    """The groups of a configuration in a file, with all their keys. Raises UserError; see checked."""
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
    return {name: group for name, group in to_dict(whole).items() if name in config and isinstance(group, dict)}


def _of_caffe(path: Path, config: Any) -> dict[str, Any]:
    """A detector in a .caffemodel as a checkpoint of step 0 that was trained by the verb's configuration."""
    if config.data.classes is None:
        raise UserError(
            f"{path}: a .caffemodel does not name its classes. Say data=voc07 for the author's detectors of VOC, or "
            "data.classes=[...] (from Python: classes=[...]) with the names in the order they were trained in."
        )
    from fastrcnn.build import annotations, models

    names = annotations.classes(config.data)
    model_config, model = models.caffe_detector(path, names)
    known = copy.deepcopy(config)
    if known.data.root is not None and Path(known.data.root).expanduser().exists():
        annotations.absolute_paths(known.data)
    whole = to_dict(known)
    return {
        "step": 0,
        "best": -1.0,
        "classes": names,
        "config": {name: whole[name] for name in groups(type(config))} | {"model": asdict(model_config)},
        "model": model.state_dict(),
    }


def _of_onnx(path: Path, config: Any) -> dict[str, Any]:
    """A network of ONNX, under the key `onnx`, with what a checkpoint has beside the weights."""
    if not isinstance(config, (DetectConfig, EvalConfig)):
        raise UserError(
            f"{path}: an .onnx file can be evaluated and detected with, and no more. Give the run that it was exported "
            "from."
        )
    from fastrcnn.build import machine
    from fastrcnn.inference.onnx_network import OnnxNetwork

    device = None if config.runtime.device == "auto" else machine.device(config.runtime)
    network = OnnxNetwork(path, device, config.runtime.threads)
    of = network.description
    config = checked_config(path, of.config, list(of.classes))
    return {"step": of.step, "best": -1.0, "classes": list(of.classes), "config": config, "onnx": network}


def run_of(path: Path) -> Path:
    """The folder of the run that a checkpoint's file belongs to; of a .caffemodel or an .onnx outputs/<its name>, as
    what lies beside it is none of ours."""
    if path.suffix in (".caffemodel", ".onnx"):
        return Path("outputs") / path.stem
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent
