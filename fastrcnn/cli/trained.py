"""What eval and detect share: a trained model and the configuration it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.cli.checkpoints import opened, require, run_of
from fastrcnn.cli.compose import compose
from fastrcnn.cli.derived import network

if TYPE_CHECKING:
    from fastrcnn.model.fast_rcnn import FastRCNN


def load(verb: str, arguments: list[str]) -> tuple[Any, FastRCNN, list[str], Path]:
    """Configuration, model on its device, names of the classes, and folder of the run.

    The configuration is that of the training, with the arguments on top. Raises UserError.
    """
    require(verb, arguments)
    config, path, content = opened(verb, compose(verb, arguments), arguments)
    from fastrcnn import build

    build.threads(config.runtime)
    names = content["classes"]
    model = network(path, content["config"], names, content["model"], build.device(config.runtime))
    return config, model, names, run_of(path)
