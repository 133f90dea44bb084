"""Selective search of many images at once, into a store: on all cores, and going on where a run was stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from fastrcnn.data.images import decode, pixels_key, read_bytes
from fastrcnn.errors import UserError
from fastrcnn.files import lock, write_atomically
from fastrcnn.parallel.launch import cores
from fastrcnn.parallel.processes import pool, prepare, refuse_import
from fastrcnn.progress import progress
from fastrcnn.proposals.clean import BoxCounts
from fastrcnn.proposals.selective_search import propose_scored, searcher
from fastrcnn.proposals.store import ImageProposals, check_target, refuse_repeated, write_store
from fastrcnn.settings import SelectiveSearchSettings

Image = tuple[str, Path, int]  # its id, its file, and the EXIF orientation to apply first
BATCH = 100  # images a process that are handed out at a time


def propose_all(
    images: Sequence[Image],
    store_path: str | Path,
    settings: SelectiveSearchSettings | None = None,
    workers: int | None = None,
) -> BoxCounts:
    """Makes proposals for all `images` and writes the store `store_path`.

    workers: processes, by default one a core; scripts that call this need `if __name__ == "__main__":`.
    Each image's result is kept in a folder beside the store until that is complete, for a run that resumes, and is
    found again by the image's content, its rotation and the settings, never by its name or date.

    Raises UserError naming all images that cannot be read, and for ids that come twice, a store that cannot be written,
    a second run on the same store, or a lack of OpenCV's extra modules.
    """
    refuse_import()
    settings, store_path = settings or SelectiveSearchSettings(), Path(store_path)
    check_order(images, store_path, settings)
    with _work_folder(store_path) as work:
        found = _make_results(images, work, settings, workers)
        if problems := sorted(result for result in found.values() if isinstance(result, str)):
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise UserError(
                f"{len(problems)} of {len(images)} images cannot be read:\n{listed}\nFix them or leave them "
                f"out, and run again; the proposals of the others are kept and will not be made again."
            )
        items = (ImageProposals(image_id, *_load(found[image_id])) for image_id, _, _ in images)
        counts = write_store(store_path, items, "selective search", asdict(settings) | searcher(settings))
        shutil.rmtree(work, ignore_errors=True)
    return counts


def check_order(images: Sequence[Image], store_path: Path, settings: SelectiveSearchSettings) -> None:
    """Raises UserError for what no store could be made of, before any work is done."""
    refuse_repeated((image_id for image_id, _, _ in images), store_path)
    check_target(store_path)
    searcher(settings)


def propose_some(
    images: Sequence[Image],
    store_path: str | Path,
    settings: SelectiveSearchSettings | None = None,
    workers: int | None = None,
) -> None:
    """Makes proposals for some of a store's images, for `propose_all` to find; others may make others meanwhile.

    Raises UserError as `propose_all` does, but not for images that cannot be read, which that will name.
    """
    refuse_import()
    with _work_folder(Path(store_path), shared=True) as work:
        _make_results(images, work, settings or SelectiveSearchSettings(), workers)


@contextmanager
def _work_folder(store_path: Path, shared: bool = False) -> Iterator[Path]:
    """The folder of single images' results, beside a store that is not complete; no second run works in it meanwhile.

    shared: keeps out only those runs that do not share it. Raises BusyError, UserError.
    """
    work = store_path.with_name(f".{store_path.name}.work")
    busy = "another run is making these proposals now"
    with lock(work / "lock", str(work), busy, "choose another place for the store", shared):
        yield work


def _make_results(
    images: Sequence[Image],
    work: Path,
    settings: SelectiveSearchSettings,
    workers: int | None,
) -> dict[str, Path | str]:
    """For each image, by id, the file with its result, or else what is wrong with it."""
    how = json.dumps([searcher(settings), asdict(settings)], sort_keys=True)
    tasks = [(image, work, settings, how) for image in images]
    workers = min(workers or cores(), len(tasks))
    died = (
        "A process that makes proposals died, most likely because memory ran out. Run again, perhaps with fewer "
        "workers; it resumes where it stopped."
    )

    def results() -> Iterator[tuple[str, Path | str]]:
        if workers <= 1:
            yield from map(_make_one, tasks)
            return
        with pool(workers, start_worker, died) as executor:
            for start in range(0, len(tasks), BATCH * workers):  # a million futures would take a gigabyte
                yield from executor.map(_make_one, tasks[start : start + BATCH * workers])

    return dict(progress(results(), total=len(tasks), what="Proposals"))


def start_worker() -> None:
    """Prepares a spawned process that works on images, on one thread."""
    prepare()
    cv2.setNumThreads(1)


def _make_one(task: tuple[Image, Path, SelectiveSearchSettings, str]) -> tuple[str, Path | str]:
    (image_id, path, turn), work, settings, how = task
    try:
        data = read_bytes(path)
        key = hashlib.sha256(how.encode() + b"\0" + pixels_key(data, turn)).hexdigest()
        file = work / key[:2] / f"{key}.npz"
        with suppress(Exception):  # whatever a missing or damaged result leads numpy to; it is made again
            _load(file)
            return image_id, file
        image = decode(data, path, turn)
        boxes, scores = propose_scored(image, settings)
    except UserError as error:
        return image_id, str(error)
    with write_atomically(file) as part, part.open("wb") as handle:
        np.savez(handle, size=np.array(image.shape[:2]), boxes=boxes, scores=scores)
    return image_id, file


def _load(file: Path | str) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Height, width, boxes (P, 4) and their scores (P,) of a result."""
    with np.load(file, allow_pickle=False) as result:
        height, width = result["size"].tolist()
        return height, width, result["boxes"], result["scores"]
