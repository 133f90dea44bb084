"""Reading a whole data set once, on all cores: every annotation, every pixel, every proposal.

What one image gives is a `Record`; `report.py` makes the report of them. Nothing stops at a bad file, and nothing is
written.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastrcnn import boxes as box_ops
from fastrcnn.data.annotations.problems import Problem
from fastrcnn.data.annotations.truth import Annotated, AnnotatedObject
from fastrcnn.data.annotations.voc import read_voc
from fastrcnn.data.frames import disagreement, turn_for
from fastrcnn.data.images import Stored, decode_stored, is_deep, read_bytes
from fastrcnn.errors import UserError
from fastrcnn.parallel.launch import cores
from fastrcnn.parallel.processes import pool, refuse_import
from fastrcnn.progress import progress
from fastrcnn.proposals.clean import clean
from fastrcnn.proposals.generate import start_worker
from fastrcnn.proposals.store import ProposalStore

CHUNK = 16  # images that a process takes at a time
COLOURS = {"1": "gray", "L": "gray", "LA": "gray", "P": "palette", "CMYK": "CMYK", "RGBA": "RGBA", "I": "16-bit"}


@dataclass(frozen=True)
class Settings:
    """What training will do with the data set; see `RoISampler` for the overlaps."""

    max_proposals: int | None = 2000
    use_difficult: bool = True
    first_pixel: int = 1
    leave_out_others: bool = False  # objects of other classes than those that are named
    leave_out_missing: bool = False  # images without proposals
    short_sides: tuple[int, ...] = (600,)
    long_side: int = 1000
    rois_per_image: int = 64
    fg_fraction: float = 0.25
    fg_iou: float = 0.5
    bg_iou: tuple[float, float] = (0.1, 0.5)


@dataclass(frozen=True)
class Task:
    """An image to read."""

    role: str  # train or test
    split: str
    source: Path  # a folder in VOC layout, or a COCO file
    image_id: str
    store: Path | None = None  # of its proposals
    image: Annotated | None = None  # what a COCO file says; XML is read with the image


@dataclass(frozen=True)
class Record:
    """What reading one image gave."""

    task: Task
    image: Annotated
    objects: tuple[AnnotatedObject, ...]  # G usable ones
    problems: tuple[Problem, ...]
    size: tuple[int, int] | None = None  # width and height in pixels as it is used; None where it cannot be decoded
    stored: Stored | None = None  # what the image's file says
    turn: int = 1  # EXIF orientation that is applied when it is read
    colour: str = "RGB"  # RGB, gray, palette, CMYK, RGBA or 16-bit, as stored
    digest: bytes = b""  # SHA-256 of the file
    proposals: int | None = None  # used of it; None where there are none to read
    best: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (G,) float64, IoU with the best proposal
    foreground: int = 0  # RoIs, truth included, that a training step may draw as foreground
    background: int = 0

    @property
    def usable(self) -> bool:
        """Whether the image and its annotation can be read."""
        return self.size is not None and self.image.size is not None

    @property
    def names(self) -> list[str]:
        """Of the objects' classes."""
        return [o.name for o in self.objects]

    @property
    def boxes(self) -> np.ndarray:
        """The objects' boxes (G, 4) float32, half-open, cut off at the image's border."""
        boxes = np.array([o.box for o in self.objects], np.float32).reshape(-1, 4)
        return np.clip(boxes, 0, np.array([self.image.width, self.image.height] * 2, np.float32))

    @property
    def difficult(self) -> np.ndarray:
        """(G,) bool."""
        return np.array([o.difficult for o in self.objects], bool)


def sort_out(image: Annotated, training: bool) -> tuple[tuple[AnnotatedObject, ...], tuple[Problem, ...]]:
    """The usable objects of an image, and all problems. training: whether the image is to train on."""
    problems, usable = list(image.problems), []
    for o in image.objects or ():
        if note := o.flag_note(training):
            problems.append(note)
        if not o.listed:
            problems.append(o.problem("unknown_class", f"unknown class '{o.name}': the file has no such category."))
        elif o.fault:
            problems.append(o.box_problem())
        else:
            usable.append(o)
    return tuple(usable), tuple(problems)


def read_all(tasks: Sequence[Task], settings: Settings, workers: int | None = None) -> list[Record]:
    """Reads all images, in `workers` processes (by default one a core); records come in the order of the tasks.

    Raises UserError where a store of proposals cannot be opened or a process dies. Scripts that call this need the
    usual `if __name__ == "__main__":`.
    """
    refuse_import()
    return list(progress(_records(tasks, settings, workers or cores()), len(tasks), "checking"))


def _records(tasks: Sequence[Task], settings: Settings, workers: int) -> Iterator[Record]:
    stores = {path: ProposalStore(path) for path in dict.fromkeys(t.store for t in tasks) if path is not None}
    chunks = [tasks[i : i + CHUNK] for i in range(0, len(tasks), CHUNK)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        yield from (read_one(task, settings, stores) for task in tasks)
        return
    died = "A process that reads the data set died, most likely because memory ran out. Run again with fewer workers."
    with pool(workers, _start, died) as executor:
        for records in executor.map(_read_chunk, chunks, repeat(settings), repeat(stores)):
            yield from records


def _start() -> None:
    start_worker()
    torch.set_num_threads(1)


def _read_chunk(tasks: Sequence[Task], settings: Settings, stores: Mapping[Path, ProposalStore]) -> list[Record]:
    return [read_one(task, settings, stores) for task in tasks]


def read_one(task: Task, settings: Settings, stores: Mapping[Path, ProposalStore]) -> Record:
    """Reads one image, its annotation and its proposals; whatever is wrong becomes a Problem of the record."""
    image = task.image
    if image is None:
        (image,) = read_voc(task.source, [task.image_id], first_pixel=settings.first_pixel)
    objects, found = sort_out(image, task.role == "train")
    record, problems = Record(task, image, objects, ()), list(found)
    if not {p.kind for p in problems} & {"missing_picture", "link"}:
        try:
            record = _with_picture(record)
        except UserError as error:
            problems.append(Problem("bad_picture", str(image.path), str(error).removeprefix(f"{image.path}: ")))
    if record.stored is not None and image.size and record.size != image.size:
        problems.append(Problem("picture_size", str(image.path), disagreement(record.stored, image.size)))
    if task.store is not None and (record.size or image.size):
        try:
            record = _with_proposals(record, stores[task.store], settings, problems)
        except UserError as error:
            problems.append(Problem("bad_proposals", str(task.store), f"'{task.image_id}': {error}"))
    return replace(record, problems=tuple(problems))


def _with_picture(record: Record) -> Record:
    """The record with what the image's file says; raises UserError where it cannot be decoded."""
    data = read_bytes(record.image.path)
    _, stored = decode_stored(data, record.image.path)
    turn = turn_for(stored, record.image.size) or 1  # where neither fits, the sizes are a problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as header:
            colour = COLOURS.get(header.mode.partition(";")[0], "RGB")
    if is_deep(data) or stored.bits is not None:  # Pillow hides it of RGB
        colour = "16-bit"
    size = stored.size if turn == 1 else stored.upright
    return replace(record, size=size, stored=stored, turn=turn, colour=colour, digest=hashlib.sha256(data).digest())


def _with_proposals(record: Record, store: ProposalStore, settings: Settings, problems: list[Problem]) -> Record:
    """The record with what its proposals give; `problems` grows by what is wrong with them."""
    path, image_id, image = store.path, record.task.image_id, record.image
    if image_id not in store:
        kind = "left_out" if settings.leave_out_missing else "no_proposals"
        problems.append(Problem(kind, str(image.path), f"{path} has none for '{image_id}'."))
        return record
    (height, width), size = store.size(image_id), record.size or image.size
    if size and (width, height) != size:
        what = f"'{image_id}' has {width} x {height} pixels there, but the image has {size[0]} x {size[1]}."
        problems.append(Problem("proposal_size", str(path), what))
        return record
    found = store.boxes(image_id)[: settings.max_proposals]
    sound, _, counts = clean(found, height, width)
    if counts.dropped or counts.clipped:
        what = f"'{image_id}': {counts.dropped + counts.clipped} boxes are no numbers, inverted, or out of the image."
        problems.append(Problem("bad_proposals", str(path), what))
    boxes, trained = record.boxes, [o.trained_on(settings.use_difficult) for o in record.objects]
    overlaps = box_ops.iou(torch.from_numpy(boxes).double(), torch.from_numpy(sound).double())
    used = torch.from_numpy(boxes[np.array(trained, bool)])
    rois = torch.cat((torch.from_numpy(sound), used))
    best = box_ops.iou(rois, used).amax(dim=1) if len(used) else rois.new_zeros(len(rois))
    low, high = settings.bg_iou
    return replace(
        record,
        proposals=len(found),
        best=overlaps.numpy().max(axis=1, initial=0.0),
        foreground=int((best >= settings.fg_iou).sum()),
        background=int(((best >= low) & (best < high)).sum()),
    )
