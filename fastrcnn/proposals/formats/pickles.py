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

from pathlib import Path, PurePosixPath

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.content import Content, Pair, as_boxes, as_scores
from fastrcnn.proposals.formats.conventions import CONVENTIONS, HALF_OPEN
from fastrcnn.proposals.formats.safe_pickle import load_pickle

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MODES = {0: HALF_OPEN, 1: CONVENTIONS["xywh-0"]}  # detectron2's BoxMode.XYXY_ABS and XYWH_ABS


def read_pickle(path: Path) -> Content:
    """The proposals in a pickle. Raises UserError for one that could run anything, and for one of other content."""
    value = load_pickle(path)
    if isinstance(value, (list, tuple)):
        items = list(value)
        return Content(
            (path,), "mmdetection's list (pickle)", HALF_OPEN, [""] * len(items),
            lambda i: _mmdetection(items[i], f"{path}, image {i + 1}"), named=False,
        )  # fmt: skip
    if isinstance(value, dict) and "boxes" in value and {"ids", "indexes"} & {*value}:
        return _detectron(path, value)
    if isinstance(value, dict) and value and all(isinstance(k, str) for k in value):
        keys = list(value)
        return Content(
            (path,), "mmdetection's dictionary (pickle)", HALF_OPEN, [_image_id(key) for key in keys],
            lambda i: _mmdetection(value[keys[i]], f"{path}, image {i + 1}"),
        )  # fmt: skip
    has = f" with the keys {', '.join(str(k)[:30] for k in list(value)[:5])}" if isinstance(value, dict) else ""
    raise UserError(
        f"{path}: a pickle of a {type(value).__name__}{has}; known are detectron2's dictionary with `ids`, `boxes` "
        "and `objectness_logits`, Detectron's with `indexes`, `boxes` and `scores`, and mmdetection's list of arrays "
        "or dictionary of them by the name of the image."
    )


def _detectron(path: Path, value: dict[str, object]) -> Content:
    """The dictionary of detectron2, or of Detectron where it has one of the names that only Detectron writes and does
    not state its convention as `bbox_mode`."""
    id_key = "ids" if "ids" in value else "indexes"
    score_key = "objectness_logits" if "objectness_logits" in value else "scores"
    ids = value[id_key]
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if not isinstance(ids, (list, tuple)) or not all(type(i) in (int, str) and len(str(i)) < 1000 for i in ids):
        raise UserError(f"{path}: `{id_key}` should be a list of texts or whole numbers.")
    boxes = _one_each(path, "boxes", value["boxes"], len(ids))
    given = value.get(score_key)
    scores = None if given is None else _one_each(path, score_key, given, len(ids))
    mode = value.get("bbox_mode", 0)
    if type(mode) is not int or mode not in MODES:
        shown = mode if isinstance(mode, int) else type(mode).__name__
        raise UserError(f"{path}: `bbox_mode` is {shown}; known are 0 (corners) and 1 (corner and size).")

    def read(index: int) -> Pair:
        one, _ = as_boxes(boxes[index], f"{path}, boxes[{index}] ('{ids[index]}')")
        if scores is None:
            return one, None
        return one, as_scores(scores[index], one, f"{path}, {score_key}[{index}]")

    older = "bbox_mode" not in value and (id_key == "indexes" or (score_key == "scores" and scores is not None))
    writer, convention = ("Detectron", CONVENTIONS["xyxy-0-inclusive"]) if older else ("detectron2", MODES[mode])
    return Content((path,), f"{writer}'s dictionary (pickle)", convention, [str(i) for i in ids], read)


def _one_each(path: Path, name: str, found: object, count: int) -> list | tuple:
    if isinstance(found, (list, tuple)) and len(found) == count:
        return found
    has = len(found) if isinstance(found, (list, tuple)) else type(found).__name__
    raise UserError(f"{path}: `{name}` should be a list of {count} arrays, one for each id, is {has}.")


def _mmdetection(item: object, where: str) -> Pair:
    """Boxes and scores of an image: an array of five columns or of four, or a dictionary of fields."""
    if not isinstance(item, dict):
        return as_boxes(item, where, (4, 5))
    boxes, _ = as_boxes(item.get("bboxes"), f"{where}, `bboxes`")
    scores = item.get("scores")
    return boxes, None if scores is None else as_scores(scores, boxes, f"{where}, `scores`")


def _image_id(key: str) -> str:
    """The name of a picture without folder and suffix."""
    name = PurePosixPath(key.replace("\\", "/")).name
    return name[: name.rindex(".")] if name.lower().endswith(PICTURES) else name
