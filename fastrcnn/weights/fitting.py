"""Select the layers of a state dict that fit a network: the trunk, and the layers after it that fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.weights.names import CAFFE_TRUNK, OUTPUTS

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OWN_PIXELS = {"pixel_mean", "pixel_std"}  # only in weights that this project wrote
BUFFERS = ("pixel_mean", "pixel_std", "map_scale", "delta_mean", "delta_std")
ABOVE = ("reduce", "head.fc6", "head.fc7")  # the layers between the trunk and the outputs, bottom to top
SHAPE = "different shape"


@dataclass(frozen=True)
class Fit:
    """The result of `fit`.

    used: tensors to load into the model. fresh: the other layers before the outputs, which keep their initial values,
    each with the reason. problems: differences from the model that must not occur. If there are any, nothing should be
    loaded.
    """

    used: dict[str, Tensor]
    fresh: dict[str, str]
    problems: list[str]


def fit(model: FastRCNN, state: Mapping[str, Tensor]) -> Fit:
    """Select the tensors of a state dict that fit the model. The output layers are not considered.

    state: a state dict with the layer names of this package.
    The trunk must be complete. After the trunk, a layer can be missing from the state dict or have a different shape.
    The layers after such a layer are not used either, because they were trained on its features. However, if only
    `reduce` (the 1 x 1 convolution before fc6) is missing and the state dict contains no `map_scale`, fc6 and fc7 are
    used. The scale factors of the feature maps (`map_scale`) are used only if the first layer after the maps is also
    used. If that layer keeps its initial values, the factors are measured again.
    """
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith(OUTPUTS)}
    pixels = OWN_PIXELS if state.keys() >= OWN_PIXELS else set()
    used = _part(state, "trunk", *pixels)
    unknown = [k for k in state if CAFFE_TRUNK.match(k)]
    problems = [f"{k}: not in the model" for k in unknown] + misfits(used, _part(wanted, "trunk", *pixels))
    fresh: dict[str, str] = {}
    below = ""  # the reason why the following layers are not used
    for layer in ABOVE:
        name, ours, theirs = layer.removeprefix("head."), _part(wanted, layer), _part(state, layer)
        if not ours:
            below = f"{name} is in the file but not in the model" if theirs else below
        elif not theirs:
            fresh[name] = "not in the file"
            below = below or (f"{name} is also initialised" if layer != "reduce" or "map_scale" in state else "")
        elif below:
            fresh[name] = below
        elif ours.keys() != theirs.keys():
            problems += misfits(theirs, ours) + _rank(name, ours, theirs)
        elif other := [k for k in ours if ours[k].shape != theirs[k].shape]:
            shapes = (tuple(t[other[0]].shape) for t in (theirs, ours))
            fresh[name] = "{} in the file: {}, expected {}".format(SHAPE, *shapes)
            below = f"{name} is also initialised"
        else:
            problems += misfits(theirs, ours)
            used |= theirs
    if needs_scale(model, fresh):
        return Fit(used, fresh, problems)
    if "map_scale" in state:
        used["map_scale"] = state["map_scale"]
        problems += misfits({"map_scale": used["map_scale"]}, {"map_scale": torch.ones(len(model.strides))})
    elif model.map_scale is not None:
        problems.append("the first layer after the feature maps was trained on unscaled maps: remove model.scale_maps")
    return Fit(used, fresh, problems)


def needs_scale(model: FastRCNN, fresh: Collection[str]) -> bool:
    """Return whether the first layer after the maps keeps its initial values, so that the maps can be scaled."""
    return "fc6" in fresh and ("reduce" in fresh or not isinstance(model.reduce, nn.Conv2d))


def _part(state: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k.startswith(tuple(f"{name}." for name in names)) or k in names}


def _rank(name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """Return advice if a layer is compressed in the file but not in the model, or vice versa."""
    rank = next((len(v) for k, v in theirs.items() if k.endswith(".L.weight") and v.dim()), None)
    if rank is not None:
        return [f"{name} is compressed in the file: set model.{name}_rank={rank}"]
    if any(k.endswith(".L.weight") for k in ours):
        return [f"{name} is not compressed in the file: remove model.{name}_rank"]
    return []


def layers(state: Iterable[str]) -> list[str]:
    """Return the names of the layers in a state dict, without the prefixes of the trunk and the head."""
    names = (k.rpartition(".")[0] or k for k in state)
    return list(
        dict.fromkeys(n.removeprefix("trunk.convs.").removeprefix("trunk.").removeprefix("head.") for n in names)
    )


def few(names: Sequence[str], most: int = 8) -> str:
    """Join names for a message. Return "none" if there are none.

    If there are more than `most` names, the text contains only the first two, the last one, and the number of names.
    """
    if len(names) > most:
        return f"{names[0]}, {names[1]} ... {names[-1]} ({len(names)})"
    return ", ".join(names) or "none"


def misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each difference in names, shapes or dtypes between a state dict and the expected one, `wanted`.

    `num_batches_tracked` can be missing, because files from before 2018 do not contain it.
    """
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    problems = [f"{k}: missing, expected shape {tuple(wanted[k].shape)}" for k in missing]
    for k, v in state.items():
        if k not in wanted:
            problems.append(f"{k}: not in the model")
        elif v.shape != wanted[k].shape:
            turned = v.dim() == 4 and v.permute(3, 2, 0, 1).shape == wanted[k].shape
            hint = ". This is the axis order of Keras: convert each weight with permute(3, 2, 0, 1)" if turned else ""
            problems.append(f"{k}: shape {tuple(v.shape)}, expected {tuple(wanted[k].shape)}{hint}")
        elif v.dtype not in (FLOATS if wanted[k].is_floating_point() else (torch.int64,)):
            problems.append(f"{k}: dtype {v.dtype}, expected {wanted[k].dtype}")
    return problems


def in_lines(problems: Sequence[str], most: int = 12) -> str:
    """Format the first `most` problems, one per line, and append the number of remaining problems, if any."""
    lines = [f"  {problem}" for problem in problems[:most]]
    return "\n".join([*lines, *([f"  and {len(problems) - most} more"] if len(problems) > most else [])])


def unusable(state: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor with invalid values: its name and the reason.

    Values must be finite in float32, variances must not be negative, and scale factors and standard deviations must be
    positive.
    """
    problems = []
    for name, values in state.items():
        if not values.numel():
            continue
        # aminmax returns NaN for both if any value is NaN.
        least, most = (float(end.float()) for end in values.aminmax())
        if not math.isfinite(least) or not math.isfinite(most):
            problems.append(f"{name}: contains values that are not finite")
        elif name.endswith("running_var") and least < 0:
            problems.append(f"{name}: contains {least:g}, but a variance cannot be negative")
        elif name in ("pixel_std", "map_scale") and least <= 0:
            problems.append(f"{name}: contains {least:g}, but all values must be positive")
    return problems
