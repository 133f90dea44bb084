"""Store and read the metadata of an exported detector: classes, configuration, results and training record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN

FORMAT = "fastrcnn 1"
# Keys with local paths or with settings of the training machine. They are not exported.
PLACES = {"model": ("weights",), "data": ("root", "proposals", "proposal_cache")}
LARGEST = 2**24  # bytes of metadata; JSON can take 30 bytes of memory per byte, and a thousand classes need 0.1 MB
GROUPS = ("model", "data", "solver", "detection")


@dataclass(frozen=True)
class Description:
    """The metadata of an exported detector.

    classes: class names. Label k is classes[k - 1].
    step: training step of the checkpoint, or 0 if it is unknown.
    pixels: the normalisation. `mean` and `std` are those of the red, green and blue values (0 to 255). `order` is RGB.
    config: the training configuration by group, without local paths.
    metrics: evaluation results by split, with keys of metrics.json.
    record: the training record. All keys are optional. `data`, `recipe`: lists of sentences, see deploy/recipe.py.
        `images`, `mosaics`: numbers of training images and of mosaics of them. `objects`: number of training objects
        by class, without mosaics. `proposals`: name of the proposal file, if training used one. `precision`: dtype
        that the weights were rounded to. `draw_threshold`: score threshold with the best F1 in the evaluation that
        selected the checkpoint.
    """

    classes: tuple[str, ...]
    step: int
    pixels: Mapping[str, Any]
    config: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Any]]
    record: Mapping[str, Any] = field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """Return the metadata as a dictionary of strings, which can be stored in a file."""
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
    """Return the description of a network. config: the complete training configuration, as a dictionary of groups.

    The other arguments are as in Description.
    """
    kept = {
        group: {key: value for key, value in config[group].items() if key not in PLACES.get(group, ())}
        for group in GROUPS
        if group in config
    }
    pixels = {"order": "RGB", "mean": model.pixel_mean.flatten().tolist(), "std": model.pixel_std.flatten().tolist()}
    return Description(tuple(classes), step, pixels, kept, metrics, record)


def read_metadata(metadata: Mapping[str, str], source: str) -> Description:
    """Convert the result of `Description.metadata` back to a Description. source: name of the file, for messages.

    Raises UserError if the metadata is damaged or was written by another program.
    """
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{source}: this file was not written by `fastrcnn export` (its metadata does not contain the format "
            f"'{FORMAT}'), so its classes are unknown. Use a file that `fastrcnn export` wrote."
        )
    try:
        if (size := sum(map(len, metadata.values()))) > LARGEST:
            raise ValueError(f"it has {size:,} characters, but the limit is {LARGEST:,}")
        whole = {"record": "{}", **metadata}  # files of earlier versions contain no record
        if missing := [part.name for part in fields(Description) if part.name not in whole]:
            raise ValueError(f"it has no entry {' and no '.join(missing)}")
        found = Description(**{part.name: json.loads(whole[part.name]) for part in fields(Description)})
        names = found.classes
        if type(names) is not list or not all(type(n) is str for n in names) or len({*names}) < len(names):
            raise ValueError("the entry `classes` must be a list of distinct names")
        if not all(type(part) is dict for part in (found.pixels, found.config, found.metrics)):
            raise ValueError("the entries `pixels`, `config` and `metrics` must be dictionaries")
        if type(found.config.get("model")) is not dict:
            raise ValueError("the entry `config.model` must be a dictionary")
        if type(found.step) is not int or not 0 <= found.step < 2**53:
            raise ValueError("the entry `step` must be a non-negative integer")
        if not all(map(sound_evaluation, found.metrics.values())) or not sound_record(found.record):
            raise ValueError(
                "the evaluation results (entry `metrics`) or the training record (entry `record`) are invalid"
            )
        return replace(found, classes=tuple(names))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: the metadata is damaged ({error}). Export the detector again.") from None


def sound_evaluation(metrics: Any) -> bool:
    """Return whether evaluation results have the types and ranges that a model card needs."""
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
    """Return whether `record` is a valid training record of a Description. Keys can be missing."""
    if type(record) is not dict or not record.keys() <= {
        "data",
        "recipe",
        "images",
        "mosaics",
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
        and type(record.get("images", 0)) is type(record.get("mosaics", 0)) is int
        and type(threshold := record.get("draw_threshold", 0.0)) is float
        and math.isfinite(threshold)
        and type(counts) is dict
        and all(type(name) is str and type(n) is int for name, n in counts.items())
        and type(record.get("proposals", "")) is type(record.get("precision", "")) is str
    )
