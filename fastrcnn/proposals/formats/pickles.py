"""Proposals that Detectron, detectron2 and mmdetection pickled. All count from zero.

Detectron: a dictionary with `boxes`, `scores` and `indexes`; PCL and wetectron use its files. Its
tools/convert_selective_search.py subtracts 1 from MATLAB's inclusive boxes and no more, so x2 - x1 + 1 is the width, as
in its utils/boxes.py. Its core/test_engine.py, generate_rpn_on_dataset, writes `ids` instead of `indexes`;
datasets/json_dataset.py, _add_proposals, reads both.

detectron2: a dictionary with `ids`, `boxes`, `objectness_logits` and `bbox_mode` (0 for corners, 1 for corner and
size), which evaluation/coco_evaluation.py writes; x2 - x1 is the width. Its data/build.py,
load_proposals_into_dataset, only renames the keys of Detectron's files, and so reads their boxes a pixel too narrow;
this reader does not.

mmdetection 2, tools/test.py --out of an RPN: a list of arrays (P, 5), one an image in the order of the annotations, and
no ids. mmdetection 3, evaluation/metrics/dump_proposals_metric.py: a dictionary from FOLDER/NAME.jpg to an InstanceData
with `bboxes` and `scores`. x2 - x1 is the width. The lists of mmdetection 1 look the same and are inclusive.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.conventions import CONVENTIONS, HALF_OPEN
from fastrcnn.proposals.formats.content import Content, as_boxes, as_scores
from fastrcnn.proposals.formats.safe_pickle import load_pickle, plain

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MODES = {0: str(HALF_OPEN), 1: "xywh-0"}  # detectron2's BoxMode.XYXY_ABS and XYWH_ABS
Pair = tuple[np.ndarray, np.ndarray | None]


def read_pickle(path: Path) -> Content:
    """The proposals in a pickle. Raises UserError for one that could run anything, and for one of other content."""
    value = plain(load_pickle(path))
    if isinstance(value, (list, tuple)):
        return Content("mmdetection's list (pickle)", HALF_OPEN, len(value), None, _mmdet(path, list(value)))
    if isinstance(value, dict) and "boxes" in value and {"ids", "indexes"} & {*value}:
        return _detectron(path, value)
    if isinstance(value, dict) and value and all(isinstance(k, str) for k in value):
        ids = [_image_id(key) for key in value]
        return Content(
            "mmdetection's dictionary (pickle)", HALF_OPEN, len(ids), ids, _mmdet(path, list(value.values()))
        )
    keys = f" with the keys {', '.join(str(k)[:30] for k in list(value)[:5])}" if isinstance(value, dict) else ""
    raise UserError(
        f"{path}: a pickle of a {type(value).__name__}{keys}; known are detectron2's dictionary with `ids`, `boxes` "
        "and `objectness_logits`, Detectron's with `indexes`, `boxes` and `scores`, and mmdetection's list of arrays "
        "or dictionary of them by the name of the image."
    )


def _detectron(path: Path, value: dict[Any, object]) -> Content:
    """The dictionary of detectron2, or of Detectron where it has one of the names that only Detectron writes and does
    not state its convention as `bbox_mode`."""
    id_key = "ids" if "ids" in value else "indexes"
    score_key = "objectness_logits" if "objectness_logits" in value else "scores"
    ids, boxes, scores = plain(value[id_key]), plain(value["boxes"]), plain(value.get(score_key))
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if not isinstance(ids, (list, tuple)) or not all(type(i) in (int, str) and len(str(i)) < 1000 for i in ids):
        raise UserError(f"{path}: `{id_key}` should be a list of texts or whole numbers.")
    for name, found in (("boxes", boxes), (score_key, scores)):
        if found is None and name != "boxes":
            continue
        if not isinstance(found, (list, tuple)) or len(found) != len(ids):
            count = len(found) if isinstance(found, (list, tuple)) else type(found).__name__
            raise UserError(f"{path}: `{name}` should be a list of {len(ids)} arrays, one for each id, is {count}.")
    mode = value.get("bbox_mode", 0)
    if type(mode) is not int or mode not in MODES:
        raise UserError(f"{path}: `bbox_mode` is {str(mode)[:30]}; known are 0 (corners) and 1 (corner and size).")
    older = "bbox_mode" not in value and (id_key == "indexes" or (score_key == "scores" and scores is not None))

    def read(index: int) -> Pair:
        where = f"{path}, boxes[{index}] ('{ids[index]}')"
        one = as_boxes(plain(boxes[index]), where)  # type: ignore[index]
        if scores is None:
            return one, None
        return one, as_scores(plain(scores[index]), one, f"{path}, {score_key}[{index}]")  # type: ignore[index]

    writer, convention = ("Detectron", "xyxy-0-inclusive") if older else ("detectron2", MODES[mode])
    names = [str(i) for i in ids]
    return Content(f"{writer}'s dictionary (pickle)", CONVENTIONS[convention], len(names), names, read)


def _mmdet(path: Path, values: list[object]) -> Callable[[int], Pair]:
    def read(index: int) -> Pair:
        value, where = plain(values[index]), f"{path}, image {index + 1}"
        if isinstance(value, dict):
            boxes = as_boxes(plain(value.get("bboxes")), f"{where}, `bboxes`")
            scores = plain(value.get("scores"))
            return boxes, None if scores is None else as_scores(scores, boxes, f"{where}, `scores`")
        boxes = as_boxes(value, where, (4, 5))
        if boxes.shape[1] == 5:
            return boxes[:, :4], boxes[:, 4]
        empty_of_five = isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] == 5
        return boxes, np.zeros(0) if empty_of_five else None

    return read


def _image_id(key: str) -> str:
    """The name of a picture without folder and suffix."""
    name = PurePosixPath(key.replace("\\", "/")).name
    return name[: name.rindex(".")] if name.lower().endswith(PICTURES) else name
