"""What two evaluations are compared by: of every detection its image, its score and whether it is right.

Matching at IoU .5 looks at one image at a time, so with this the AP of any choice of images is had without boxes,
pictures or model. matches.npz holds it beside metrics.json.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.evaluation.voc_ap import METRICS, ClassAP, ClassDetections, ClassTruth
from fastrcnn.files import replace_file
from fastrcnn.settings import Metric

if TYPE_CHECKING:  # a comparison does without torch
    from fastrcnn.structures import Sample

FILE = "matches.npz"
VERSION = 2  # 2: the truth is compared in float64
COLUMNS = {"images": np.int32, "scores": np.float64, "correct": np.bool_, "objects": np.int32}  # of ClassMatches


@dataclass(frozen=True)
class ClassMatches:
    """The detections (C,) of a class that count, by falling score, and its objects (P,) that do."""

    images: np.ndarray  # (C,) int32, the index of each detection's image
    scores: np.ndarray  # (C,) float64
    correct: np.ndarray  # (C,) bool
    objects: np.ndarray  # (P,) int32, the index of each object's image


@dataclass(frozen=True)
class Matches:
    """An evaluation, as far as a comparison needs it."""

    metric: Metric
    mean: float | None  # AP by `metric`, as in metrics.json
    ap: dict[str, float | None]
    image_ids: list[str]
    truth: str  # data_hash of the samples
    classes: dict[str, ClassMatches]


def data_hash(samples: Sequence[Sample], classes: Sequence[str]) -> str:
    """sha256 over class names, and ids, sizes and truth of the images: equal where the same was asked."""
    found = hashlib.sha256(json.dumps(list(classes)).encode())
    for s in samples:
        found.update(json.dumps([s.image_id, int(s.width), int(s.height), len(s.labels)]).encode())
        found.update(np.asarray(s.boxes, "<f8").tobytes())
        found.update(np.asarray(s.labels, "<i8").tobytes() + np.asarray(s.difficult, bool).tobytes())
    return found.hexdigest()


def class_matches(detections: ClassDetections, truth: ClassTruth, curve: ClassAP) -> ClassMatches:
    """What is kept of a class. curve: what class_ap says at IoU .5."""
    return ClassMatches(
        detections.images[curve.order].astype(np.int32),
        curve.scores,
        curve.correct[curve.order],
        truth.images[~truth.difficult].astype(np.int32),
    )


def write(path: Path, matches: Matches) -> Path:
    """Writes the file in one step. Raises UserError where it cannot be written."""
    about = {"version": VERSION} | {name: value for name, value in vars(matches).items() if name != "classes"}
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    parts = list(matches.classes.values())
    for column, dtype in COLUMNS.items():
        arrays[column] = np.concatenate([np.zeros(0, dtype), *(getattr(p, column) for p in parts)]).astype(dtype)
    arrays["detections"] = np.array([len(p.images) for p in parts], np.int64)
    arrays["positives"] = np.array([len(p.objects) for p in parts], np.int64)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return replace_file(path, content.getvalue())


def read(folder: Path) -> Matches:
    """The matches of an evaluation's folder. Raises UserError where there are none or they cannot be read."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: has no {FILE}, which `fastrcnn compare` needs and `eval`, `reval` with output=FOLDER and "
            "`train` write. Evaluate again: fastrcnn eval checkpoint=RUN, or fastrcnn reval detections=FOLDER "
            "output=FOLDER data=..."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            ends = {"objects": np.cumsum(file["positives"])[:-1]}
            columns = [np.split(file[name], ends.get(name, np.cumsum(file["detections"])[:-1])) for name in COLUMNS]
        classes = dict(zip(about["ap"], (ClassMatches(*c) for c in zip(*columns, strict=True)), strict=True))
        if about.pop("version") != VERSION or about["metric"] not in METRICS:
            raise ValueError("another version or metric")
        _check(classes, len(about["image_ids"]))
        return Matches(**about, classes=classes)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Evaluate again, which writes it anew.") from None


def _check(classes: Mapping[str, ClassMatches], images: int) -> None:
    for name, c in classes.items():
        if not len(c.images) == len(c.scores) == len(c.correct) or not np.isfinite(c.scores).all():
            raise ValueError(f"the columns of {name} do not fit")
        for column in (c.images, c.objects):
            if column.min(initial=0) < 0 or column.max(initial=-1) >= images:
                raise ValueError(f"{name} has an image that is not in the list")
