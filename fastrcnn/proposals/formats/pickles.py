"""Read proposals that Detectron, detectron2 and mmdetection pickled. All coordinates are zero-based.

Detectron: a dictionary with `boxes`, `scores` and `indexes`. PCL and wetectron use the same format. Boxes are inclusive
(the width is x2 - x1 + 1), because tools/convert_selective_search.py only subtracts 1 from MATLAB's inclusive boxes.
utils/boxes.py also adds 1 to compute a width. generate_rpn_on_dataset in core/test_engine.py writes `ids` instead of
`indexes`; _add_proposals in datasets/json_dataset.py reads both.

detectron2: a dictionary with `ids`, `boxes`, `objectness_logits` and `bbox_mode` (0 for corners, 1 for a corner and a
size), written by evaluation/coco_evaluation.py. Boxes are half-open (the width is x2 - x1). load_proposals_into_dataset
in data/build.py only renames the keys of Detectron's files, so in detectron2 these boxes are one pixel too small in
width and height. This reader reads them correctly.

mmdetection 2 (`tools/test.py --out` of an RPN): a list of arrays (P, 5) with scores, or (P, 4), one per image in
annotation order, without image ids. mmdetection 3 (evaluation/metrics/dump_proposals_metric.py): a dictionary from
FOLDER/NAME.jpg to an InstanceData with `bboxes` and, optionally, `scores`. Arrays (P, 4) or (P, 5) are also accepted
instead of an InstanceData. Boxes are half-open in both versions. The lists of mmdetection 1 have the same structure,
but inclusive boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.content import Content, Pair, as_boxes, as_scores
from fastrcnn.proposals.formats.conventions import CONVENTIONS, HALF_OPEN
from fastrcnn.safe_pickle import RefusedError, Unbuilt, as_user_error, load_pickle

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MODES = {0: HALF_OPEN, 1: CONVENTIONS["xywh-0"]}  # detectron2's BoxMode.XYXY_ABS and XYWH_ABS


def load(path: Path) -> object:
    """Load a pickle that contains only numbers, text, lists, tuples, dictionaries and numeric numpy arrays.

    An mmdetection InstanceData becomes the dictionary of its fields. Arrays are read-only views of the bytes that were
    read. Raises UserError if the pickle contains anything else, or if it is damaged or truncated.
    """
    instead = (
        "Export the proposals again as a pickle that contains only numbers, text, lists, dictionaries and numeric "
        "numpy arrays."
    )
    with as_user_error(path, instead), path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return load_pickle(data, ADMITTED)


def read_pickle(path: Path) -> Content:
    """Read the proposals in a pickle. Raises UserError if `load` raises it, or if the structure is not supported."""
    value = load(path)
    if isinstance(value, dict) and "boxes" in value and {"ids", "indexes"} & {*value}:
        return _detectron(path, value)
    if isinstance(value, (list, tuple)):
        return _mmdetection(path, "list", [""] * len(value), value)
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        return _mmdetection(path, "dictionary", [_image_id(key) for key in value], list(value.values()))
    has = f" with the keys {', '.join(str(k)[:30] for k in [*value][:5])}" if value and isinstance(value, dict) else ""
    raise UserError(
        f"{path}: the pickle contains an object of type {type(value).__name__}{has}. Supported are detectron2's "
        "dictionary with `ids`, `boxes` and `objectness_logits`, Detectron's dictionary with `indexes`, `boxes` and "
        "`scores`, and mmdetection's list of arrays or dictionary from image names to arrays."
    )


def _detectron(path: Path, value: dict[str, object]) -> Content:
    """Read the dictionary of detectron2 or Detectron.

    It is Detectron's if it has no `bbox_mode`, and has `indexes`, or `scores` instead of `objectness_logits`.
    """
    id_key = "ids" if "ids" in value else "indexes"
    score_key = "objectness_logits" if "objectness_logits" in value else "scores"
    ids = value[id_key]
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if not isinstance(ids, (list, tuple)) or not all(type(i) in (int, str) and len(str(i)) < 1000 for i in ids):
        raise UserError(f"{path}: `{id_key}` must be a list of strings or integers.")
    boxes = _one_each(path, "boxes", value["boxes"], len(ids))
    given = value.get(score_key)
    scores = None if given is None else _one_each(path, score_key, given, len(ids))
    mode = value.get("bbox_mode", 0)
    if type(mode) is not int or mode not in MODES:
        shown = mode if isinstance(mode, int) else f"of type {type(mode).__name__}"
        raise UserError(
            f"{path}: `bbox_mode` is {shown}. Supported modes are 0 (two corners) and 1 (a corner and a size)."
        )

    def read(index: int) -> Pair:
        one, _ = as_boxes(boxes[index], f"{path}, boxes[{index}] ('{ids[index]}')")
        if scores is None:
            return one, None
        return one, as_scores(scores[index], one, f"{path}, {score_key}[{index}]")

    older = "bbox_mode" not in value and (id_key == "indexes" or (score_key == "scores" and scores is not None))
    writer, convention = ("Detectron", CONVENTIONS["xyxy-0-inclusive"]) if older else ("detectron2", MODES[mode])
    return Content((path,), f"{writer} pickle", convention, [str(i) for i in ids], read)


def _one_each(path: Path, name: str, found: object, count: int) -> list | tuple:
    if isinstance(found, (list, tuple)) and len(found) == count:
        return found
    has = f"its length is {len(found)}" if isinstance(found, (list, tuple)) else f"its type is {type(found).__name__}"
    raise UserError(f"{path}: `{name}` must be a list of {count} array(s), one for each id, but {has}.")


def _mmdetection(path: Path, kind: str, ids: list[str], items: Sequence[object]) -> Content:
    """Read mmdetection's proposals: for each image an array with four or five columns, or a dictionary of fields."""

    def read(index: int) -> Pair:
        item, where = items[index], f"{path}, image {index + 1}"
        if not isinstance(item, dict):
            return as_boxes(item, where, (4, 5))
        boxes, _ = as_boxes(item.get("bboxes"), f"{where}, `bboxes`")
        scores = item.get("scores")
        return boxes, None if scores is None else as_scores(scores, boxes, f"{where}, `scores`")

    return Content((path,), f"mmdetection pickle with a {kind}", HALF_OPEN, ids, read, named=kind == "dictionary")


def _image_id(key: str) -> str:
    """Return the image id for a path: the file name without folder and image suffix."""
    name = PurePosixPath(key.replace("\\", "/")).name
    return name[: name.rindex(".")] if name.lower().endswith(PICTURES) else name


def _array(shape: object, dtype: object, fortran: object, data: Any) -> np.ndarray:
    """Create an array view of bytes in the pickle. Raises RefusedError if its shape or dtype is invalid."""
    if not isinstance(dtype, np.dtype) or isinstance(data, list):
        raise RefusedError("an array of Python objects or an array without a dtype")
    if isinstance(data, str):  # a Python 2 string
        data = data.encode("latin1")
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not all(type(n) is int and n >= 0 for n in sizes) or len(sizes) > 4 or not isinstance(data, (bytes, bytearray)):
        raise RefusedError("a numpy array with an invalid shape")
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise RefusedError("a numpy array whose shape does not match its number of bytes")
    return np.frombuffer(data, dtype).reshape(sizes, order="F" if fortran else "C")


def _dtype(text: object, state: Any) -> np.dtype:
    if not isinstance(text, str):  # the value is not shown, because the text of nested tuples could be endless
        raise RefusedError("a dtype that is not a string")
    if len(text) > 3 or text[:1] not in tuple("biuf") or any(state[2:5]) or state[1] not in ("<", ">", "|", "="):
        raise RefusedError(f"an array with values other than plain numbers (dtype {text[:20]!r})")
    return np.dtype(text).newbyteorder(state[1])


def _encode(text: str, codec: str) -> bytes:
    """Convert text to bytes. Python 3 stores bytes in this way in pickles of protocol 2."""
    if codec not in ("latin1", "latin-1", "iso-8859-1"):
        raise RefusedError("bytes in an encoding other than latin1")
    return text.encode("latin1")


NUMPY = {  # in numpy.core, or in numpy._core since numpy 2
    "multiarray._reconstruct": lambda *_: Unbuilt(lambda state: _array(*state[-4:])),
    "multiarray.scalar": lambda dtype, data: _array((), dtype, False, data).item(),
    "numeric._frombuffer": lambda data, dtype, shape, order: _array(shape, dtype, order == "F", data),
}
BUILTINS = {"bytes": lambda: b"", "set": lambda names: names}  # load_pickle reads a set as a list, without hashing
ADMITTED: dict[str, object] = {
    **{f"numpy.{core}.{name}": function for core in ("core", "_core") for name, function in NUMPY.items()},
    **{f"{module}.{name}": function for module in ("builtins", "__builtin__") for name, function in BUILTINS.items()},
    "numpy.ndarray": object(),  # only used as the first argument of _reconstruct
    "numpy.dtype": lambda spec, *_: Unbuilt(lambda state: _dtype(spec, state)),
    "_codecs.encode": _encode,
    "mmengine.structures.instance_data.InstanceData": Unbuilt,
}
