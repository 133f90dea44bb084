"""What a deployed detector is told about itself, and tells who opens it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
        whole = {key: json.dumps(value, ensure_ascii=key != "classes") for key, value in vars(self).items()}
        return {"format": FORMAT, **whole}


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
        found = Description(**{field.name: json.loads(metadata[field.name]) for field in fields(Description)})
        names = found.classes
        if type(names) is not list or not all(type(n) is str for n in names) or len({*names}) < len(names):
            raise ValueError("classes should be different names")
        if not all(
            type(part) is dict for part in (found.pixels, found.config, found.metrics, found.config.get("model"))
        ):
            raise ValueError("pixels, config, config.model and metrics should be keys with values")
        return replace(found, classes=tuple(names), step=int(found.step))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{source}: its metadata is damaged ({error}). Export it again.") from None
