"""Proposals in whatever format they come: opened here, boxes as they stand in the file, images by id.

The format is recognised from the content, never from the suffix alone. Nothing in a file is trusted: whatever its
bytes are, there is a result or a UserError with the file's name, nothing in it is run, and memory stays within a
small multiple of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastrcnn.data.conventions import HALF_OPEN, Convention
from fastrcnn.data.proposals import ProposalStore
from fastrcnn.errors import UserError

Reader = Callable[[int], tuple[np.ndarray, np.ndarray | None]]

FORMATS = """  a proposal store of this program, the folder NAME.proposals"""


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
    if (path / "meta.json").is_file():
        return _store(path)
    raise UserError(f"{path}: no proposals in any of the formats known:\n{FORMATS}")


def _store(path: Path) -> ProposalFile:
    store = ProposalStore(path)
    ids = store.ids

    def read(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        scores = store.scores(ids[index])
        return store.boxes(ids[index]).astype(np.float64), None if scores is None else scores.astype(np.float64)

    return ProposalFile(path, "a proposal store", HALF_OPEN, ids, read)
