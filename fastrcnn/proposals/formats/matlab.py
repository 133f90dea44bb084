"""The layouts in which proposals come as MATLAB files: of a whole split, or one file an image.

Sources: fast-rcnn, lib/datasets/pascal_voc.py, reads the author's files as `boxes[i][:, (1, 0, 3, 2)] - 1`, and the
per-image files of selective search "IJCV" as `boxes - 1`; py-faster-rcnn, lib/datasets/coco.py, and the converters
of Detectron (convert_mcg.py) read MCG's `boxes` and `scores` in the order y1 x1 y2 x2 from one, and others MCG's older
`bboxes` and `bboxes_scores` alike; EdgeBoxes (edgeBoxes.m) describes `bbs` as [x y w h score], MATLAB's from one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.content import Content, Pair, as_boxes, as_scores
from fastrcnn.proposals.formats.conventions import CONVENTIONS, Convention
from fastrcnn.proposals.formats.mat5 import Cells, Text, Unread, Value, read_mat5, reading
from fastrcnn.proposals.formats.mat73 import read_mat73

NAMES = ("boxes", "images", "bboxes", "bbs", "scores", "bboxes_scores")


@dataclass(frozen=True)
class Layout:
    """format: in words, for messages. columns: of the matrix of an image's boxes; a fifth one has the scores."""

    format: str
    convention: Convention
    columns: int = 4


AUTHOR = Layout("the author's .mat of a whole split", CONVENTIONS["yxyx-1-inclusive"])
MCG = Layout("MCG .mat", CONVENTIONS["yxyx-1-inclusive"])
EDGE_BOXES = Layout("EdgeBoxes .mat", CONVENTIONS["xywh-1"], columns=5)
PER_IMAGE = Layout("per-image .mat", CONVENTIONS["xyxy-0-inclusive"])


@dataclass(frozen=True)
class Variables:
    """What a file has: `boxes` under the name that it has there, of one image or as Cells of many."""

    layout: Layout
    name: str
    boxes: Value
    scores: Value | None
    images: Value | None


def is_mat(head: bytes) -> bool:
    """Whether the first 2 KiB of a file are those of a MATLAB file, or of any HDF5 file."""
    return head[124:128] in (b"\x00\x01IM", b"\x01\x00MI") or is_hdf5(head)


def is_hdf5(head: bytes) -> bool:
    """Whether HDF5's signature stands at the start, or after a MATLAB 7.3 header."""
    return any(head[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in (0, 512, 1024))


def read_mat(path: Path) -> Content:
    """The proposals in one MATLAB file, of one image or of many."""
    found = _variables(path)
    layout, boxes, scores = found.layout, found.boxes, found.scores
    if not isinstance(boxes, Cells):
        return Content((path,), layout.format, layout.convention, [file_id(path)], lambda _: _image(path, found), False)
    with reading(path):
        ids = None if found.images is None else _texts(found.images)
    for name, cells in (("images", ids), ("scores", scores)):
        if cells is not None and len(cells) != len(boxes):
            raise UserError(f"{path}: {len(boxes)} cells in `{found.name}`, but {len(cells)} in `{name}`.")

    def read(index: int) -> Pair:
        with reading(path):
            one = scores[index] if isinstance(scores, Cells) else None
            return _pair(layout, boxes[index], one, f"{path}, {found.name}{{{index + 1}}}")

    return Content((path,), layout.format, layout.convention, ids or [""] * len(boxes), read, ids is not None)


def read_folder(path: Path, files: list[Path]) -> Content:
    """The proposals in a folder of per-image MATLAB files; the id is the file's name without `_boxes` and suffix.

    The first file says what the format is, and the others must agree with it when they are read.
    """
    first = _variables(files[0])
    if isinstance(first.boxes, Cells):
        raise UserError(f"{files[0]}: has the boxes of many images; name this file alone, in place of its folder.")

    def read(index: int) -> Pair:
        found, layout = _variables(files[index]), first.layout
        if found.layout != layout or isinstance(found.boxes, Cells):
            format = found.layout.format
            raise UserError(f"{files[index]}: is {format}, but {files[0].name} beside it is {layout.format}.")
        return _image(files[index], found)

    format = f"a folder of {first.layout.format} files"
    return Content((path,), format, first.layout.convention, [file_id(f) for f in files], read)


def file_id(path: Path) -> str:
    """The image's id in the name of a per-image file: 000004 in 000004.mat and in 000004_boxes.mat."""
    return path.stem.removesuffix("_boxes") or path.stem


def _variables(path: Path) -> Variables:
    with reading(path):
        with path.open("rb") as file:
            head = file.read(2048)
        if not is_mat(head):
            raise ValueError("neither version 5 nor 7.3 of the format")
        found = (read_mat73 if is_hdf5(head) else read_mat5)(path, NAMES)
    scores, images = found.get("bboxes_scores", found.get("scores")), found.get("images")
    if "bbs" in found:
        return Variables(EDGE_BOXES, "bbs", found["bbs"], None, images)
    if "bboxes" in found:
        return Variables(MCG, "bboxes", found["bboxes"], scores, images)
    if "boxes" not in found:
        raise UserError(f"{path}: has no matrix `boxes`, `bboxes` or `bbs`; a MATLAB file of proposals has one.")
    many = AUTHOR if isinstance(found["boxes"], Cells) else PER_IMAGE if scores is None else MCG
    return Variables(many, "boxes", found["boxes"], scores, images)


def _image(path: Path, found: Variables) -> Pair:
    return _pair(found.layout, found.boxes, found.scores, f"{path}: `{found.name}`")


def _pair(layout: Layout, boxes: Value, scores: Value | None, where: str) -> Pair:
    """Boxes and scores of an image."""
    if isinstance(boxes, (Unread, Text)):
        raise UserError(f"{where}: is {'text' if isinstance(boxes, Text) else boxes}, and must be numbers.")
    numbers, own = as_boxes(boxes, where, (layout.columns,))
    return numbers, own if scores is None else as_scores(scores, numbers, f"{where}, `scores`")


def _texts(images: Value) -> list[str]:
    """Ids, from a cell of texts or a matrix of characters."""
    if isinstance(images, Unread):
        raise ValueError("`images` are no texts")
    if isinstance(images, Text):
        return [row.strip() for row in images]
    ids = []
    for n in range(len(images)):
        rows = images[n]
        if not isinstance(rows, Text):
            raise ValueError("`images` are no texts")
        ids.append("".join(rows).strip())
    return ids
