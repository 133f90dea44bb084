"""What a deployed detector is told about itself, and tells who opens it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.model.fast_rcnn import FastRCNN

FORMAT = "fastrcnn 1"
# What exported networks take and give; see fastrcnn/deploy/__init__.py.
INPUTS = ("image", "proposals", "scale", "size")
OUTPUTS = ("scores", "boxes")
# Keys that name places on the machine it was trained on, or what to do there.
PLACES = {"model": ("weights",), "data": ("root", "proposals", "proposal_cache")}
GROUPS = ("model", "data", "solver", "detection")


@dataclass(frozen=True)
class Description:
    """classes: names; label k is classes[k - 1]. step: of the training; 0 where it is not known.

    pixels: `mean` and `std` of red, green and blue, 0 .. 255.
    config: by group the keys that the network was made, trained and is to be run with, but for places of a machine.
    metrics: what evaluations of it found, as metrics.json has it, by split.
    """

    classes: tuple[str, ...]
    step: int
    pixels: Mapping[str, Sequence[float]]
    config: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Any]]

    def metadata(self) -> dict[str, str]:
        """As text by key, for the file itself."""
        return {
            "format": FORMAT,
            "classes": json.dumps(self.classes, ensure_ascii=False),
            "step": str(self.step),
            "pixels": json.dumps(self.pixels),
            "config": json.dumps(self.config),
            "metrics": json.dumps(self.metrics),
        }


def describe(
    model: FastRCNN,
    classes: Sequence[str],
    step: int,
    config: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
) -> Description:
    """The description of a network that was trained with `config`, all its groups."""
    kept = {
        group: {key: value for key, value in config[group].items() if key not in PLACES.get(group, ())}
        for group in GROUPS
        if group in config
    }
    pixels = {"mean": model.pixel_mean.flatten().tolist(), "std": model.pixel_std.flatten().tolist()}
    return Description(tuple(classes), step, pixels, kept, metrics)


def read_metadata(metadata: Mapping[str, str], source: str) -> Description:
    """What `metadata` gave. source: the file, for messages. Raises UserError where it is another program's."""
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{source}: not written by `fastrcnn export` (its metadata has no format '{FORMAT}'), so its inputs and "
            "classes are not known."
        )
    try:
        classes, pixels, config, metrics = (
            json.loads(metadata[key]) for key in ("classes", "pixels", "config", "metrics")
        )
        step = int(metadata["step"])
        if (
            type(classes) is not list
            or not all(type(name) is str for name in classes)
            or len(set(classes)) != len(classes)
        ):
            raise ValueError("classes should be different names")
        if not all(type(part) is dict for part in (pixels, config, metrics, config.get("model"))):
            raise ValueError("pixels, config, config.model and metrics should be keys with values")
        return Description(tuple(classes), step, pixels, config, metrics)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{source}: its metadata is damaged ({error}). Export it again.") from None
