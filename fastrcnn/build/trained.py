"""What eval and detect share: a trained model and the configuration it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.build.checkpoints import opened, require, run_of
from fastrcnn.build.derived import network
from fastrcnn.config.compose import compose

if TYPE_CHECKING:
    import torch

    from fastrcnn.inference.detect import AnyNetwork


def load(verb: str, arguments: list[str]) -> tuple[Any, AnyNetwork, list[str], Path]:
    """Configuration, model on its device, names of the classes, and folder of the run.

    The configuration is that of the training, with the arguments on top. Raises UserError.
    """
    require(verb, arguments)
    config, path, content = opened(verb, compose(verb, arguments), arguments)
    from fastrcnn.build import machine

    machine.threads(config.runtime)
    return config, network_of(path, content, machine.device(config.runtime)), content["classes"], run_of(path)


def network_of(path: Path, content: dict[str, Any], device: torch.device) -> AnyNetwork:
    """The network of what `opened` gave; an .onnx file's runs where it was opened for. Raises UserError."""
    if "onnx" in content:
        return content["onnx"]
    return network(path, content["config"], content["classes"], content["model"], device)
