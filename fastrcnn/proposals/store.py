"""The proposal store: the boxes of all images of a data set, as memory-mapped arrays matched to images by id.

A store is a folder `NAME.proposals/`:

    meta.json    format and version, convention, generator and its settings, number of images and boxes
    ids.npy      (N,) fixed-width bytes, UTF-8, sorted
    offsets.npy  (N, 2) int64, first row and one past the last row of the image's boxes
    sizes.npy    (N, 2) int32, height and width of the image
    boxes.npy    (K, 4) float32, x1 y1 x2 y2, half-open, in pixels of the original image
    scores.npy   (K,) float32, higher is better; only where the generator gives scores

There is never a pickle in it, and what a process keeps of it in memory does not grow with the number of
images read.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.files import write_folder

FORMAT = "fastrcnn proposals"
VERSION = 1
CONVENTION = "x1 y1 x2 y2, half-open, in pixels of the original image"


@dataclass(frozen=True)
class ImageProposals:
    """The proposals of one image; the boxes half-open x1 y1 x2 y2 in its own pixels."""

    image_id: str
    height: int
    width: int
    boxes: np.ndarray  # (P, 4)
    scores: np.ndarray | None = None  # (P,)


@dataclass(frozen=True)
class BoxCounts:
    """How many boxes were kept, how many of those had to be clipped (`far`: by more than a pixel), and how many were
    dropped and why."""

    kept: int = 0
    clipped: int = 0
    not_finite: int = 0
    inverted: int = 0
    outside: int = 0
    far: int = 0

    def __add__(self, other: BoxCounts) -> BoxCounts:
        return BoxCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def dropped(self) -> int:
        return self.not_finite + self.inverted + self.outside


def clean(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, BoxCounts]:
    """Clips boxes (P, 4) to an image of `height` x `width` pixels and drops those that are none.

    Dropped are boxes with a NaN or infinite number, inverted or empty ones, and ones outside the image.
    Returns the boxes left (R, 4) float32 in their order, their rows in the input (R,) int64, and the counts.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    finite = np.isfinite(boxes).all(axis=1)
    upright = finite & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    limit = np.array([width, height, width, height], dtype=np.float32)
    with np.errstate(invalid="ignore"):
        clipped = np.clip(boxes, np.float32(0), limit)
        inside = upright & (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    rows = np.flatnonzero(inside)
    kept = clipped[rows]
    counts = BoxCounts(
        kept=len(rows),
        clipped=int((kept != boxes[rows]).any(axis=1).sum()),
        not_finite=int((~finite).sum()),
        inverted=int((finite & ~upright).sum()),
        outside=int((upright & ~inside).sum()),
        far=int((np.abs(kept - boxes[rows]) > 1.001).any(axis=1).sum()),
    )
    return kept, rows, counts


class ProposalStore:
    """Read access to a store, by image id.

    Costs next to nothing to pickle (a worker process opens it again by its path), may be used from several
    threads, and keeps reading the files that it opened when the store is replaced meanwhile.

    Raises UserError, naming the file, where the store is missing, broken, or none at all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta = _read_meta(self.path)
        images, boxes = self.meta["images"], self.meta["boxes"]
        self._ids = _map(self.path / "ids.npy", "S", (images,))
        self._offsets = _map(self.path / "offsets.npy", "int64", (images, 2))
        self._sizes = _map(self.path / "sizes.npy", "int32", (images, 2))
        self._boxes = _map(self.path / "boxes.npy", "float32", (boxes, 4))
        self._scores = _map(self.path / "scores.npy", "float32", (boxes,)) if self.meta["scores"] else None

    def __reduce__(self) -> tuple[type[ProposalStore], tuple[Path]]:
        return ProposalStore, (self.path,)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._find(image_id) is not None

    @property
    def ids(self) -> list[str]:
        """The ids of all images, in the order of their bytes."""
        return [_decode(raw) for raw in self._ids.tolist()]

    def boxes(self, image_id: str) -> np.ndarray:
        """The image's boxes (P, 4) float32, a copy; raises UserError where the store has no such image."""
        return self._rows(self._boxes, "boxes.npy", image_id)

    def scores(self, image_id: str) -> np.ndarray | None:
        """The boxes' scores (P,) float32, or None where the store has no scores."""
        return None if self._scores is None else self._rows(self._scores, "scores.npy", image_id)

    def size(self, image_id: str) -> tuple[int, int]:
        """Height and width of the image that the proposals were made for."""
        height, width = self._sizes[self._index(image_id)].tolist()
        return height, width

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of the `ids` that the store does not have."""
        return [image_id for image_id in ids if self._find(image_id) is None]

    def check(self, ids: Sequence[str], sizes: Sequence[tuple[int, int]] | None = None) -> None:
        """Raises UserError, naming the first image that differs, unless the store was made for these images.

        `sizes`: height and width of each image. Images of the store that are not among `ids` do not matter.
        """
        wrong = f"{self.path}: the proposals belong to other images:"
        if missing := self.missing(ids):
            raise UserError(
                f"{wrong} {len(missing)} of {len(ids)} images are not in it, the first is '{missing[0]}'; it holds "
                f"{self._sample()}. Make proposals for these images with `fastrcnn propose`, name the right store, or "
                "do without these images by data.missing_proposals=leave_out."
            )
        for image_id, (height, width) in zip(ids, sizes or (), strict=False):
            h, w = self.size(image_id)
            if (h, w) != (height, width):
                raise UserError(
                    f"{wrong} '{image_id}' has {w}x{h} pixels there, but the image has {width}x{height}. Make them "
                    "again with `fastrcnn propose`."
                )

    def _find(self, image_id: str) -> int | None:
        key = image_id.encode(errors="surrogateescape")
        # A longer key would make searchsorted convert, and so copy, the whole array.
        if not 0 < len(key) <= self._ids.itemsize:
            return None
        index = int(np.searchsorted(self._ids, np.array(key, dtype=self._ids.dtype)))
        return index if index < len(self._ids) and self._ids[index] == key else None

    def _index(self, image_id: str) -> int:
        index = self._find(image_id)
        if index is None:
            raise UserError(
                f"{self.path}: no proposals for image '{image_id}'; it holds {self._sample()}. Make "
                f"them with `fastrcnn propose`, or name the store that belongs to the data set."
            )
        return index

    def _sample(self) -> str:
        return f"{len(self)} images" + (f" such as '{_decode(self._ids[0])}'" if len(self) else "")

    def _rows(self, array: np.ndarray, name: str, image_id: str) -> np.ndarray:
        start, stop = self._offsets[self._index(image_id)].tolist()
        if not 0 <= start <= stop <= len(array):
            raise _broken(self.path / "offsets.npy", f"rows {start} to {stop} of '{image_id}' are not in {name}")
        rows = np.array(array[start:stop])
        _forget(array, start, stop)
        return rows


def write_store(
    path: str | Path, items: Iterable[ImageProposals], generator: str, settings: Mapping[str, Any]
) -> BoxCounts:
    """Writes a store of the `items`, in any order, each used once; boxes are cleaned (see `clean`).

    Memory grows by a few hundred bytes an image, however many boxes there are. The store appears under `path`
    when it is complete, and until then an existing one stays as it is. `settings` must be writable as JSON.

    Raises UserError for an id that comes twice or is empty, for scores of some images only, for a `path` that
    is something else than a store, and where the disk does not take it.
    """
    path = Path(path)
    check_target(path)
    with write_folder(path, replace=True) as folder:
        return _write_arrays(folder, path, items, generator, settings)


def check_target(path: Path) -> None:
    """Raises UserError where `path` is something else than a store, and so must not be replaced."""
    if path.exists() and not (path / "meta.json").is_file():
        raise UserError(f"{path} exists and is not a proposal store; choose another name, or move it away.")


def _write_arrays(
    folder: Path, path: Path, items: Iterable[ImageProposals], generator: str, settings: Mapping[str, Any]
) -> BoxCounts:
    ids: list[bytes] = []
    offsets: list[tuple[int, int]] = []
    sizes: list[tuple[int, int]] = []
    counts = BoxCounts()
    scored: bool | None = None
    with (folder / "boxes.npy").open("wb") as box_file, (folder / "scores.npy").open("wb") as score_file:
        _write_header(box_file, (0, 4))
        _write_header(score_file, (0,))
        for item in items:
            boxes, rows, item_counts = clean(item.boxes, item.height, item.width)
            scored = item.scores is not None if scored is None else scored
            if scored is not (item.scores is not None):
                raise UserError(f"{path}: image '{item.image_id}' differs from the others in having scores or not.")
            box_file.write(boxes.astype("<f4").tobytes())
            if item.scores is not None:
                score_file.write(np.asarray(item.scores)[rows].astype("<f4").tobytes())
            ids.append(_encode(item.image_id, path))
            offsets.append((counts.kept, counts.kept + len(boxes)))
            sizes.append((item.height, item.width))
            counts += item_counts
        _write_header(box_file, (counts.kept, 4))
        _write_header(score_file, (counts.kept,))
    if not scored:
        (folder / "scores.npy").unlink()
    keys = np.array(ids, dtype="S" if ids else "S1")
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        raise UserError(f"{path}: image '{_decode(keys[twice[0]])}' comes twice; ids must differ.")
    np.save(folder / "ids.npy", keys)
    np.save(folder / "offsets.npy", np.array(offsets, dtype="<i8").reshape(-1, 2)[order])
    np.save(folder / "sizes.npy", np.array(sizes, dtype="<i4").reshape(-1, 2)[order])
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "convention": CONVENTION,
        "generator": generator,
        "settings": dict(settings),
        "images": len(ids),
        "boxes": counts.kept,
        "scores": bool(scored),
        "cleaning": asdict(counts),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return counts


def _encode(image_id: str, path: Path) -> bytes:
    if not image_id or "\0" in image_id:
        raise UserError(f"{path}: image id {image_id!r} is empty or holds a null character; name the image.")
    return image_id.encode(errors="surrogateescape")  # an id may be a file name that is not UTF-8


def _decode(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """At the start of the file; there is room in it for any number of rows, so it can be written again."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _read_meta(path: Path) -> dict[str, Any]:
    file = path / "meta.json"
    if not path.exists():
        raise UserError(f"{path}: there is no such proposal store; make it with `fastrcnn propose`.")
    if not file.is_file():
        raise UserError(
            f"{path}: not a proposal store, since it has no meta.json. Name a NAME.proposals folder; proposals in "
            f"another format become one by `fastrcnn propose convert={path} data=... data.root=...`."
        )
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(file, str(error)) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{file}: not the description of a proposal store; name a NAME.proposals folder.")
    if meta.get("version") != VERSION:
        raise UserError(
            f"{file}: version {meta.get('version')!r} of the format, but this program reads {VERSION}; "
            f"make the proposals again, or use the program that wrote them."
        )
    for key, fits in (
        ("convention", meta.get("convention") == CONVENTION),
        *((key, type(meta.get(key)) is kind) for key, kind in (("images", int), ("boxes", int), ("scores", bool))),
    ):
        if not fits:
            raise _broken(file, f"`{key}` is {meta.get(key)!r}")
    return meta


def _map(file: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # whatever a damaged header leads numpy to
        raise _broken(file, str(error)) from error
    kind_fits = isinstance(array, np.memmap) and (array.dtype.kind == "S" if dtype == "S" else array.dtype == dtype)
    if not kind_fits or array.shape != shape or not array.flags.c_contiguous:
        found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "no array"
        raise _broken(file, f"holds {found} where meta.json leads to expect {dtype} of shape {shape}")
    return array


def _forget(array: np.ndarray, start: int, stop: int) -> None:
    """Unmaps the pages of rows that have been copied.

    The system keeps them cached, but a page that stays mapped counts towards the process, so that each
    loader worker would seem to grow, image by image, to the size of the store. A fault maps neighbours too
    (64 KiB on Linux), hence the wider range.
    """
    mapped = array.base
    if not isinstance(array, np.memmap) or not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    row = array.strides[0]
    around = max(mmap.PAGESIZE, 1 << 20)
    first = (array.offset + start * row) // around * around
    last = -(-(array.offset + stop * row) // around) * around
    mapped.madvise(mmap.MADV_DONTNEED, first, min(last, len(mapped)) - first)


def _broken(file: Path, why: str) -> UserError:
    return UserError(f"{file}: the proposal store is damaged ({why}); make it again with `fastrcnn propose`.")
