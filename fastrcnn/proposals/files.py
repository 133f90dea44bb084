"""Proposals in whatever format they come: opened here, boxes as they stand in the file, images by id.

The format is recognised from the content, never from the suffix alone. Nothing in a file is trusted: whatever its
bytes are, there is a result or a UserError with the file's name, nothing in it is run, and memory stays within a
small multiple of its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastrcnn.data.truth.text_files import read_lines
from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.content import Content, Pair
from fastrcnn.proposals.formats.conventions import HALF_OPEN, Convention
from fastrcnn.proposals.formats.matlab import is_mat, read_folder, read_mat
from fastrcnn.proposals.formats.pickles import read_pickle
from fastrcnn.proposals.formats.text import csv_columns, read_csv, read_json
from fastrcnn.proposals.store import ProposalStore, refuse_repeated

HEAD = 4096  # bytes that tell the format

FORMATS = """Known are (data/README.md has the details):
  a proposal store, the folder NAME.proposals
  MATLAB files with `boxes`, `bboxes` or `bbs`, and folders of such files, ID.mat or ID_boxes.mat
  pickles of detectron2, Detectron and mmdetection
  CSV with the header image_id,x1,y1,x2,y2 or image_id,x,y,w,h, and score or not
  JSON: a list of {"image_id": ..., "bbox": [x, y, width, height], "score": ...}"""


def open_proposals(path: Path, ids: Sequence[str] | None = None) -> Content:
    """The proposals in `path`, a file or a folder, no two images of one id.

    ids: the image ids in the file's order, for formats that name no images.
    Raises UserError where there is nothing, the format is unknown, or ids are missing or of another number.
    """
    try:
        content = _content(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except MemoryError:
        raise UserError(f"{path}: there is not enough memory to read it.") from None
    count = len(content.ids)
    if ids is not None:
        if content.named:
            raise UserError(f"{path}: is {content.format}, which names its images itself; leave out ids=.")
        if len(ids) != count:
            raise UserError(
                f"{path}: has {count} images, but the list of ids has {len(ids)}. It must have one id a line for each "
                "of them, in their order."
            )
        content = replace(content, ids=list(ids))
    elif not content.named and "" in content.ids:
        raise UserError(
            f"{path}: is {content.format}, which does not name its {count} images. Give their ids in the file's order, "
            "one a line, as ids=LIST.txt."
        )
    refuse_repeated(content.ids, path)
    return content


def open_all(paths: Sequence[str], ids: str | None, convention: Convention | None = None) -> list[Content]:
    """The proposals in each of the paths.

    ids: a text file with the image ids, one a line, for formats that name no images. convention: in place of those of
    the formats. Raises UserError as open_proposals does, and for a text that cannot be read.
    """
    lines = None if ids is None else [line.strip() for line in read_lines(Path(ids).expanduser()) if line.strip()]
    files = [open_proposals(Path(path).expanduser(), lines) for path in paths]
    return files if convention is None else [replace(file, convention=convention) for file in files]


def join_files(files: Sequence[Content]) -> Content:
    """Several files, such as one a split, as one that bears the first one's name.

    Raises UserError where their boxes mean different things or an image is in two of them.
    """
    first = files[0]
    where: dict[str, tuple[Content, int]] = {}
    for file in files:
        if file.convention != first.convention:
            raise UserError(
                f"{file.path}: its boxes are {file.convention}, but those of {first.path} are {first.convention}. "
                "Convert them one by one."
            )
        for index, image_id in enumerate(file.ids):
            other, _ = where.setdefault(image_id, (file, index))
            if other is not file:
                raise UserError(
                    f"{file.path}: image '{image_id[:100]}' is in {other.path} as well. Name files of different images."
                )
    places = list(where.values())

    def read(index: int) -> Pair:
        file, at = places[index]
        return file.boxes(at)

    return replace(first, paths=tuple(file.path for file in files), ids=list(where), boxes=read)


def _content(path: Path) -> Content:
    if path.is_dir():
        if (path / "meta.json").is_file():
            return _store(path)
        files = sorted(f for f in path.iterdir() if f.suffix.lower() == ".mat" and f.is_file())
        if not files:
            raise UserError(f"{path}: neither a proposal store nor a folder of .mat files. {FORMATS}")
        return read_folder(path, files)
    if not path.is_file():
        raise UserError(f"{path}: there is no such proposal file; correct the path.")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise UserError(f"{path}: the file is empty; fetch or export it again.")
    if is_mat(head):
        return read_mat(path)
    if head[:1] in (b"\x80", b"(", b"]", b"}") or path.suffix.lower() in (".pkl", ".pickle"):
        return read_pickle(path)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"[":
        return read_json(path)
    if csv_columns(next(iter(text.splitlines()), b"").decode("utf-8", "replace")) is not None:
        return read_csv(path)
    raise UserError(f"{path}: no proposals in a format that is known. {FORMATS}")


def _store(path: Path) -> Content:
    store = ProposalStore(path)
    ids = store.ids

    def read(index: int) -> Pair:
        scores = store.scores(ids[index])
        return store.boxes(ids[index]).astype(np.float64), None if scores is None else scores.astype(np.float64)

    return Content((path,), "a proposal store", HALF_OPEN, ids, read)
