"""Proposal stores. A store contains the boxes of all images of a data set in memory-mapped arrays.

A store is a folder `NAME.proposals/`:

    meta.json    format, version, box convention, generator and its settings, numbers of images and boxes
    ids.npy      (N,) sorted image ids, UTF-8 in fixed-width bytes
    offsets.npy  (N, 2) int64, the first row and one past the last row of each image in boxes.npy
    sizes.npy    (N, 2) int32, height and width of each image
    boxes.npy    (K, 4) float32, x1 y1 x2 y2, half-open, in pixels of the original image
    scores.npy   (K,) float32, higher is better; only if the proposals have scores

A store contains no pickles. Memory use does not grow with the number of images that are read.
"""

from __future__ import annotations

import io
import json
import mmap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.files import write_folder
from fastrcnn.proposals.clean import BoxCounts, clean

VERSION = 1
DESCRIPTION = {  # required content of meta.json
    "format": "fastrcnn proposals",
    "version": VERSION,
    "convention": "x1 y1 x2 y2, half-open, in pixels of the original image",
}
AROUND = 1 << 20  # bytes to unmap around rows, a multiple of the page size; Linux maps 64 KiB around a page fault


@dataclass(frozen=True)
class ImageProposals:
    """The proposals of one image. Boxes are half-open x1 y1 x2 y2 in pixels of the image."""

    image_id: str
    height: int
    width: int
    boxes: np.ndarray  # (P, 4)
    scores: np.ndarray | None = None  # (P,)


class ProposalStore:
    """A proposal store, opened for reading.

    Only the path is pickled, so each worker process opens the store itself. Several threads can share an instance. If
    the store is replaced, existing instances continue to read the old files. The constructor raises UserError with the
    file name if the store is missing or damaged, except for damaged boxes, which raise UserError when they are read.
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
        if not (unique := self._ids[1:] > self._ids[:-1]).all():
            image_id = _decode(self._ids[int(np.argmin(unique)) + 1])[:100]
            raise _broken(self.path / "ids.npy", f"the id '{image_id}' is repeated or not in order")
        if (self._sizes < 1).any():
            raise _broken(self.path / "sizes.npy", "the height or width of an image is less than 1")

    def __reduce__(self) -> tuple[type[ProposalStore], tuple[Path]]:
        return ProposalStore, (self.path,)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._find(image_id) is not None

    @property
    def ids(self) -> list[str]:
        """The ids of all images, sorted by their bytes."""
        return [_decode(raw) for raw in self._ids.tolist()]

    def boxes(self, image_id: str) -> np.ndarray:
        """Return a copy of the boxes (P, 4) float32 of an image.

        Raises UserError if the image is not in the store, or if a coordinate is NaN or infinite.
        """
        boxes = self._rows(self._boxes, image_id)
        if not np.isfinite(boxes).all():
            raise _broken(self.path / "boxes.npy", f"a box of '{image_id}' is not finite")
        return boxes

    def scores(self, image_id: str) -> np.ndarray | None:
        """Return the scores (P,) float32 of the boxes of an image, or None if the store has no scores."""
        return None if self._scores is None else self._rows(self._scores, image_id)

    def size(self, image_id: str) -> tuple[int, int]:
        """Return the height and width, in pixels, of the image for which the proposals were generated."""
        height, width = self._sizes[self._index(image_id)].tolist()
        return height, width

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Return those of the given ids that are not in the store, in the given order."""
        return [image_id for image_id in ids if image_id not in self]

    def check(self, ids: Sequence[str], sizes: Sequence[tuple[int, int]] | None = None) -> None:
        """Raise UserError unless the store contains proposals for all images in `ids`, with the same image sizes.

        sizes: height and width of each image; None skips this check. The store can contain other images as well.
        """
        wrong = f"{self.path}: the proposals do not fit the images."
        if missing := self.missing(ids):
            raise UserError(
                f"{wrong} The store does not contain {len(missing)} of {len(ids)} images, for example '{missing[0]}'. "
                f"It contains {self._sample()}. Generate proposals for all images with `fastrcnn propose`, use the "
                "store of the data set, or skip images without proposals with data.missing_proposals=leave_out."
            )
        for image_id, (height, width) in zip(ids, sizes or (), strict=False):
            h, w = self.size(image_id)
            if (h, w) != (height, width):
                raise UserError(
                    f"{wrong} Image '{image_id}' has {w}x{h} pixels in the store, but the image file has "
                    f"{width}x{height}. Generate the proposals again with `fastrcnn propose`."
                )

    def _find(self, image_id: str) -> int | None:
        key = image_id.encode(errors="surrogateescape")
        # With a longer key, searchsorted would convert and copy the entire array.
        if not 0 < len(key) <= self._ids.itemsize:
            return None
        index = int(np.searchsorted(self._ids, np.array(key, dtype=self._ids.dtype)))
        return index if index < len(self._ids) and self._ids[index] == key else None

    def _index(self, image_id: str) -> int:
        index = self._find(image_id)
        if index is None:
            raise UserError(
                f"{self.path}: no proposals for image '{image_id}'. The store contains {self._sample()}. Generate the "
                "proposals with `fastrcnn propose`, or use the store that belongs to the data set."
            )
        return index

    def _sample(self) -> str:
        return f"{len(self)} image(s)" + (f", such as '{_decode(self._ids[0])}'" if len(self) else "")

    def _rows(self, array: np.memmap, image_id: str) -> np.ndarray:
        start, stop = self._offsets[self._index(image_id)].tolist()
        if not 0 <= start <= stop <= len(array):
            raise _broken(
                self.path / "offsets.npy",
                f"rows {start} to {stop} of '{image_id}' are not valid for {len(array)} boxes",
            )
        rows = np.array(array[start:stop])
        _forget(array, start, stop)
        return rows


def write_store(
    path: str | Path, items: Iterable[ImageProposals], generator: str, settings: Mapping[str, Any]
) -> BoxCounts:
    """Write a store of the `items`, which can be in any order, and return the counts of kept and dropped boxes.

    Boxes are clipped, and invalid boxes are dropped (see `clean`).
    generator, settings: the method that generated the proposals, and its settings, which must be serialisable as JSON.
    Memory use grows by a few hundred bytes per image. The store is written atomically: until it is complete, an
    existing store at `path` is unchanged. Raises UserError if an id is repeated, is empty or contains a null character,
    if only some images have scores, if `path` exists and is not a store, or if the store cannot be written to disk.
    """
    path = Path(path)
    check_target(path)
    with write_folder(path, replace=True) as folder:
        entries, counts, scored = _write_boxes(folder, path, items)
        entries.sort()
        ids, rows = [entry[0] for entry in entries], np.array([entry[1:] for entry in entries], "<i8").reshape(-1, 4)
        refuse_repeated(map(_decode, ids), path)
        names = np.array(ids, dtype="S" if ids else "S1")
        for name, array in (("ids", names), ("offsets", rows[:, :2]), ("sizes", rows[:, 2:].astype("<i4"))):
            content = io.BytesIO()  # an error while numpy writes to a file does not say that the disk is full
            np.save(content, array)
            (folder / f"{name}.npy").write_bytes(content.getbuffer())
        meta = {
            **DESCRIPTION,
            "generator": generator,
            "settings": dict(settings),
            "images": len(ids),
            "boxes": counts.kept,
            "scores": scored,
            "cleaning": asdict(counts),
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return counts


def refuse_repeated(ids: Iterable[str], path: Path) -> None:
    """Raise UserError if an id is repeated. path: the path of the proposals, for the message."""
    if twice := [image_id for image_id, n in Counter(ids).items() if n > 1]:
        raise UserError(
            f"{path}: {len(twice)} image id(s) occur more than once, for example '{twice[0][:100]}'. Make the image "
            "ids unique."
        )


def check_target(path: Path) -> None:
    """Raise UserError if `path` exists and is not a store. Only stores are replaced."""
    if path.exists() and not (path / "meta.json").is_file():
        raise UserError(f"{path}: the path exists and is not a proposal store. Choose another path.")


def _write_boxes(
    folder: Path, path: Path, items: Iterable[ImageProposals]
) -> tuple[list[tuple[bytes, int, int, int, int]], BoxCounts, bool]:
    """Write boxes.npy and, if the items have scores, scores.npy to `folder`. path: the store, for messages.

    Returns a tuple (id as bytes, first row, one past the last row, height, width) for each image, the box counts, and
    whether the items have scores.
    """
    entries, counts = [], BoxCounts()
    with (folder / "boxes.npy").open("wb") as box_file, (folder / "scores.npy").open("wb") as score_file:
        _write_header(box_file, (0, 4))
        _write_header(score_file, (0,))
        scored: bool | None = None
        for item in items:
            if not item.image_id or "\0" in item.image_id:
                raise UserError(
                    f"{path}: image id {item.image_id!r} is empty or contains a null character. Rename the image."
                )
            boxes, rows, of_image = clean(item.boxes, item.height, item.width)
            scored = item.scores is not None if scored is None else scored
            if scored is not (item.scores is not None):
                has = "has no scores" if scored else "has scores"
                raise UserError(
                    f"{path}: image '{item.image_id}' {has}, unlike the images before it. Provide scores for all "
                    "images or for none."
                )
            box_file.write(boxes.astype("<f4").tobytes())
            if item.scores is not None:
                score_file.write(np.asarray(item.scores)[rows].astype("<f4").tobytes())
            key = item.image_id.encode(errors="surrogateescape")  # an id can be a file name that is not UTF-8
            entries.append((key, counts.kept, counts.kept + len(boxes), item.height, item.width))
            counts += of_image
        _write_header(box_file, (counts.kept, 4))
        _write_header(score_file, (counts.kept,))
    if not scored:
        (folder / "scores.npy").unlink()
    return entries, counts, bool(scored)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the .npy header of a float32 array at the start of the file.

    The header has padding for any number of rows, so it can be overwritten when the number of rows is known.
    """
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _decode(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _read_meta(path: Path) -> dict[str, Any]:
    file = path / "meta.json"
    if not path.exists():
        raise UserError(f"{path}: this proposal store does not exist. Generate it with `fastrcnn propose`.")
    if not file.is_file():
        raise UserError(
            f"{path}: this is not a proposal store, because it contains no meta.json. Use a folder NAME.proposals, or "
            f"convert proposals in another format with `fastrcnn propose convert={path} data=... data.root=...`."
        )
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(file, str(error)) from error
    if not isinstance(meta, dict):
        raise _broken(file, "the content is not a JSON object")
    for key, value in DESCRIPTION.items():
        if meta.get(key) != value:
            raise UserError(
                f"{file}: `{key}` is {meta.get(key)!r}, but this version of fastrcnn reads only {value!r}. Generate "
                "the proposals again, or use the version that wrote them."
            )
    for key, kind in (("images", int), ("boxes", int), ("scores", bool)):
        if type(meta.get(key)) is not kind:
            raise _broken(file, f"`{key}` is {meta.get(key)!r}, which is not of type {kind.__name__}")
    return meta


def _map(file: Path, dtype: str, shape: tuple[int, ...]) -> np.memmap:
    if file.exists() and not file.is_file():  # opening a named pipe would wait forever
        raise _broken(file, "it is not a regular file")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises various errors for a damaged header
        raise _broken(file, str(error)) from error
    if not isinstance(array, np.memmap):
        raise _broken(file, "the content is not an array")
    kind_fits = array.dtype.kind == "S" if dtype == "S" else array.dtype == dtype
    if not kind_fits or array.shape != shape or not array.flags.c_contiguous:
        raise _broken(file, f"the array is {array.dtype} of shape {array.shape}, not {dtype} of shape {shape}")
    return array


def _forget(array: np.memmap, start: int, stop: int) -> None:
    """Unmap the pages of the copied rows `start` to `stop`. Otherwise, they would count as memory of the process.

    The pages stay in the page cache of the operating system.
    """
    mapped, row = array.base, array.strides[0]
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        first = (array.offset + start * row) // AROUND * AROUND
        last = min(array.offset + stop * row + AROUND, len(mapped))
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _broken(file: Path, why: str) -> UserError:
    return UserError(f"{file}: the proposal store is damaged ({why}). Generate it again with `fastrcnn propose`.")
