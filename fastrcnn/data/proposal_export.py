"""Proposals written for other programs: the Fast R-CNN author's MATLAB layout, and COCO's results JSON."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.data.conventions import CONVENTIONS, Convention
from fastrcnn.data.proposal_files import ProposalFile
from fastrcnn.errors import UserError
from fastrcnn.progress import progress


def export(
    file: ProposalFile, convention: Convention, output: Path, numbers: Mapping[str, int | str] | None = None
) -> int:
    """Writes all proposals of `file`, whose boxes follow `convention`, to NAME.mat or NAME.json.

    numbers: for NAME.json the ids that images have in their COCO file. Returns how many boxes were written.

    Raises UserError where `output` exists, has another suffix, or cannot be written, and for .mat without scipy.
    """
    if output.suffix.lower() not in (".mat", ".json"):
        raise UserError(f"output={output}: should be NAME.mat or NAME.json.")
    if output.exists():
        raise UserError(f"{output} exists, and may be what somebody needs; choose another name, or move it away.")
    if output.suffix.lower() == ".mat":
        return write_mat(file, convention, output)
    return write_json(file, convention, output, numbers or {})


def write_mat(file: ProposalFile, convention: Convention, output: Path) -> int:
    """The layout that fast-rcnn reads: cells `boxes` (N, 1), each (P, 4) doubles y1 x1 y2 x2, one-based and inclusive,
    and `images`, their ids; and `scores`, each (P, 1), where there are scores. All is in memory while it is written.
    """
    try:
        from scipy.io import savemat
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
    with _written(output) as path:
        savemat(path, variables, appendmat=False)
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
    with _written(output) as path, path.open("w", encoding="utf-8") as out:
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


@contextmanager
def _written(output: Path) -> Iterator[Path]:
    """A path beside `output` that takes its name when the body ends well. Raises UserError where it cannot be."""
    part = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.rename(output)
    except UserError:
        raise
    except Exception as error:  # scipy has errors of its own for what a MATLAB file cannot take
        raise UserError(f"{output}: cannot be written ({str(error)[:200] or type(error).__name__}).") from error
    finally:
        part.unlink(missing_ok=True)
