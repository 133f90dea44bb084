"""What eval and detect share: a trained model and the configuration it was trained with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.cli.compose import check_overrides, compose
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.model.fast_rcnn import FastRCNN

log = logging.getLogger("fastrcnn")


def load(verb: str, arguments: list[str]) -> tuple[Any, FastRCNN, list[str], Path]:
    """Configuration, model on its device, names of the classes, and folder of the run.

    The configuration is that of the training, with the arguments on top. Raises UserError.
    """
    given = dict(a.split("=", 1) for a in check_overrides(verb, arguments))
    where = given.get("checkpoint", "null")
    if where == "null":
        raise UserError(f"which model? fastrcnn {verb} checkpoint=RUN, the folder of a run or a .pt file.")
    first = compose(verb, [a for a in arguments if a.startswith("checkpoint=")])
    named = Path(first.checkpoint).expanduser()
    if named.suffix == ".caffemodel":
        return from_caffe(named, compose(verb, arguments))
    from fastrcnn import build
    from fastrcnn.training import checkpoint

    path = checkpoint.resolve(named)
    content = checkpoint.load(path)
    config = compose(verb, arguments, base=content["config"])
    without_untrained(config, content["config"])
    model = build.trained_model(content["config"], len(content["classes"]))
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit the model they were saved with: {error}") from None
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return config, placed(model, config), content["classes"], run


def without_untrained(config: Any, trained: dict[str, Any]) -> None:
    """Switches the box regression off for a network that was trained without it. trained: its configuration."""
    if trained["solver"]["box_weight"] == 0 and config.detection.box_regression:
        log.info("trained without box regression (solver.box_weight=0): RoIs are taken as they are")
        config.detection.box_regression = False


def from_caffe(path: Path, config: Any) -> tuple[Any, FastRCNN, list[str], Path]:
    """What `load` returns, of a detector in a .caffemodel. It names no classes: the configuration must.

    Results go to outputs/<name of the file>. Raises UserError.
    """
    if config.data.classes is None:
        raise UserError(
            f"{path}: a .caffemodel does not name its classes. Say data=voc07 for the author's detectors of VOC, or "
            "data.classes=[...] with the names in the order they were trained in."
        )
    from fastrcnn import build, build_data

    names = build_data.classes(config.data)
    model = placed(build.caffe_detector(path, names), config)
    return config, model, names, Path("outputs") / path.stem


def placed(model: FastRCNN, config: Any) -> FastRCNN:
    """The model on the device that the configuration names; sets the number of threads too."""
    import torch

    from fastrcnn import build

    build.threads(config.runtime)
    model.to(build.device(config.runtime), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
