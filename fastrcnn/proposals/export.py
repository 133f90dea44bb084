"""Proposals written for other programs: the Fast R-CNN author's MATLAB layout, and COCO's results JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.files import refuse_existing, write_derived
from fastrcnn.progress import progress
from fastrcnn.proposals.conventions import CONVENTIONS, Convention
from fastrcnn.proposals.convert import fingerprint
from fastrcnn.proposals.formats.files import ProposalFile


def export(
    file: ProposalFile, convention: Convention, output: Path, numbers: Mapping[str, int | str] | None = None
) -> int:
    """Writes all proposals of `file`, whose boxes follow `convention`, to NAME.mat or NAME.json.

    numbers: for NAME.json the ids that images have in their COCO file. Returns how many boxes were written.

    Raises UserError where `output` exists and was not written from the same proposals, has another suffix, or cannot be
    written, and for .mat without scipy.
    """
    if output.suffix.lower() not in (".mat", ".json"):
        raise UserError(f"output={output}: should be NAME.mat or NAME.json.")
    refuse_existing(output, source_of(file, convention))
    if output.suffix.lower() == ".mat":
        return write_mat(file, convention, output)
    return write_json(file, convention, output, numbers or {})


def source_of(file: ProposalFile, convention: Convention) -> str:
    """A name of what is exported, by its content, for outputs.py."""
    parts = [fingerprint(path) for path in file.parts or (file.path,)]
    return hashlib.sha256("\n".join([*parts, str(convention)]).encode()).hexdigest()


def write_mat(file: ProposalFile, convention: Convention, output: Path) -> int:
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
    for n in progress(range(len(file.ids)), len(file.ids), "converting"):
        raw, scores = file.boxes(n)
        variables["boxes"][n, 0] = CONVENTIONS["yxyx-1-inclusive"].write(convention.read(raw))
        variables["images"][n, 0] = file.ids[n]
        variables["scores"][n, 0] = np.zeros((0, 1)) if scores is None else scores.reshape(-1, 1)
        total += len(raw)
        scored += scores is not None
    if not scored:
        del variables["scores"]
    elif scored < len(file.ids):
        raise UserError(f"{file.path}: only {scored} of {len(file.ids)} images have scores; all must, or none.")
    with write_derived(output, source_of(file, convention)) as path:
        try:
            savemat(path, variables, appendmat=False)
        except (ValueError, TypeError, MatWriteError) as error:  # what a MATLAB file cannot take
            raise UserError(f"{output}: cannot be written ({str(error)[:200]}).") from error
    return total


def write_json(file: ProposalFile, convention: Convention, output: Path, numbers: Mapping[str, int | str]) -> int:
    """COCO's results: a list of objects with image_id, category_id 1, bbox [x, y, width, height] zero-based, and score.

    numbers: the ids that images have in their COCO file. Of other images an id that is a number as JSON has it is
    written as a number. Without scores, 1 stands for all: pycocotools needs one. Boxes that are not finite are
    left out. Raises UserError where two images have one number, as those of two splits may.
    """
    total = 0
    used = [numbers[i] for i in file.ids if i in numbers]
    if len(set(used)) < len(used):
        raise UserError(
            f"{file.path}: has images of several COCO files that number them alike, so they cannot share one JSON "
            "file. Convert the proposals of one split."
        )
    with write_derived(output, source_of(file, convention)) as path, path.open("w", encoding="utf-8") as out:
        separator = "["
        for n in progress(range(len(file.ids)), len(file.ids), "converting"):
            raw, scores = file.boxes(n)
            boxes = CONVENTIONS["xywh-0"].write(convention.read(raw))
            values = np.ones(len(raw)) if scores is None else scores
            finite = np.isfinite(boxes).all(axis=1) & np.isfinite(values)  # JSON knows no other numbers
            image_id = file.ids[n]
            number = image_id.isascii() and image_id.isdigit() and (image_id[0] != "0" or image_id == "0")
            name = image_id if number else json.dumps(numbers.get(image_id, image_id))
            for box, score in zip(boxes[finite].tolist(), values[finite].tolist(), strict=True):
                # Python writes finite numbers, and lists of them, as JSON does.
                out.write(f'{separator}{{"image_id": {name}, "category_id": 1, "bbox": {box}, "score": {score}}}')
                separator = ",\n"
            total += int(finite.sum())
        out.write("[]\n" if separator == "[" else "]\n")
    return total
