"""Proposals written for other programs: the Fast R-CNN author's MATLAB layout, and COCO's results JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.files import refuse_existing, write_derived
from fastrcnn.progress import progress
from fastrcnn.proposals.convert import fingerprint
from fastrcnn.proposals.formats.content import Content
from fastrcnn.proposals.formats.conventions import CONVENTIONS


def export(file: Content, output: Path, numbers: Mapping[str, int | str] | None = None) -> int:
    """Writes all proposals of `file` to NAME.mat or NAME.json.

    numbers: for NAME.json the ids that images have in their COCO file. Returns how many boxes were written.

    Raises UserError where `output` exists and was not written from the same proposals, or cannot be written, and for
    .mat without scipy.
    """
    source = _source_of(file)
    refuse_existing(output, source)
    if output.suffix.lower() == ".mat":
        return _write_mat(file, output, source)
    return _write_json(file, output, source, numbers or {})


def _source_of(file: Content) -> str:
    """A name of what is exported, by its content, for `written`."""
    parts = [fingerprint(path) for path in file.paths]
    return hashlib.sha256("\n".join([*parts, str(file.convention)]).encode()).hexdigest()


def _each(file: Content) -> Iterable[tuple[int, str]]:
    return progress(enumerate(file.ids), len(file.ids), "converting")


def _write_mat(file: Content, output: Path, source: str) -> int:
    """The layout that fast-rcnn reads: cells `boxes` (N, 1), each (P, 4) doubles y1 x1 y2 x2, one-based and inclusive,
    and `images`, their ids; and `scores`, each (P, 1), where there are scores. All is in memory while it is written.
    """
    try:
        from scipy.io import savemat
        from scipy.io.matlab import MatWriteError
    except ImportError as error:
        raise UserError(
            f"{output}: writing .mat files needs scipy; install it with `pip install 'fastrcnn[mat]'`."
        ) from error
    variables: dict[str, Any] = {name: np.empty((len(file.ids), 1), object) for name in ("boxes", "images", "scores")}
    total, scored = 0, 0
    for n, image_id in _each(file):
        boxes, scores = file.half_open(n)
        variables["boxes"][n, 0] = CONVENTIONS["yxyx-1-inclusive"].write(boxes)
        variables["images"][n, 0] = image_id
        variables["scores"][n, 0] = np.zeros((0, 1)) if scores is None else scores.reshape(-1, 1)
        total += len(boxes)
        scored += scores is not None
    if not scored:
        del variables["scores"]
    elif scored < len(file.ids):
        raise UserError(f"{file.path}: only {scored} of {len(file.ids)} images have scores; all must, or none.")
    with write_derived(output, source) as path:
        try:
            savemat(path, variables, appendmat=False)
        except (ValueError, TypeError, MatWriteError) as error:  # what a MATLAB file cannot take
            raise UserError(f"{output}: cannot be written ({str(error)[:200]}).") from error
    return total


def _write_json(file: Content, output: Path, source: str, numbers: Mapping[str, int | str]) -> int:
    """COCO's results: a list of objects with image_id, category_id 1, bbox [x, y, width, height] zero-based, and score.

    numbers: the ids that images have in their COCO file. Of other images an id that is a number as JSON has it is
    written as a number. Without scores, 1 stands for all: pycocotools needs one. Boxes that are not finite are
    left out. Raises UserError where two images have one number, as those of two splits may.
    """
    used = [numbers[i] for i in file.ids if i in numbers]
    if len(set(used)) < len(used):
        raise UserError(
            f"{file.path}: has images of several COCO files that number them alike, so they cannot share one JSON "
            "file. Convert the proposals of one split."
        )
    total = 0
    with write_derived(output, source) as path, path.open("w", encoding="utf-8") as out:
        separator = "["
        for n, image_id in _each(file):
            found, scores = file.half_open(n)
            boxes = CONVENTIONS["xywh-0"].write(found)
            values = np.ones(len(boxes)) if scores is None else scores
            finite = np.isfinite(boxes).all(axis=1) & np.isfinite(values)  # JSON knows no other numbers
            number = image_id.isascii() and image_id.isdigit() and (image_id[0] != "0" or image_id == "0")
            name = image_id if number else json.dumps(numbers.get(image_id, image_id))
            for box, score in zip(boxes[finite].tolist(), values[finite].tolist(), strict=True):
                # Python writes finite numbers, and lists of them, as JSON does.
                out.write(f'{separator}{{"image_id": {name}, "category_id": 1, "bbox": {box}, "score": {score}}}')
                separator = ",\n"
            total += int(finite.sum())
        out.write("[]\n" if separator == "[" else "]\n")
    return total
