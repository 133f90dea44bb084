"""What an exported detector says of itself: its classes, how it was made and is to be run, what is known of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN

FORMAT = "fastrcnn 1"
# Keys that name places on the machine it was trained on, or what to do there.
PLACES = {"model": ("weights",), "data": ("root", "proposals", "proposal_cache")}
GROUPS = ("model", "data", "solver", "detection")


@dataclass(frozen=True)
class Description:
    """classes: names; label k is classes[k - 1]. step: of the training; 0 where it is not known.

    pixels: `mean` and `std` of red, green and blue, 0 .. 255; `order` is RGB.
    config: by group the keys that the network was made, trained and is to be run with, but for places of a machine.
    metrics: what evaluations of it found, as metrics.json has it, by split.
    record: what else is known of it, for people. `data`, `recipe`: lists of sentences, see deploy/recipe.py. `images`,
        and `objects` by class: how many it was trained on. `proposals`: the name of the store of the proposals,
        where they were not made. `precision`: what its weights were once rounded to. `draw_threshold`: the score that
        gave the best F1 in the evaluation that chose it.
    """

    classes: tuple[str, ...]
    step: int
    pixels: Mapping[str, Any]
    config: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Any]]
    record: Mapping[str, Any] = field(default_factory=dict)

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
    record: Mapping[str, Any],
) -> Description:
    """The description of a network that was trained with `config`, all its groups."""
    kept = {
        group: {key: value for key, value in config[group].items() if key not in PLACES.get(group, ())}
        for group in GROUPS
        if group in config
    }
    pixels = {"order": "RGB", "mean": model.pixel_mean.flatten().tolist(), "std": model.pixel_std.flatten().tolist()}
    return Description(tuple(classes), step, pixels, kept, metrics, record)


def read_metadata(metadata: Mapping[str, str], source: str) -> Description:
    """What `metadata` gave. source: the file, for messages. Raises UserError where it is another program's."""
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{source}: not written by `fastrcnn export` (its metadata has no format '{FORMAT}'), so its inputs and "
            "classes are not known."
        )
    try:
        whole = {"record": "{}", **metadata}  # files of earlier versions have none
        found = Description(**{part.name: json.loads(whole[part.name]) for part in fields(Description)})
        names = found.classes
        if type(names) is not list or not all(type(n) is str for n in names) or len({*names}) < len(names):
            raise ValueError("classes should be different names")
        if not all(
            type(part) is dict for part in (found.pixels, found.config, found.metrics, found.config.get("model"))
        ):
            raise ValueError("pixels, config, config.model and metrics should be keys with values")
        if type(found.step) is not int or not 0 <= found.step < 2**53:
            raise ValueError("step should be a whole number")
        if not all(map(sound_evaluation, found.metrics.values())) or not sound_record(found.record):
            raise ValueError("metrics or record is not what export writes")
        return replace(found, classes=tuple(names))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{source}: its metadata is damaged ({error}). Export it again.") from None


def sound_evaluation(metrics: Any) -> bool:
    """Whether this is what metrics.json has, as far as a model card shows it."""
    if type(metrics) is not dict or type(metrics.get("metric")) is not str:
        return False
    tables = [metrics.get("ap", {}), metrics.get("recall", {})]
    if not all(type(table) is dict for table in tables):
        return False
    shares = [metrics.get("mAP"), *tables[0].values(), *tables[1].values()]
    return type(metrics.get("images")) in (int, type(None)) and all(
        share is None or (type(share) in (int, float) and -1 <= share <= 1) for share in shares
    )


def sound_record(record: Any) -> bool:
    """Whether this is a record as Description has it, or part of one."""
    if type(record) is not dict or not record.keys() <= {
        "data",
        "recipe",
        "images",
        "objects",
        "proposals",
        "precision",
        "draw_threshold",
    }:
        return False
    lines = [record.get("data", []), record.get("recipe", [])]
    counts = record.get("objects", {})
    return (
        all(type(part) is list and all(type(line) is str for line in part) for part in lines)
        and type(record.get("images", 0)) is int
        and type(threshold := record.get("draw_threshold", 0.0)) is float
        and math.isfinite(threshold)
        and type(counts) is dict
        and all(type(name) is str and type(n) is int for name, n in counts.items())
        and type(record.get("proposals", "")) is type(record.get("precision", "")) is str
    )
