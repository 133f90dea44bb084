"""Read and write matches.npz: the image, score and correctness of the detections of an evaluation.

Detections are matched to objects at IoU 0.5, separately for each image. The file is therefore sufficient to compute the
AP of any subset of the images, without boxes, image files or the model. matches.npz is stored next to metrics.json.
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

if TYPE_CHECKING:  # a comparison does not need torch
    from fastrcnn.structures import Sample

FILE = "matches.npz"
VERSION = 2  # since version 2, the ground truth is compared in float64
COLUMNS = {"images": np.int32, "scores": np.float64, "correct": np.bool_, "objects": np.int32}  # of ClassMatches


@dataclass(frozen=True)
class ClassMatches:
    """The C detections of a class, by descending score, and its P objects.

    Difficult objects, and detections that match them, are not included.
    """

    images: np.ndarray  # (C,) int32, the index of each detection's image
    scores: np.ndarray  # (C,) float64
    correct: np.ndarray  # (C,) bool
    objects: np.ndarray  # (P,) int32, the index of each object's image


@dataclass(frozen=True)
class Matches:
    """The data of one evaluation that are needed to compare it with others."""

    metric: Metric
    mean: float | None  # mAP by `metric`, as in metrics.json
    ap: dict[str, float | None]  # AP of each class, by `metric`
    image_ids: list[str]
    truth: str  # data_hash of the samples
    classes: dict[str, ClassMatches]


def data_hash(samples: Sequence[Sample], classes: Sequence[str]) -> str:
    """Return the SHA-256, in hexadecimal, of the class names and of the ids, sizes and ground truth of the images."""
    found = hashlib.sha256(json.dumps(list(classes)).encode())
    for s in samples:
        found.update(json.dumps([s.image_id, int(s.width), int(s.height), len(s.labels)]).encode())
        found.update(np.asarray(s.boxes, "<f8").tobytes())
        found.update(np.asarray(s.labels, "<i8").tobytes() + np.asarray(s.difficult, bool).tobytes())
    return found.hexdigest()


def class_matches(detections: ClassDetections, truth: ClassTruth, curve: ClassAP) -> ClassMatches:
    """Return the ClassMatches of a class. curve: the result of `class_ap` for the class at IoU 0.5."""
    return ClassMatches(
        detections.images[curve.order].astype(np.int32),
        curve.scores,
        curve.correct[curve.order],
        truth.images[~truth.difficult].astype(np.int32),
    )


def write(path: Path, matches: Matches) -> Path:
    """Write `matches` to `path` atomically, and return `path`. Raises UserError if the file cannot be written."""
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
    """Read matches.npz in the folder of an evaluation. Raises UserError if the file is missing or damaged."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: the folder contains no {FILE}, which `fastrcnn compare` needs. `fastrcnn train`, `fastrcnn "
            "eval checkpoint=RUN` and `fastrcnn reval detections=FOLDER output=FOLDER data=...` write this file. Run "
            "the evaluation again."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            ends = {"objects": np.cumsum(file["positives"])[:-1]}
            columns = [np.split(file[name], ends.get(name, np.cumsum(file["detections"])[:-1])) for name in COLUMNS]
        classes = dict(zip(about["ap"], (ClassMatches(*c) for c in zip(*columns, strict=True)), strict=True))
        if about.pop("version") != VERSION or about["metric"] not in METRICS:
            raise ValueError("unknown version or metric")
        _check(classes, len(about["image_ids"]))
        return Matches(**about, classes=classes)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: the file cannot be read ({error}). Run the evaluation again to replace it.") from None


def _check(classes: Mapping[str, ClassMatches], images: int) -> None:
    for name, c in classes.items():
        if not len(c.images) == len(c.scores) == len(c.correct) or not np.isfinite(c.scores).all():
            raise ValueError(f"the arrays of class {name} are inconsistent")
        for column in (c.images, c.objects):
            if column.min(initial=0) < 0 or column.max(initial=-1) >= images:
                raise ValueError(f"class {name} has an image index out of range")
