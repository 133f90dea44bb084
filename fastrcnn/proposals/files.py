"""Open proposal files of any supported format.

The format is recognised from the content. The suffix is used only for pickles and for folders of .mat files. Files are
not trusted: any sequence of bytes gives either a result or a UserError with the file name, no code in a file is run,
and memory use is limited to a multiple of the file size.
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

HEAD = 4096  # bytes that are read to recognise the format

FORMATS = """Supported formats (details in docs/proposals.md):
  proposal stores: folders NAME.proposals
  MATLAB files with a variable `boxes`, `bboxes` or `bbs`, and folders of such files named ID.mat or ID_boxes.mat
  pickles of detectron2, Detectron and mmdetection
  CSV with the header image_id,x1,y1,x2,y2 or image_id,x,y,w,h, optionally with score
  JSON: a list of {"image_id": ..., "bbox": [x, y, width, height], "score": ...}, where the score is optional"""


def open_proposals(path: Path, ids: Sequence[str] | None = None) -> Content:
    """Open the proposals in `path`, a file or a folder. The image ids of the result are unique.

    ids: the image ids in the order of the proposals, for formats that contain no image ids; otherwise None.
    Raises UserError if the path does not exist or cannot be read, if the format is unknown, if image ids are missing or
    repeated, or if `ids` is given for a file that contains ids or that has another number of images.
    """
    try:
        content = _content(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except MemoryError:
        raise UserError(f"{path}: there is not enough memory to read the proposals.") from None
    count = len(content.ids)
    if ids is not None:
        if content.named:
            raise UserError(f"{path}: the proposals ({content.format}) already have image ids. Remove ids=.")
        if len(ids) != count:
            raise UserError(
                f"{path}: the file has {count} image(s), but ids= lists {len(ids)} id(s). The list must contain one "
                "image id per line, in the order of the proposals."
            )
        content = replace(content, ids=list(ids))
    elif not content.named and "" in content.ids:
        raise UserError(
            f"{path}: this file ({content.format}) contains no image ids. Write the ids of its {count} image(s) to "
            "a text file, one per line, in the order of the proposals, and add ids=LIST.txt."
        )
    refuse_repeated(content.ids, path)
    return content


def open_all(paths: Sequence[str], ids: str | None, convention: Convention | None = None) -> list[Content]:
    """Open the proposals in each of the paths, which are files or folders.

    ids: a text file with the image ids of each path, one per line, for formats that contain no image ids.
    convention: if given, the box convention of all files, instead of the conventions of their formats.
    Raises UserError if the text file cannot be read, or if `open_proposals` raises it.
    """
    lines = None if ids is None else [line.strip() for line in read_lines(Path(ids).expanduser()) if line.strip()]
    files = [open_proposals(Path(path).expanduser(), lines) for path in paths]
    return files if convention is None else [replace(file, convention=convention) for file in files]


def join_files(files: Sequence[Content]) -> Content:
    """Join several files, such as one file per split. The result has the format and convention of the first file.

    Raises UserError if the files have different box conventions, or if an image is in more than one file.
    """
    first = files[0]
    where: dict[str, tuple[Content, int]] = {}
    for file in files:
        if file.convention != first.convention:
            raise UserError(
                f"{file.path}: the box convention is {file.convention}, but that of {first.path} is "
                f"{first.convention}. Convert the files separately."
            )
        for index, image_id in enumerate(file.ids):
            other, _ = where.setdefault(image_id, (file, index))
            if other is not file:
                raise UserError(
                    f"{file.path}: image '{image_id[:100]}' is also in {other.path}. Use files that have no images in "
                    "common."
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
            raise UserError(f"{path}: this folder is not a proposal store and contains no .mat files. {FORMATS}")
        return read_folder(path, files)
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"{path}: this proposal file {what}. Check the path.")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise UserError(f"{path}: the file is empty. Download or export it again.")
    if is_mat(head):
        return read_mat(path)
    if head[:1] in (b"\x80", b"(", b"]", b"}") or path.suffix.lower() in (".pkl", ".pickle"):
        return read_pickle(path)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"[":
        return read_json(path)
    if csv_columns(next(iter(text.splitlines()), b"").decode("utf-8", "replace")) is not None:
        return read_csv(path)
    raise UserError(f"{path}: this file is not in a supported proposal format. {FORMATS}")


def _store(path: Path) -> Content:
    store = ProposalStore(path)
    ids = store.ids

    def read(index: int) -> Pair:
        scores = store.scores(ids[index])
        return store.boxes(ids[index]).astype(np.float64), None if scores is None else scores.astype(np.float64)

    return Content((path,), "proposal store", HALF_OPEN, ids, read)
