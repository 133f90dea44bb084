"""Proposals that detectron2 and mmdetection pickled.

Sources: detectron2, data/build.py, load_proposals_into_dataset: a dictionary with `ids`, `boxes`, `objectness_logits`
and perhaps `bbox_mode` (0 for corners, 1 for corner and size), or with Detectron's older names `indexes` and `scores`;
its evaluation/coco_evaluation.py writes the same. mmdetection 2, tools/test.py --out of an RPN: a list of arrays
(P, 5), one an image in the order of the annotations, and no ids. mmdetection 3,
evaluation/metrics/dump_proposals_metric.py: a dictionary from FOLDER/NAME.jpg to an InstanceData with `bboxes` and
`scores`. All count from zero, and x2 - x1 is the width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastrcnn.data.conventions import CONVENTIONS, HALF_OPEN
from fastrcnn.data.proposal_content import Content, as_boxes, as_scores
from fastrcnn.data.safe_pickle import load_pickle, plain
from fastrcnn.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MODES = {0: str(HALF_OPEN), 1: "xywh-0"}  # detectron2's BoxMode.XYXY_ABS and XYWH_ABS
Pair = tuple[np.ndarray, np.ndarray | None]


def read_pickle(path: Path) -> Content:
    """The proposals in a pickle. Raises UserError for one that could run anything, and for one of other content."""
    value = plain(load_pickle(path))
    if isinstance(value, (list, tuple)):
        return Content("mmdetection's list (pickle)", HALF_OPEN, len(value), None, _mmdet(path, list(value)))
    if isinstance(value, dict) and "boxes" in value and {"ids", "indexes"} & {*value}:
        return _detectron2(path, value)
    if isinstance(value, dict) and value and all(isinstance(k, str) for k in value):
        ids = [_image_id(key) for key in value]
        return Content(
            "mmdetection's dictionary (pickle)", HALF_OPEN, len(ids), ids, _mmdet(path, list(value.values()))
        )
    keys = f" with the keys {', '.join(str(k)[:30] for k in list(value)[:5])}" if isinstance(value, dict) else ""
    raise UserError(
        f"{path}: a pickle of a {type(value).__name__}{keys}; known are detectron2's dictionary with `ids`, `boxes` "
        "and `objectness_logits`, and mmdetection's list of arrays or dictionary of them by the name of the picture."
    )


def _detectron2(path: Path, value: dict[Any, object]) -> Content:
    ids, boxes = plain(value.get("ids", value.get("indexes"))), plain(value["boxes"])
    scores = plain(value.get("objectness_logits", value.get("scores")))
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if not isinstance(ids, (list, tuple)) or not all(type(i) in (int, str) and len(str(i)) < 1000 for i in ids):
        raise UserError(f"{path}: `ids` should be a list of texts or whole numbers.")
    for name, found in (("boxes", boxes), ("objectness_logits", scores)):
        if found is None and name != "boxes":
            continue
        if not isinstance(found, (list, tuple)) or len(found) != len(ids):
            count = len(found) if isinstance(found, (list, tuple)) else type(found).__name__
            raise UserError(f"{path}: `{name}` should be a list of {len(ids)} arrays, one for each id, is {count}.")
    mode = value.get("bbox_mode", 0)
    if type(mode) is not int or mode not in MODES:
        raise UserError(f"{path}: `bbox_mode` is {str(mode)[:30]}; known are 0 (corners) and 1 (corner and size).")

    def read(index: int) -> Pair:
        where = f"{path}, boxes[{index}] ('{ids[index]}')"
        one = as_boxes(plain(boxes[index]), where)  # type: ignore[index]
        if scores is None:
            return one, None
        return one, as_scores(plain(scores[index]), one, f"{path}, objectness_logits[{index}]")  # type: ignore[index]

    names = [str(i) for i in ids]
    return Content("detectron2's dictionary (pickle)", CONVENTIONS[MODES[mode]], len(names), names, read)


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
