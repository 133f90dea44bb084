"""What eval and detect share: a trained model and the configuration it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.cli.checkpoints import opened, require, run_of
from fastrcnn.cli.compose import compose
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.model.fast_rcnn import FastRCNN


def load(verb: str, arguments: list[str]) -> tuple[Any, FastRCNN, list[str], Path]:
    """Configuration, model on its device, names of the classes, and folder of the run.

    The configuration is that of the training, with the arguments on top. Raises UserError.
    """
    require(verb, arguments)
    config, path, content = opened(verb, compose(verb, arguments), arguments)
    from fastrcnn import build

    model = build.trained_model(content["config"], len(content["classes"]))
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit the model they were saved with: {error}") from None
    return config, placed(model, config), content["classes"], run_of(path)


def placed(model: FastRCNN, config: Any) -> FastRCNN:
    """The model on the device that the configuration names; sets the number of threads too."""
    import torch

    from fastrcnn import build

    build.threads(config.runtime)
    model.to(build.device(config.runtime), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
