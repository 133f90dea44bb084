"""Read proposals from MATLAB files: one file for an entire split, or one file per image.

Sources of the conventions:
 - fast-rcnn, lib/datasets/pascal_voc.py, reads the author's files as `boxes[i][:, (1, 0, 3, 2)] - 1`.
 - fast-rcnn, tools/demo.py, uses `boxes` of per-image files as zero-based x1 y1 x2 y2. Per-image files of selective
   search "IJCV" look the same, but pascal_voc.py reads them as `boxes - 1`. They need convention=xyxy-1-inclusive.
 - py-faster-rcnn, lib/datasets/coco.py, and Detectron's converter (convert_mcg.py) read MCG's `boxes` and `scores` as
   one-based y1 x1 y2 x2. The variables of older MCG files, `bboxes` and `bboxes_scores`, have the same convention.
 - EdgeBoxes (edgeBoxes.m) documents `bbs` as [x y w h score]. The coordinates are one-based, as usual in MATLAB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.content import Content, Pair, as_boxes, as_scores
from fastrcnn.proposals.formats.conventions import CONVENTIONS, Convention
from fastrcnn.proposals.formats.mat5 import Cells, Text, Value, read_mat5, reading
from fastrcnn.proposals.formats.mat73 import read_mat73

NAMES = ("boxes", "images", "bboxes", "bbs", "scores", "bboxes_scores")


@dataclass(frozen=True)
class Variables:
    """The variables of a MATLAB file that contain proposals.

    format, convention: as in Content.
    name: the name of the variable that contains the boxes.
    boxes: the boxes of one image, or of many images as Cells.
    scores, images: the scores and the image ids, or None if the file does not contain them.
    """

    format: str
    convention: Convention
    name: str
    boxes: Value
    scores: Value | None
    images: Value | None

    def pair(self, boxes: Value, scores: Value | None, where: str) -> Pair:
        """Convert the values of one image to its boxes (P, 4) and scores (P,) or None. where: the place, for messages.

        EdgeBoxes matrices have the scores in a fifth column. Raises UserError if a value is invalid.
        """
        if isinstance(boxes, (str, Text)):
            raise UserError(f"{where}: expected numbers, but found {'text' if isinstance(boxes, Text) else boxes}.")
        numbers, own = as_boxes(boxes, where, (5 if self.name == "bbs" else 4,))
        return numbers, own if scores is None else as_scores(scores, numbers, f"{where}, `scores`")


def is_mat(head: bytes) -> bool:
    """Return whether `head`, at least the first 2 KiB of a file, is the start of a MATLAB file or of any HDF5 file."""
    return head[124:128] in (b"\x00\x01IM", b"\x01\x00MI") or is_hdf5(head)


def is_hdf5(head: bytes) -> bool:
    """Return whether `head` has the HDF5 signature at the start, or after a MATLAB 7.3 header of 512 or 1024 bytes."""
    return any(head[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in (0, 512, 1024))


def read_mat(path: Path) -> Content:
    """Read the proposals of one or many images from a MATLAB file. Raises UserError if the file is invalid."""
    found = _variables(path)
    boxes, scores = found.boxes, found.scores
    if not isinstance(boxes, Cells):
        return _content_of_files(path, [path], found)
    if scores is not None and not isinstance(scores, Cells):
        raise UserError(f"{path}: `{found.name}` is a cell array, but `scores` is not. Both need one cell per image.")
    with reading(path):
        ids = None if found.images is None else _texts(found.images)
    for name, cells in (("images", ids), ("scores", scores)):
        if cells is not None and len(cells) != len(boxes):
            raise UserError(
                f"{path}: `{found.name}` has {len(boxes)} cell(s), but `{name}` has {len(cells)}. Both need one cell "
                "per image."
            )

    def read(index: int) -> Pair:
        with reading(path):
            one = None if scores is None else scores[index]()
            return found.pair(boxes[index](), one, f"{path}, {found.name}{{{index + 1}}}")

    return Content((path,), found.format, found.convention, ids or [""] * len(boxes), read, ids is not None)


def read_folder(path: Path, files: list[Path]) -> Content:
    """Read the proposals from a folder of per-image MATLAB files.

    The image id is the file name without suffix and without `_boxes`. All files must have the format of the first file,
    which is checked when each file is read. Raises UserError if the first file is invalid or has boxes of many images.
    """
    first = _variables(files[0])
    if isinstance(first.boxes, Cells):
        raise UserError(
            f"{files[0]}: the file contains boxes of many images. Use the path of this file, not its folder."
        )
    return _content_of_files(path, files, first)


def _content_of_files(path: Path, files: list[Path], first: Variables) -> Content:
    """Return the proposals in files that contain one image each. first: the variables of the first file.

    If `path` is a single file, the user can specify a different id for its image.
    """

    def read(index: int) -> Pair:
        found = first if index == 0 else _variables(files[index])
        if isinstance(found.boxes, Cells):
            raise UserError(f"{files[index]}: the file contains boxes of many images. Use one file per image.")
        if found.format != first.format:
            raise UserError(
                f"{files[index]}: the format is {found.format}, but that of {files[0].name} is {first.format}. Use "
                "files of one format."
            )
        return found.pair(found.boxes, found.scores, f"{files[index]}: `{found.name}`")

    is_folder = path.is_dir()
    format = f"folder of {first.format} files" if is_folder else first.format
    ids = [file.stem.removesuffix("_boxes") or file.stem for file in files]  # 000004 in 000004_boxes.mat
    return Content((path,), format, first.convention, ids, read, named=is_folder)


def _variables(path: Path) -> Variables:
    with reading(path):
        with path.open("rb") as file:
            head = file.read(2048)
        if not is_mat(head):
            raise ValueError("not a MATLAB file of version 5 to 7 or 7.3")
        found = (read_mat73 if is_hdf5(head) else read_mat5)(path, NAMES)
    scores, images = found.get("bboxes_scores", found.get("scores")), found.get("images")
    name = next((name for name in ("bbs", "bboxes", "boxes") if name in found), None)
    if name is None:
        raise UserError(
            f"{path}: the file has no variable `boxes`, `bboxes` or `bbs`. A proposal file needs one of these."
        )
    boxes = found[name]
    if name == "bbs":
        return Variables("EdgeBoxes .mat", CONVENTIONS["xywh-1"], name, boxes, None, images)
    if name == "boxes" and scores is None and not isinstance(boxes, Cells):
        return Variables("per-image .mat", CONVENTIONS["xyxy-0-inclusive"], name, boxes, None, None)
    is_author = name == "boxes" and isinstance(boxes, Cells)
    format = "Fast R-CNN author's .mat" if is_author else "MCG .mat"
    return Variables(format, CONVENTIONS["yxyx-1-inclusive"], name, boxes, scores, images)


def _texts(images: Value) -> list[str]:
    """Return the image ids that a cell array of text or a character matrix contains."""
    if isinstance(images, Text):
        return [row.strip() for row in images]
    cells = [unpack() for unpack in images] if isinstance(images, Cells) else [images]
    texts = ["".join(cell).strip() for cell in cells if isinstance(cell, Text)]
    if len(texts) < len(cells):
        raise ValueError("`images` contains values that are not text")
    return texts
