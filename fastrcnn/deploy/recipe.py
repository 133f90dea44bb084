"""What is known of a network's training, in sentences for its model card; Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastrcnn.model.networks import NETWORKS


def training_record(config: Mapping[str, Any], step: int, counts: Mapping[str, Any]) -> dict[str, Any]:
    """A record (see inference/description.py) of a training with the configuration `config` after `step` steps.

    counts: `images` and `objects` by class, where they are known.
    """
    data, recipe = _data(config["data"], counts), []
    if "solver" in config:
        recipe = _recipe(config, step, counts.get("images"))
    given = config["data"]["proposals"]
    known = {} if given is None else {"proposals": Path(given).name}
    return {**counts, **known, "data": data, "recipe": recipe}


def converted_record(file: str) -> dict[str, Any]:
    """A record of a network that another program trained; file: the name of its file."""
    return {"data": [f"Converted from `{file}`, which does not say what it was trained on, or how."], "recipe": []}


def _data(data: Mapping[str, Any], counts: Mapping[str, Any]) -> list[str]:
    splits = ", ".join(f"`{split}`" for split in data["train"])
    text = f"Data set `{data['name']}`, {'splits' if len(data['train']) > 1 else 'split'} {splits}"
    if images := counts.get("images"):
        text += f": {_number(images, 'image')}"
        if objects := sum(counts.get("objects", {}).values()):
            text += f" with {_number(objects, 'object')}"
    lines = [f"{text}."]
    if data["max_images"] is not None:
        lines.append(f"Of each split only the first {_number(data['max_images'], 'image')}.")
    if not data["use_difficult"]:
        lines.append("Objects marked difficult were left out.")
    if data["other_classes"] == "leave_out":
        lines.append("Objects of classes other than those above were left out.")
    search, most = data["selective_search"], data["max_proposals"]
    if data["proposals"] is not None:
        made = f"from `{Path(data['proposals']).name}`"
    else:
        most = min(most, search["max_boxes"])
        at = f", longer side {search['side']} pixels" if search["side"] else ""
        made = f"by selective search (`mode={search['mode']}`{at})"
    lines.append(f"Proposals: up to {most:,} of an image, {made}.")
    return lines


def _recipe(config: Mapping[str, Any], step: int, images: int | None) -> list[str]:
    data, solver, model = config["data"], config["solver"], config["model"]
    batch = solver["images_per_batch"] * solver["accumulate"]
    steps = (
        f"{step:,} of {solver['iterations']:,} steps of {_number(batch, 'image')}, "
        f"{_number(solver['rois_per_image'], 'RoI')} an image, up to {100 * solver['fg_fraction']:g} % of them objects"
    )
    if images:
        steps += f"; {step * batch / images:.1f} passes over the images"
    if solver["schedule"] == "cosine":
        falls = "falling along a cosine"
    else:
        falls = f"times {solver['lr_gamma']:g} after {', '.join(f'{s:,}' for s in solver['lr_steps'])} steps"
    rate = f"Learning rate {solver['lr']:g}, {falls}"
    if solver["warmup"]:
        rate += f", after a warm-up of {solver['warmup']:,} steps"
    changes = [text for key, text in CHANGES.items() if data[key]]
    if data["colour"]:
        changes.append(f"contrast and brightness varied by up to {100 * data['colour']:g} %")
    sides = ", ".join(map(str, data["short_sides"]))
    lines = [
        f"Initial weights: {_initial(config)}.",
        f"Layers: {_trained_layers(model, solver)}.",
        f"{steps}.",
        f"{rate}; `{solver['optimizer']}`, momentum {solver['momentum']:g}, weight decay {solver['weight_decay']:g}, "
        f"dropout {model['dropout']:g}.",
        f"Images scaled to a short side of {sides} pixels, the long side at most {data['long_side']}; "
        f"{', '.join(changes) or 'no augmentation'}.",
    ]
    if model["fc6_rank"] or model["fc7_rank"]:
        ranks = ", ".join(f"{fc} of rank {model[f'{fc}_rank']}" for fc in ("fc6", "fc7") if model[f"{fc}_rank"])
        lines.append(f"fc6 and fc7 factored: {ranks}.")
    return lines


CHANGES = {
    "flip": "half of them mirrored",
    "flip_vertical": "half of them upside down",
    "transpose": "half of them with x and y swapped",
}


def _initial(config: Mapping[str, Any]) -> str:
    weights = config["model"]["weights"]
    if config.get("start") is not None:
        return f"the checkpoint `{Path(config['start']).name}`"
    if weights is None:
        return "random, nothing pre-trained"
    if weights == "imagenet":
        return "torchvision's VGG16, trained on ImageNet"
    return f"`{Path(weights).name}`"


def _trained_layers(model: Mapping[str, Any], solver: Mapping[str, Any]) -> str:
    first = model["finetune_from"]
    text = (
        "all trained"
        if first == NETWORKS[model["network"]].conv_names[0]
        else f"those before {first} kept as they were"
    )
    return f"{text}, the box regression not trained" if solver["box_weight"] == 0 else text


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
