"""Selective search: class-independent object proposals from hierarchies of merged segments, with OpenCV.

Uijlings et al., "Selective Search for Object Recognition", IJCV 2013. An image is cut into segments in
several colour spaces and at several coarsenesses; neighbours are merged, most similar first, until one is
left; every segment that ever existed gives a box.

What differs from OpenCV's ready-made modes, and why (figures in BENCHMARKS.md):
 - The search runs on a picture of one fixed size, so that the coarseness means the same for every image; a
   smaller picture costs a fraction of the time, and boxes are hardly less exact for it.
 - OpenCV's own order of the boxes depends on the C library's rand() and differs from call to call. The set
   of boxes does not. So the set is sorted, shuffled with a fixed seed, and thinned of near-duplicates: what
   is kept is the same everywhere and spread evenly; a cut through OpenCV's order keeps many copies of few.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from fastrcnn.data.images import decode, read_bytes
from fastrcnn.data.proposals import BoxCounts, ImageProposals, check_target, write_store
from fastrcnn.errors import UserError, nearest
from fastrcnn.launch import cores
from fastrcnn.progress import progress

GENERATOR = "selective search"
ALGORITHM = 1  # raise it when `propose` comes to give other boxes for the same settings

BLOCK = 128  # boxes that are thinned at a time
COLOURS = {"fast": ("hsv", "lab"), "quality": ("hsv", "lab", "intensity", "hue", "rgi")}


class BusyError(UserError):
    """Another run is making the same proposals."""


T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class SelectiveSearchSettings:
    """What to search, and how many boxes to keep.

    Raises UserError for a value that makes no sense.
    """

    mode: str = "fast"  # colour spaces: "fast" HSV and Lab; "quality" also intensity, hue, and red-green-intensity
    side: int = 320  # the longer side, in pixels, of the picture that is searched
    k: tuple[float, ...] = (25, 50, 100, 200)  # coarseness of the segmentations; larger means larger segments
    sigma: float = 0.8  # blur before segmenting, in pixels of the searched picture
    min_size: int = 50  # smallest segment, in pixels (an area) of the searched picture
    min_side: float = 0  # boxes narrower or lower than this, in pixels of the original image, are left out
    near: float = 0.9  # of boxes that overlap by this much (IoU) or more only one is kept
    max_boxes: int = 2000

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", tuple(self.k))  # a list, as configurations have it, is welcome
        if self.mode not in COLOURS:
            raise UserError(
                f"selective search: mode is '{self.mode}', not one of {', '.join(COLOURS)}."
                + nearest(str(self.mode), COLOURS)
            )
        for name in ("side", "sigma", "min_size", "near", "max_boxes"):
            if not getattr(self, name) > 0:
                raise UserError(f"selective search: {name} is {getattr(self, name)}; it must be above 0.")
        if not self.k or not all(k > 0 for k in self.k):
            raise UserError(f"selective search: k is {list(self.k)}; give one or more numbers above 0.")


def propose(image: np.ndarray, settings: SelectiveSearchSettings | None = None) -> np.ndarray:
    """Proposals (P, 4) float32 for an image (H, W, 3) uint8 RGB: half-open x1 y1 x2 y2 in its pixels.

    At most `max_boxes`, no two of them near-duplicates, in an order without meaning: the first n are a fair
    sample of all. The same image and settings give the same boxes, in whatever process and with however many
    threads.
    """
    settings = settings or SelectiveSearchSettings()
    height, width = image.shape[:2]
    scale = settings.side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    rectangles = np.unique(_search(small, settings), axis=0)  # sorted; x y width height
    boxes = rectangles.astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    boxes *= np.array([width, height, width, height]) / np.array([*size, *size])
    boxes = np.minimum(boxes, [width, height, width, height]).astype(np.float32)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= settings.min_side]
    boxes = boxes[np.random.default_rng(0).permutation(len(boxes))]
    return _thin(boxes, settings.near, settings.max_boxes)


def propose_all(
    images: Sequence[tuple[str, Path]],
    store_path: str | Path,
    settings: SelectiveSearchSettings | None = None,
    workers: int | None = None,
) -> BoxCounts:
    """Makes proposals for all `images`, pairs of id and path, and writes the store `store_path`.

    Runs in `workers` processes, by default one a core. Each image's result is kept in a folder beside the
    store until that is complete, so that a run that was interrupted, in whatever way, goes on where it
    stopped; results are found again by the image's content and the settings, never by its name or date.
    Scripts that call this need the usual `if __name__ == "__main__":`.

    Raises UserError, with the other images' results kept, naming all images that cannot be read; and for ids
    that come twice, a store that cannot be written, a second run on the same store, or a lack of OpenCV's
    extra modules.
    """
    settings = settings or SelectiveSearchSettings()
    store_path = Path(store_path)
    check_order(images, store_path)
    work = _work(store_path)
    with _held(work):
        results = _results(images, work, settings, workers or cores())
        found: dict[str, Path] = {}
        problems: list[str] = []
        for image_id, result in progress(results, total=len(images), what="Proposals"):
            if isinstance(result, Path):
                found[image_id] = result
            else:
                problems.append(result)
        if problems:
            listed = "\n".join(f"  {problem}" for problem in sorted(problems))
            raise UserError(
                f"{len(problems)} of {len(images)} images cannot be read:\n{listed}\nMend them or leave them "
                f"out, and run again; the proposals of the others are kept and will not be made again."
            )
        items = (_load(image_id, found[image_id]) for image_id, _ in images)
        counts = write_store(store_path, items, GENERATOR, asdict(settings) | {"opencv": cv2.__version__})
        shutil.rmtree(work, ignore_errors=True)
    return counts


def check_order(images: Sequence[tuple[str, Path]], store_path: Path) -> None:
    """Raises UserError for what no store could be made of, before any work is done."""
    twice = [image_id for image_id, n in Counter(image_id for image_id, _ in images).items() if n > 1]
    if twice:
        raise UserError(f"{store_path}: image '{twice[0]}' comes twice ({len(twice)} such ids); ids must differ.")
    check_target(store_path)
    _segmentation()


def propose_some(
    images: Sequence[tuple[str, Path]],
    store_path: str | Path,
    settings: SelectiveSearchSettings | None = None,
    workers: int | None = None,
) -> None:
    """Makes proposals for some of a store's images, for `propose_all` to find; others may make others meanwhile.

    Raises UserError as `propose_all` does, but not for images that cannot be read, which that will name.
    """
    work = _work(Path(store_path))
    with _held(work, shared=True):
        results = _results(images, work, settings or SelectiveSearchSettings(), workers or cores())
        for _ in progress(results, total=len(images), what="Proposals"):
            pass


def _work(store_path: Path) -> Path:
    """The folder of the results of single images, while their store is not complete."""
    return store_path.with_name(f".{store_path.name}.work")


def _search(image: np.ndarray, settings: SelectiveSearchSettings) -> np.ndarray:
    """All rectangles (P, 4) int32 x y width height that OpenCV's search finds; their order means nothing."""
    module = _segmentation()
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    colours = {
        "hsv": hsv,
        "lab": cv2.cvtColor(image, cv2.COLOR_RGB2Lab),
        "intensity": grey,
        "hue": np.ascontiguousarray(hsv[:, :, 0]),
        "rgi": np.dstack((image[:, :, 0], image[:, :, 1], grey)),
    }
    search = module.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    for name in COLOURS[settings.mode]:
        search.addImage(colours[name])
    for k in settings.k:
        search.addGraphSegmentation(module.createGraphSegmentation(settings.sigma, k, settings.min_size))
    # The same objects in both strategies: they keep the histograms of a segmentation.
    colour = module.createSelectiveSearchSegmentationStrategyColor()
    texture = module.createSelectiveSearchSegmentationStrategyTexture()
    size = module.createSelectiveSearchSegmentationStrategySize()
    fill = module.createSelectiveSearchSegmentationStrategyFill()
    multiple = module.createSelectiveSearchSegmentationStrategyMultiple
    search.addStrategy(multiple(colour, texture, size, fill))
    search.addStrategy(multiple(texture, size, fill))
    return np.asarray(search.process(), dtype=np.int32).reshape(-1, 4)


def _thin(boxes: np.ndarray, near: float, most: int) -> np.ndarray:
    """The first `most` boxes that do not overlap an earlier one kept by an IoU of `near` or more."""
    kept, number = np.empty((min(most, len(boxes)), 4), np.float32), 0
    for start in range(0, len(boxes), BLOCK):  # nothing behind the last box kept is looked at
        block = boxes[start : start + BLOCK]
        block = block[~_overlap(block, kept[:number], near).any(axis=1)]
        alike = _overlap(block, block, near)
        free = np.ones(len(block), bool)
        for i in range(len(block)):
            if free[i]:
                kept[number] = block[i]
                number += 1
                if number == most:
                    return kept
                free &= ~alike[i]
    return kept[:number].copy()


def _overlap(a: np.ndarray, b: np.ndarray, near: float) -> np.ndarray:
    """Whether each box of `a` (A, 4) overlaps each of `b` (B, 4) by an IoU of `near` or more: (A, B)."""
    ax1, ay1, ax2, ay2 = a.T[:, :, None]
    bx1, by1, bx2, by2 = np.ascontiguousarray(b.T)
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    intersection = width.clip(min=0) * height.clip(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return intersection >= near * union


def _segmentation() -> Any:
    module = getattr(getattr(cv2, "ximgproc", None), "segmentation", None)
    if module is None:
        names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
        others = sorted(n for n in names if n and n.startswith("opencv") and "contrib" not in n)
        remove = f"`pip uninstall -y {' '.join(others)}`, then " if others else ""
        raise UserError(
            f"OpenCV {cv2.__version__} in {Path(cv2.__file__).parent} has no selective search (cv2.ximgproc)"
            + (f", because {' and '.join(others)} took the place of the contrib build" if others else "")
            + f". Run {remove}`pip install --force-reinstall --no-deps opencv-contrib-python-headless`."
        )
    return module


def _results(
    images: Sequence[tuple[str, Path]], work: Path, settings: SelectiveSearchSettings, workers: int
) -> Iterator[tuple[str, Path | str]]:
    """For each image, as they come, its id and the file with its result, or else what is wrong with it."""
    tasks = [(image_id, Path(path), work, settings) for image_id, path in images]
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(_one, tasks)
        return
    # Not forked: the caller may have threads, torch's for one, and a fork of those can hang.
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    try:
        yield from _in_parallel(executor, _one, tasks, ahead=4 * workers)
    except BrokenProcessPool as error:
        raise UserError(
            "A process that makes proposals died, most likely for want of memory. Run again, perhaps with "
            "fewer workers; it goes on where it stopped."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _in_parallel(executor: Executor, function: Callable[[T], R], tasks: Iterable[T], ahead: int) -> Iterator[R]:
    """Results as they come. Only `ahead` tasks wait at a time: a million futures would take a gigabyte."""
    pending: set[Future[R]] = set()
    for task in tasks:
        if len(pending) >= ahead:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
        pending.add(executor.submit(function, task))
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def start_worker() -> None:
    """Prepares a spawned process that works on pictures: one thread, deaf to Ctrl-C, and gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent answers it
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)  # a killed parent cannot end us, and nobody waits for our results

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _one(task: tuple[str, Path, Path, SelectiveSearchSettings]) -> tuple[str, Path | str]:
    image_id, path, work, settings = task
    try:
        data = read_bytes(path)
        key = _key(data, settings)
        file = work / key[:2] / f"{key}.npz"
        if not _sound(file):
            image = decode(data, path)
            _save(file, image.shape[:2], propose(image, settings))
        return image_id, file
    except UserError as error:
        return image_id, str(error)


def _key(data: bytes, settings: SelectiveSearchSettings) -> str:
    how = json.dumps([ALGORITHM, cv2.__version__, asdict(settings)], sort_keys=True)
    return hashlib.sha256(how.encode() + b"\0" + hashlib.sha256(data).digest()).hexdigest()


def _save(file: Path, size: Sequence[int], boxes: np.ndarray) -> None:
    file.parent.mkdir(exist_ok=True)
    new = file.with_name(f"{uuid.uuid4().hex}.new")
    with new.open("wb") as handle:
        np.savez(handle, size=np.array(size), boxes=boxes)
    new.replace(file)


def _sound(file: Path) -> bool:
    """Whether the result is there and whole; a machine that went down may leave an empty file."""
    try:
        _load("", file)
    except Exception:  # whatever a damaged file leads numpy to; the result is then made again
        return False
    return True


def _load(image_id: str, file: Path) -> ImageProposals:
    with np.load(file, allow_pickle=False) as result:
        height, width = result["size"].tolist()
        return ImageProposals(image_id, height, width, result["boxes"])


@contextmanager
def _held(work: Path, shared: bool = False) -> Iterator[None]:
    """Makes the folder, and keeps a second run out of it while the body runs, however that ends. shared: keeps out
    those alone that do not share it. Raises UserError."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        handle = (work / "lock").open("a+")  # a shared lock over NFS is for files that are read
    except OSError as error:
        raise UserError(f"{work}: cannot be written ({error}); choose another place for the store.") from error
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError as error:
            raise BusyError(f"{work}: another run is making these proposals now; wait for it to end.") from error
        except OSError as error:
            raise UserError(f"{work}: cannot be locked ({error}); choose another place for the store.") from error
        yield
