"""Read all annotations, images and proposals of a data set once, on all cores.

The result of reading an image is a `Record`. `report.py` computes the report from all records. Errors in files are
recorded and do not stop reading. Nothing is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fastrcnn import boxes as box_ops
from fastrcnn.data.annotations.formats.voc import read_voc
from fastrcnn.data.frames import disagreement, turn_for
from fastrcnn.data.images import Stored, decode_stored, read_bytes
from fastrcnn.data.truth.annotated import Annotated, AnnotatedObject
from fastrcnn.data.truth.problems import Problem
from fastrcnn.errors import UserError
from fastrcnn.parallel.launch import cores
from fastrcnn.parallel.processes import map_in_order, pool, refuse_import
from fastrcnn.progress import progress
from fastrcnn.proposals.clean import clean
from fastrcnn.proposals.generate import start_worker
from fastrcnn.proposals.store import ProposalStore
from fastrcnn.settings import SolverSettings

CHUNK = 16  # number of images that a worker process receives at a time
COLOURS = {"1": "gray", "L": "gray", "LA": "gray", "P": "palette", "CMYK": "CMYK", "RGBA": "RGBA", "I": "16-bit"}


@dataclass(frozen=True)
class Settings:
    """The training settings that affect the check. Fields without a comment are named after their configuration key."""

    max_proposals: int | None = 2000
    use_difficult: bool = True
    first_pixel: int = 1
    leave_out_others: bool = False  # data.other_classes=leave_out: ignore objects of unknown classes
    leave_out_missing: bool = False  # data.missing_proposals=leave_out: skip images without proposals
    short_sides: Sequence[int] = (600,)
    long_side: int = 1000
    solver: SolverSettings = field(default_factory=SolverSettings)


@dataclass(frozen=True)
class Task:
    """An image of a split that is to be read."""

    role: str  # train, val or test
    split: str
    source: Path  # the folder of a data set in VOC layout, or an annotation file of several images
    image_id: str
    store: Path | None = None  # the proposal store of the split
    image: Annotated | None = None  # None for VOC layout; the XML file is then read together with the image


@dataclass
class Record:
    """The result of reading one image with its annotation and proposals. G: number of usable objects."""

    task: Task
    image: Annotated
    objects: list[AnnotatedObject]  # the usable objects
    problems: list[Problem]
    stored: Stored | None = None  # properties of the image file; None if it cannot be decoded
    turn: int = 1  # EXIF orientation that is applied when the image is read
    digest: bytes = b""  # SHA-256 of the image file
    proposals: int | None = None  # number of proposals that training uses; None if none could be read
    best: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (G,) float64, best IoU of each object
    foreground: int = 0  # number of RoIs, including ground-truth boxes, that can be sampled as foreground
    background: int = 0  # number of RoIs that can be sampled as background

    @property
    def size(self) -> tuple[int, int] | None:
        """Return the width and height in pixels after the EXIF rotation, or None if the image cannot be decoded."""
        return self.stored.rotated(self.turn) if self.stored else None

    @property
    def colour(self) -> str:
        """Return the stored colour format: RGB, gray, palette, CMYK, RGBA or 16-bit."""
        if self.stored is None:
            return "RGB"
        return COLOURS.get(self.stored.mode.partition(";")[0], "RGB") if self.stored.bits is None else "16-bit"

    @property
    def usable(self) -> bool:
        """Return whether the image and its annotation can be read."""
        return self.size is not None and self.image.size is not None

    @property
    def names(self) -> list[str]:
        """Return the class names of the objects."""
        return [o.name for o in self.objects]

    @property
    def boxes(self) -> np.ndarray:
        """Return the boxes of the objects as (G, 4) float32, half-open and clipped to the image."""
        boxes = np.array([o.box for o in self.objects], np.float32).reshape(-1, 4)
        return np.clip(boxes, 0, np.array([self.image.width, self.image.height] * 2, np.float32))

    @property
    def difficult(self) -> np.ndarray:
        """Return whether each object is difficult, as (G,) bool."""
        return np.array([o.difficult for o in self.objects], bool)

    def report(self, kind: str, file: Path, what: str) -> None:
        self.problems.append(Problem(kind, str(file), what))


def sort_out(image: Annotated, training: bool) -> tuple[list[AnnotatedObject], list[Problem]]:
    """Return the usable objects and all problems of an image. training: whether it is in a training split."""
    problems, usable = list(image.problems), []
    for o in image.objects or ():
        if note := o.flag_note(training):
            problems.append(note)
        if error := o.error():
            problems.append(error)
        else:
            usable.append(o)
    return usable, problems


def read_all(tasks: Sequence[Task], settings: Settings, workers: int | None = None) -> list[Record]:
    """Read the images of all tasks in `workers` processes (default: one per core). Records are in the order of tasks.

    Raises UserError if a proposal store cannot be opened or a worker process dies. A script that calls this function
    must do so below `if __name__ == "__main__":`.
    """
    refuse_import()
    return list(progress(_records(tasks, settings, workers or cores()), len(tasks), "checking"))


def _records(tasks: Sequence[Task], settings: Settings, workers: int) -> Iterator[Record]:
    stores = {path: ProposalStore(path) for path in dict.fromkeys(t.store for t in tasks) if path is not None}
    workers = min(workers, -(-len(tasks) // CHUNK))
    if workers <= 1:
        yield from (read_one(task, settings, stores) for task in tasks)
        return
    died = "A worker process died, probably because of a lack of memory. Run again with fewer workers."
    with pool(workers, _start, died) as executor:
        yield from map_in_order(executor, partial(read_one, settings=settings, stores=stores), tasks, CHUNK)


def _start() -> None:
    start_worker()
    torch.set_num_threads(1)


def read_one(task: Task, settings: Settings, stores: Mapping[Path, ProposalStore]) -> Record:
    """Read an image, its annotation and its proposals. Errors are added to `problems` of the result."""
    image = task.image or next(read_voc(task.source, [task.image_id], first_pixel=settings.first_pixel))
    record = Record(task, image, *sort_out(image, task.role == "train"))
    if not {p.kind for p in record.problems} & {"missing_image", "link"}:
        _read_image(record)
    if task.store is not None and (record.size or image.size):
        try:
            _read_proposals(record, stores[task.store], settings)
        except UserError as error:
            record.report("bad_proposals", task.store, f"'{task.image_id}': {error}")
    return record


def _read_image(record: Record) -> None:
    """Decode the image file and add its properties to the record."""
    path, size = record.image.path, record.image.size
    try:
        data = read_bytes(path)
        stored = decode_stored(data, path)[1]
    except UserError as error:
        record.report("bad_image", path, str(error).removeprefix(f"{path}: "))
        return
    turn = turn_for(stored, size)
    if turn is None and size is not None:
        record.report("image_size", path, disagreement(stored, size))
    record.stored, record.turn, record.digest = stored, turn or 1, hashlib.sha256(data).digest()


def _read_proposals(record: Record, store: ProposalStore, settings: Settings) -> None:
    """Read the proposals of the image and add their statistics to the record."""
    image_id, image, solver = record.task.image_id, record.image, settings.solver
    if image_id not in store:
        kind = "left_out" if settings.leave_out_missing else "no_proposals"
        record.report(kind, image.path, f"{store.path} contains no proposals for '{image_id}'.")
        return
    (height, width), size = store.size(image_id), record.size or image.size
    if size and (width, height) != size:
        what = f"the proposals of '{image_id}' are for an image of {width} x {height} pixels, but the image has "
        what += f"{size[0]} x {size[1]}."
        record.report("proposal_size", store.path, what)
        return
    found = store.boxes(image_id)[: settings.max_proposals]
    sound, _, counts = clean(found, height, width)
    if counts.dropped or counts.clipped:
        number = counts.dropped + counts.clipped
        what = f"'{image_id}': {number} box(es) are not finite, are inverted, or extend beyond the image."
        record.report("bad_proposals", store.path, what)
    boxes, trained = record.boxes, [o.trained_on(settings.use_difficult) for o in record.objects]
    overlaps = box_ops.iou(torch.from_numpy(boxes).double(), torch.from_numpy(sound).double())
    used = torch.from_numpy(boxes[np.array(trained, bool)])
    rois = torch.cat((torch.from_numpy(sound), used))
    best = box_ops.iou(rois, used).amax(dim=1) if len(used) else rois.new_zeros(len(rois))
    low, high = solver.bg_iou
    record.proposals, record.best = len(found), overlaps.numpy().max(axis=1, initial=0.0)
    record.foreground = int((best >= solver.fg_iou).sum())
    record.background = int(((best >= low) & (best < high)).sum())
