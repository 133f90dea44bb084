"""Reading weights into the network."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.vgg16 import CONV_NAMES

LAYER_WEIGHT = re.compile(r"features\.(\d+)\.weight$")  # in torchvision's VGG16


def torchvision_vgg16() -> dict[str, Tensor]:
    """State dict of torchvision's VGG16 trained on ImageNet; downloaded once into torch's hub folder.

    Raises UserError where it cannot be downloaded.
    """
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.split("-")[1])
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"The ImageNet weights of VGG16 could not be downloaded ({error}).\n"
                f"On a machine with network, fetch {url} and put the file as\n"
                f"  {path}\n"
                "or name it: model.weights=/path/to/vgg16.pth. To train without them, from scratch: model=vgg16_slim."
            ) from error
    return read_state_dict(path)  # torch.hub would run what a changed file asks it to


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.pth` file, read without running anything in it. Raises UserError."""
    if not path.is_file():
        raise UserError(f"model.weights: there is no file {path}. Give 'imagenet', or the path of a state dict (.pth).")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here, from zipfile, pickle and its own
        raise UserError(f"{path}: not a file of weights that can be read safely ({type(error).__name__}).") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path}: expected a state dict, names to tensors.")
    return state


def translate_vgg16(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with torchvision's names (`features.0.weight`, `classifier.0.weight`) with ours.

    The classifier's last layer, ImageNet's thousand classes, is left out. With batch normalisation too
    (torchvision's vgg16_bn).
    """
    indices = sorted(int(m[1]) for k in state if (m := LAYER_WEIGHT.match(k)))
    convs = [i for i in indices if state[f"features.{i}.weight"].dim() == 4]
    norms = [i for i in indices if state[f"features.{i}.weight"].dim() == 1]
    translated = {}
    for kind, numbers in (("convs", convs), ("norms", norms)):
        for name, i in zip(CONV_NAMES, numbers, strict=False):
            for key, value in state.items():
                if key.startswith(f"features.{i}."):
                    translated[f"trunk.{kind}.{name}.{key.split('.')[2]}"] = value
    for name, i in (("fc6", 0), ("fc7", 3)):
        for part in ("weight", "bias"):
            if f"classifier.{i}.{part}" in state:
                translated[f"head.{name}.{part}"] = state[f"classifier.{i}.{part}"]
    return translated


def load_vgg16(model: FastRCNN, state: dict[str, Tensor], source: str) -> None:
    """Puts VGG16 weights with torchvision's names into the trunk and fc6, fc7 of `model`.

    Raises UserError with the layers and shapes that do not fit; nothing is loaded then.
    """
    translated = translate_vgg16(state)
    wanted = {k: v for k, v in model.state_dict().items() if k.startswith(("trunk.", "head."))}
    problems = [
        f"  {k}: missing, {tuple(v.shape)} wanted"
        for k, v in wanted.items()
        if k not in translated and not k.endswith("num_batches_tracked")  # which files from before 2018 lack
    ]
    problems += [
        f"  {k}: {tuple(v.shape)}, {tuple(wanted[k].shape)} wanted" if k in wanted else f"  {k}: not in the model"
        for k, v in translated.items()
        if k not in wanted or v.shape != wanted[k].shape
    ]
    if problems:
        raise UserError(
            f"{source}: these weights do not fit the model (they fit model=vgg16, width 1, roi_size 7):\n"
            + "\n".join(problems[:12])
            + (f"\n  and {len(problems) - 12} more" if len(problems) > 12 else "")
        )
    nn.Module.load_state_dict(model, translated, strict=False)
