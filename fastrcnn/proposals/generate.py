"""Run selective search on many images in parallel, and write a proposal store. Interrupted runs can be resumed."""

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

from fastrcnn.data.frames import content_key, read_sample
from fastrcnn.errors import UserError
from fastrcnn.files import lock, write_atomically
from fastrcnn.parallel.launch import cores
from fastrcnn.parallel.processes import map_in_order, pool, prepare, refuse_import
from fastrcnn.progress import progress
from fastrcnn.proposals.clean import BoxCounts
from fastrcnn.proposals.selective_search import propose_scored, searcher
from fastrcnn.proposals.store import ImageProposals, check_target, refuse_repeated, write_store
from fastrcnn.settings import SelectiveSearchSettings
from fastrcnn.structures import Sample

BATCH = 100  # number of images per process that are submitted at a time


def propose_all(
    images: Sequence[Sample],
    store_path: str | Path,
    settings: SelectiveSearchSettings | None = None,
    workers: int | None = None,
) -> BoxCounts:
    """Generate proposals for all `images`, write the proposal store `store_path`, and return the box counts.

    The objects of the images are not used, so `without_objects(image_id, path, size)` is enough; `size` is required.
    settings: by default SelectiveSearchSettings(). workers: the number of processes, by default one per core. Scripts
    that call this function need `if __name__ == "__main__":`, because worker processes import the script.
    Until the store is complete, the result of each image is kept in a folder next to the store, so that an interrupted
    call can be resumed. Results are identified by the content of the image file, its orientation, the settings and the
    version of the search, not by file name or date.

    Raises UserError if images cannot be read (the message lists all of them), if an id occurs twice, if the store
    cannot be written, if `store_path` exists and is not a store, if another process is generating the same store, if
    a worker process dies, or if selective search is not available.
    """
    refuse_import()
    settings, store_path = settings or SelectiveSearchSettings(), Path(store_path)
    check_order(images, store_path, settings)
    with _work_folder(store_path) as work:
        found = _make_results(images, work, settings, workers)
        if problems := sorted(result for result in found.values() if isinstance(result, str)):
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise UserError(
                f"{len(problems)} of {len(images)} images cannot be read:\n{listed}\nFix or remove these images, then "
                "run the command again. The proposals of the other images are kept and will be reused."
            )
        items = (ImageProposals(image.image_id, *_load(found[image.image_id])) for image in images)
        counts = write_store(store_path, items, "selective search", asdict(settings) | searcher(settings))
        shutil.rmtree(work, ignore_errors=True)
    return counts


def check_order(images: Sequence[Sample], store_path: Path, settings: SelectiveSearchSettings) -> None:
    """Check the arguments of `propose_all` before any work is done.

    Raises UserError if ids are repeated, if `store_path` exists and is not a store, or if the search is not available.
    """
    refuse_repeated((image.image_id for image in images), store_path)
    check_target(store_path)
    searcher(settings)


def propose_some(
    images: Sequence[Sample],
    store_path: str | Path,
    settings: SelectiveSearchSettings | None = None,
    workers: int | None = None,
) -> None:
    """Generate proposals for some images of a store without writing it. A later call to `propose_all` reuses them.

    Several processes can call this function at the same time. Images that cannot be read are skipped; `propose_all`
    reports them. Raises UserError if selective search is not available, if the results cannot be written, if a worker
    process dies, or if `propose_all` is running for the same store.
    """
    refuse_import()
    with _work_folder(Path(store_path), shared=True) as work:
        _make_results(images, work, settings or SelectiveSearchSettings(), workers)


@contextmanager
def _work_folder(store_path: Path, shared: bool = False) -> Iterator[Path]:
    """Lock and yield the folder for the results of single images. `propose_all` deletes it when the store is complete.

    shared: allow other processes that also pass shared=True. Raises BusyError if another process has locked the folder,
    and UserError if the folder cannot be written to or locked.
    """
    work = store_path.with_name(f".{store_path.name}.work")
    busy = "another process is generating these proposals"
    with lock(work / "lock", str(work), busy, "choose another path for the store", shared):
        yield work


def _make_results(
    images: Sequence[Sample],
    work: Path,
    settings: SelectiveSearchSettings,
    workers: int | None,
) -> dict[str, Path | str]:
    """Return, for each image id, the file with the result, or an error message if the image cannot be read."""
    how = json.dumps([searcher(settings), asdict(settings)], sort_keys=True)
    tasks = [(image, work, settings, how) for image in images]
    workers = min(workers or cores(), len(tasks))
    died = (
        "A process that generates proposals died, most likely because it ran out of memory. Run the command again to "
        "resume. If it fails again, use fewer workers."
    )

    def results() -> Iterator[tuple[str, Path | str]]:
        if workers <= 1:
            yield from map(_make_one, tasks)
            return
        with pool(workers, start_worker, died) as executor:
            for start in range(0, len(tasks), BATCH * workers):  # the futures of a million images would need 1 GB
                yield from map_in_order(executor, _make_one, tasks[start : start + BATCH * workers])

    return dict(progress(results(), total=len(tasks), what="Proposals"))


def start_worker() -> None:
    """Initialise a spawned worker process of `pool`, and let OpenCV use only one thread in it."""
    prepare()
    cv2.setNumThreads(1)


def _make_one(task: tuple[Sample, Path, SelectiveSearchSettings, str]) -> tuple[str, Path | str]:
    image, work, settings, how = task
    try:
        key = hashlib.sha256(how.encode() + b"\0" + content_key(image)).hexdigest()
        file = work / key[:2] / f"{key}.npz"
        with suppress(Exception):  # numpy raises various errors for a missing or damaged result
            _load(file)
            return image.image_id, file
        pixels = read_sample(image)
        boxes, scores = propose_scored(pixels, settings)
    except UserError as error:
        return image.image_id, str(error)
    with write_atomically(file) as part, part.open("wb") as handle:
        np.savez(handle, size=np.array(pixels.shape[:2]), boxes=boxes, scores=scores)
    return image.image_id, file


def _load(file: Path | str) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Read a result file. Return the image height and width in pixels, the boxes (P, 4) and the scores (P,)."""
    with np.load(file, allow_pickle=False) as result:
        height, width = result["size"].tolist()
        return height, width, result["boxes"], result["scores"]
