"""What eval and detect share: a trained model and the configuration it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.cli.checkpoints import opened, require, run_of
from fastrcnn.cli.compose import compose
from fastrcnn.cli.derived import network

if TYPE_CHECKING:
    import torch

    from fastrcnn.inference import AnyNetwork


def load(verb: str, arguments: list[str]) -> tuple[Any, AnyNetwork, list[str], Path]:
    """Configuration, model on its device, names of the classes, and folder of the run.

    The configuration is that of the training, with the arguments on top. Raises UserError.
    """
    require(verb, arguments)
    config, path, content = opened(verb, compose(verb, arguments), arguments)
    from fastrcnn import build

    build.threads(config.runtime)
    return config, network_of(path, content, build.device(config.runtime)), content["classes"], run_of(path)


def network_of(path: Path, content: dict[str, Any], device: torch.device) -> AnyNetwork:
    """The network of what `opened` gave; an .onnx file's runs where it was opened for. Raises UserError."""
    if "onnx" in content:
        return content["onnx"]
    return network(path, content["config"], content["classes"], content["model"], device)
