"""The layouts in which proposals come as MATLAB files: of a whole split, or one file an image.

Sources: fast-rcnn, lib/datasets/pascal_voc.py, reads the author's files as `boxes[i][:, (1, 0, 3, 2)] - 1`, and the
per-image files of selective search "IJCV" as `boxes - 1`; py-faster-rcnn, lib/datasets/coco.py, and the converters
of Detectron (convert_mcg.py) read MCG's `boxes` and `scores` in the order y1 x1 y2 x2 from one, and others MCG's older
`bboxes` and `bboxes_scores` alike; EdgeBoxes (edgeBoxes.m) describes `bbs` as [x y w h score], MATLAB's from one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.conventions import CONVENTIONS
from fastrcnn.proposals.formats.content import Content, as_boxes, as_scores
from fastrcnn.proposals.formats.mat5 import MatArray, open_mat, reading

NAMES = ("boxes", "images", "bboxes", "bbs", "scores", "bboxes_scores")
AUTHOR, MCG, EDGE_BOXES, PER_IMAGE = (
    "the author's .mat of a whole split",
    "MCG .mat",
    "EdgeBoxes .mat",
    "per-image .mat",
)
CONVENTION = {AUTHOR: "yxyx-1-inclusive", MCG: "yxyx-1-inclusive", EDGE_BOXES: "xywh-1", PER_IMAGE: "xyxy-0-inclusive"}


@dataclass(frozen=True)
class _Layout:
    format: str
    boxes: MatArray
    name: str  # of the variable `boxes`
    scores: MatArray | None
    images: MatArray | None


def read_mat(path: Path) -> Content:
    """The proposals in one MATLAB file, of one image or of many."""
    layout = _layout(path)
    with reading(path):
        if layout.boxes.kind != "cell":
            format, convention = layout.format, CONVENTIONS[CONVENTION[layout.format]]
            return Content(format, convention, 1, None, lambda _: _image(path, layout))
        boxes = layout.boxes.cells()
        scores = layout.scores.cells() if layout.scores is not None and layout.scores.kind == "cell" else None
        ids = None if layout.images is None else _texts(layout.images)
    for name, cells in (("images", ids), ("scores", scores)):
        if cells is not None and len(cells) != len(boxes):
            raise UserError(f"{path}: {len(boxes)} cells in `{layout.name}`, but {len(cells)} in `{name}`.")

    def read(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        name = f"{path}, {layout.name}{{{index + 1}}}"
        with reading(path):
            one = as_boxes(_numbers(boxes[index], name), name, (5,) if layout.format == EDGE_BOXES else (4,))
            if scores is not None:
                where = f"{path}, scores{{{index + 1}}}"
                return one, as_scores(_numbers(scores[index], where), one, where)
        return _split(one, layout.format == EDGE_BOXES)

    return Content(layout.format, CONVENTIONS[CONVENTION[layout.format]], len(boxes), ids, read)


def read_folder(path: Path, files: list[Path]) -> Content:
    """The proposals in a folder of per-image MATLAB files; the id is the file's name without `_boxes` and suffix.

    The first file says what the format is, and the others must agree with it when they are read.
    """
    first = _layout(files[0])
    if first.boxes.kind == "cell":
        raise UserError(f"{files[0]}: has the boxes of many images; name this file alone, in place of its folder.")

    def read(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        layout = _layout(files[index])
        if (layout.format, layout.boxes.kind == "cell") != (first.format, False):
            raise UserError(f"{files[index]}: is {layout.format}, but {files[0].name} beside it is {first.format}.")
        return _image(files[index], layout)

    format, convention = f"a folder of {first.format} files", CONVENTIONS[CONVENTION[first.format]]
    return Content(format, convention, len(files), [file_id(f) for f in files], read)


def file_id(path: Path) -> str:
    """The image's id in the name of a per-image file: 000004 in 000004.mat and in 000004_boxes.mat."""
    return path.stem.removesuffix("_boxes") or path.stem


def _layout(path: Path) -> _Layout:
    found = open_mat(path, NAMES)
    scores = found.get("bboxes_scores", found.get("scores"))
    with reading(path):
        if "bbs" in found:
            return _Layout(EDGE_BOXES, found["bbs"], "bbs", None, found.get("images"))
        if "bboxes" in found:
            return _Layout(MCG, found["bboxes"], "bboxes", scores, found.get("images"))
        if "boxes" not in found:
            raise UserError(f"{path}: has no matrix `boxes`, `bboxes` or `bbs`; a MATLAB file of proposals has one.")
        if found["boxes"].kind == "cell":
            return _Layout(AUTHOR, found["boxes"], "boxes", scores, found.get("images"))
        return _Layout(PER_IMAGE if scores is None else MCG, found["boxes"], "boxes", scores, None)


def _image(path: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray | None]:
    """Boxes and scores of a file of one image."""
    where = f"{path}: `{layout.name}`"
    with reading(path):
        boxes = as_boxes(_numbers(layout.boxes, where), where, (5,) if layout.format == EDGE_BOXES else (4,))
        if layout.scores is not None:
            return boxes, as_scores(_numbers(layout.scores, f"{path}: `scores`"), boxes, f"{path}: `scores`")
    return _split(boxes, layout.format == EDGE_BOXES)


def _split(boxes: np.ndarray, scored: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Boxes (P, 4), and the scores in a fifth column where there is one."""
    if boxes.shape[1] == 5:
        return boxes[:, :4], boxes[:, 4]
    return boxes, np.zeros(0) if scored else None  # empty ones have lost their fifth column


def _numbers(array: MatArray, where: str) -> np.ndarray:
    if array.kind != "numbers":
        raise UserError(f"{where}: is {array.kind}, and must be numbers.")
    return array.numbers()


def _texts(images: MatArray) -> list[str]:
    """Ids, from a cell of texts or a matrix of characters."""
    if images.kind == "text":
        return [row.strip() for row in images.text()]
    return ["".join(cell.text()).strip() for cell in images.cells()]
