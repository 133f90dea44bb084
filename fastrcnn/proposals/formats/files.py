"""Proposals in whatever format they come: opened here, boxes as they stand in the file, images by id.

The format is recognised from the content, never from the suffix alone. Nothing in a file is trusted: whatever its
bytes are, there is a result or a UserError with the file's name, nothing in it is run, and memory stays within a
small multiple of its size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.conventions import HALF_OPEN, Convention
from fastrcnn.proposals.formats.content import Content, Reader
from fastrcnn.proposals.formats.mat5 import is_mat
from fastrcnn.proposals.formats.matlab import file_id, read_folder, read_mat
from fastrcnn.proposals.formats.pickles import read_pickle
from fastrcnn.proposals.formats.text import csv_columns, read_csv, read_json
from fastrcnn.proposals.store import ProposalStore

HEAD = 4096  # bytes that tell the format

FORMATS = """\
  a proposal store of this program, the folder NAME.proposals
  MATLAB (5 to 7.3): cells `boxes` and `images` (the Fast R-CNN author's); `boxes`, `bboxes` and `scores` (MCG) or
      `bbs` (EdgeBoxes) of one image, or a folder of such files, ID.mat or ID_boxes.mat; `bbs` as a cell of images
  a pickle of detectron2 (`ids`, `boxes`, `objectness_logits`), of Detectron (`indexes`, `boxes`, `scores`) or of
      mmdetection (a list, or a dictionary by file name)
  CSV with a header: image_id, x1, y1, x2, y2 or x, y, w, h, and a score or not
  JSON: a list of {"image_id": ..., "bbox": [x, y, width, height], "score": ...}"""


@dataclass(frozen=True)
class ProposalFile:
    """Proposals as a file or a folder of files has them.

    format: the format, in words for messages.
    convention: what the boxes of this format mean unless the user says otherwise.
    ids: image ids in the file's order, no two alike.
    """

    path: Path
    format: str
    convention: Convention
    ids: list[str]
    reader: Reader = field(repr=False, compare=False)
    parts: tuple[Path, ...] = ()  # the files that it was joined from, if it was

    def boxes(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Boxes (P, 4) float64 of the image ids[index], as in the file and not converted, and scores (P,) or None.

        Raises UserError, naming file and image, where there are no such numbers.
        """
        return self.reader(index)


def open_proposals(path: Path, ids: Sequence[str] | None = None) -> ProposalFile:
    """The proposals in `path`, a file or a folder.

    ids: the image ids in the file's order, for formats that name no images.
    Raises UserError where there is nothing, the format is none of those known, or ids are needed and missing, or
    their number differs.
    """
    path = Path(path)
    try:
        content = _content(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except MemoryError:
        raise UserError(f"{path}: there is not enough memory to read it.") from None
    found = _ids(path, content, ids)
    twice = [i for i, n in Counter(found).items() if n > 1]
    if twice:
        raise UserError(f"{path}: image '{twice[0][:100]}' comes twice ({len(twice)} such ids); ids must differ.")
    if "" in found:
        raise UserError(f"{path}: the id of image {found.index('') + 1} is empty; every image needs one.")
    return ProposalFile(path, content.format, content.convention, found, content.read)


def joined(files: Sequence[ProposalFile]) -> ProposalFile:
    """Several files, such as one a split, as one that bears the first one's name.

    Raises UserError where their boxes mean different things or an image is in two of them.
    """
    first = files[0]
    if len(files) == 1:
        return first
    where: dict[str, tuple[ProposalFile, int]] = {}
    for file in files:
        if file.convention != first.convention:
            raise UserError(
                f"{file.path}: its boxes are {file.convention}, but those of {first.path} are {first.convention}. "
                "Convert them one by one."
            )
        for index, image_id in enumerate(file.ids):
            if image_id in where:
                raise UserError(
                    f"{file.path}: image '{image_id[:100]}' is in {where[image_id][0].path} as well. Name files of "
                    "different images."
                )
            where[image_id] = file, index
    ids = list(where)

    def read(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        file, at = where[ids[index]]
        return file.boxes(at)

    return ProposalFile(first.path, first.format, first.convention, ids, read, tuple(f.path for f in files))


def _content(path: Path) -> Content:
    if path.is_dir():
        if (path / "meta.json").is_file():
            return _store(path)
        files = sorted(f for f in path.iterdir() if f.suffix.lower() == ".mat" and f.is_file())
        if not files:
            raise UserError(f"{path}: neither a proposal store nor a folder of .mat files. Known formats:\n{FORMATS}")
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
    raise UserError(f"{path}: no proposals in any of the formats known:\n{FORMATS}")


def _store(path: Path) -> Content:
    store = ProposalStore(path)
    ids = store.ids

    def read(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        scores = store.scores(ids[index])
        return store.boxes(ids[index]).astype(np.float64), None if scores is None else scores.astype(np.float64)

    return Content("a proposal store", HALF_OPEN, len(ids), ids, read)


def _ids(path: Path, content: Content, given: Sequence[str] | None) -> list[str]:
    """The ids of the file, or else those that were given for it."""
    if given is None:
        if content.ids is not None:
            return content.ids
        if content.format.startswith(("per-image", "MCG", "EdgeBoxes")) and content.count == 1:
            return [file_id(path)]
        raise UserError(
            f"{path}: is {content.format}, which does not name its {content.count} images. Give their ids in the "
            "file's order, one a line, as ids=LIST.txt."
        )
    if content.ids is not None:
        raise UserError(f"{path}: is {content.format}, which names its images itself; leave out ids=.")
    if len(given) != content.count:
        raise UserError(
            f"{path}: has {content.count} images, but the list of ids has {len(given)}. It must have one id a line for "
            "each of them, in their order."
        )
    return list(given)
