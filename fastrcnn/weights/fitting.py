"""What of a state dict fits a network: all of it, or the trunk and what it has of the layers above."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.weights.names import CAFFE_TRUNK, OUTPUTS

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OWN_PIXELS = {"pixel_mean", "pixel_std"}  # what weights of ours have, and no others
BUFFERS = ("pixel_mean", "pixel_std", "map_scale", "delta_mean", "delta_std")
ABOVE = ("reduce", "head.fc6", "head.fc7")  # the layers between the trunk and the outputs, from below
SHAPE = "of another shape in the file"


@dataclass(frozen=True)
class Fit:
    """used: what of a state dict can be put into the model. fresh: why each other layer below the outputs stays as it
    was initialised, by its name. problems: what contradicts the model; with one, nothing should be used."""

    used: dict[str, Tensor]
    fresh: dict[str, str]
    problems: list[str]


def fit(model: FastRCNN, state: Mapping[str, Tensor]) -> Fit:
    """What of a state dict with our names fits the model below its outputs.

    The trunk has to be whole. Above it a layer may be missing or have another shape, and those above that one are then
    not used either: they were trained on its features. Only `reduce` may be new below an fc6 that is used.
    The factors on the maps come with the layer above them, or are measured for it where it begins anew.
    """
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith(OUTPUTS)}
    pixels = OWN_PIXELS if state.keys() >= OWN_PIXELS else set()
    used = _part(state, "trunk", *pixels)
    unknown = [k for k in state if CAFFE_TRUNK.match(k)]
    problems = [f"{k}: not in the model" for k in unknown] + misfits(used, _part(wanted, "trunk", *pixels))
    fresh: dict[str, str] = {}
    below = ""  # what keeps the layers above from being used
    for layer in ABOVE:
        name, ours, theirs = layer.removeprefix("head."), _part(wanted, layer), _part(state, layer)
        if not ours:
            below = f"{name} is in the file and not in the model" if theirs else below
        elif not theirs:
            fresh[name] = "not in the file"
            below = below or (f"{name} is new" if layer != "reduce" or "map_scale" in state else "")
        elif below:
            fresh[name] = below
        elif ours.keys() != theirs.keys():
            problems += misfits(theirs, ours) + _rank(name, ours, theirs)
        elif other := [k for k in ours if ours[k].shape != theirs[k].shape]:
            shapes = (tuple(t[other[0]].shape) for t in (theirs, ours))
            fresh[name] = "{}: {}, {} wanted".format(SHAPE, *shapes)
            below = f"{name} is new"
        else:
            problems += misfits(theirs, ours)
            used |= theirs
    if needs_scale(model, fresh):
        return Fit(used, fresh, problems)
    if "map_scale" in state:
        used["map_scale"] = state["map_scale"]
        problems += misfits({"map_scale": used["map_scale"]}, {"map_scale": torch.ones(len(model.strides))})
    elif model.map_scale is not None:
        problems.append("the layer above the maps was trained on maps that are not scaled: leave out model.scale_maps")
    return Fit(used, fresh, problems)


def needs_scale(model: FastRCNN, fresh: Collection[str]) -> bool:
    """Whether all that was trained on the maps begins anew, so that their size may change."""
    return "fc6" in fresh and ("reduce" in fresh or not isinstance(model.reduce, nn.Conv2d))


def _part(state: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k.startswith(tuple(f"{name}." for name in names)) or k in names}


def _rank(name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """What to do where a layer is two, as `compress` makes them, in either the file or the model."""
    rank = next((len(v) for k, v in theirs.items() if k.endswith(".L.weight") and v.dim()), None)
    if rank is not None:
        return [f"{name} is two layers in the file: say model.{name}_rank={rank}"]
    if any(k.endswith(".L.weight") for k in ours):
        return [f"{name} is one layer in the file: leave out model.{name}_rank"]
    return []


def layers(state: Iterable[str]) -> list[str]:
    """The layers of a state dict, without the parts of the model that they belong to."""
    names = (k.rpartition(".")[0] or k for k in state)
    return list(
        dict.fromkeys(n.removeprefix("trunk.convs.").removeprefix("trunk.").removeprefix("head.") for n in names)
    )


def few(names: Sequence[str], most: int = 8) -> str:
    """Some names, the first and the last of them where they are many."""
    if len(names) > most:
        return f"{names[0]}, {names[1]} ... {names[-1]} ({len(names)})"
    return ", ".join(names) or "nothing"


def misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from being put into a network, whose own is `wanted`; values are not looked at.

    Layers' counts of batches may be missing, as in files from before 2018."""
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    problems = [f"{k}: missing, {tuple(wanted[k].shape)} wanted" for k in missing]
    for k, v in state.items():
        if k not in wanted:
            problems.append(f"{k}: not in the model")
        elif v.shape != wanted[k].shape:
            turned = v.dim() == 4 and v.permute(3, 2, 0, 1).shape == wanted[k].shape
            hint = ": Keras' order of axes; convert each weight by permute(3, 2, 0, 1)" if turned else ""
            problems.append(f"{k}: {tuple(v.shape)}, {tuple(wanted[k].shape)} wanted{hint}")
        elif v.dtype not in (FLOATS if wanted[k].is_floating_point() else (torch.int64,)):
            problems.append(f"{k}: numbers of type {v.dtype}, {wanted[k].dtype} wanted")
    return problems


def in_lines(problems: Sequence[str], most: int = 12) -> str:
    """The first problems, each a line."""
    lines = [f"  {problem}" for problem in problems[:most]]
    return "\n".join([*lines, *([f"  and {len(problems) - most} more"] if len(problems) > most else [])])


def unusable(state: Mapping[str, Tensor]) -> list[str]:
    """Tensors of a state dict that no network has: not finite in float32, or a negative variance, or a factor or
    deviation that is not above 0."""
    problems = []
    for name, values in state.items():
        if not values.numel():
            continue
        # NaN is both least and largest of any numbers that have it
        least, most = (float(end.float()) for end in values.aminmax())
        if not math.isfinite(least) or not math.isfinite(most):
            problems.append(f"{name}: not all finite")
        elif name.endswith("running_var") and least < 0:
            problems.append(f"{name}: {least:g}, but a variance is never negative")
        elif name in ("pixel_std", "map_scale") and least <= 0:
            problems.append(f"{name}: {least:g}, but it is more than 0 in every network")
    return problems
