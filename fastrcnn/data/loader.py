"""Select the images of each batch, load them, and collate them into tensors."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from fastrcnn.data.dataset import DetectionDataset, Example, Views, to_tensor
from fastrcnn.data.frames import read_sample
from fastrcnn.data.transforms import show
from fastrcnn.errors import UserError
from fastrcnn.parallel import distributed
from fastrcnn.parallel.processes import UNGUARDED, missing_guard, prepare, refuse_import, start_method
from fastrcnn.structures import Batch, Sample, View


def collate(examples: Sequence[Example]) -> Batch:
    """Collate examples into a Batch. Images are padded with 0 to the largest height and width among the examples."""
    absent = np.zeros((0, 0, 3), np.uint8)
    images, sizes = pad([as_tensor(absent if e.image is None else e.image) for e in examples])
    return Batch(
        images=images,
        sizes=sizes,
        scales=torch.tensor([e.scale for e in examples], dtype=torch.float64, device="cpu"),
        proposals=[to_tensor(e.proposals) for e in examples],
        boxes=[to_tensor(e.boxes) for e in examples],
        labels=[torch.from_numpy(e.labels.copy()) for e in examples],
        samples=[e.sample for e in examples],
        views=[e.view for e in examples],
    )


def pixels(sample: Sample, view: View) -> torch.Tensor:
    """Read the image of a sample and apply a view (crop, flips, scale, colours). Return (3, H, W) uint8 RGB.

    Raises UserError if the image cannot be read.
    """
    return as_tensor(show(read_sample(sample), view)[0])


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert an image (H, W, 3) to a tensor (3, H, W)."""
    return torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)


def with_pixels(batch: Batch) -> Batch:
    """Return a batch with the pixels of all its images. Missing pixels are read from the image files."""
    if batch.sizes.all():
        return batch
    shown = [
        batch.images[i, :, :height, :width] if height else pixels(batch.samples[i], batch.views[i])
        for i, (height, width) in enumerate(batch.sizes.tolist())
    ]
    images, sizes = pad(shown)
    return replace(batch, images=images, sizes=sizes)


def pad(images: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack images (C, H_i, W_i), padded with 0 at the right and bottom. Also return heights and widths (N, 2)."""
    sizes = torch.tensor([image.shape[1:] for image in images], device="cpu")
    shape = len(images), len(images[0]), *sizes.amax(dim=0).tolist()
    padded = torch.zeros(shape, dtype=images[0].dtype, device="cpu")
    for i, image in enumerate(images):
        padded[i, :, : image.shape[1], : image.shape[2]] = image
    return padded, sizes


@dataclass(eq=False)
class EndlessBatches(Sampler[list[tuple[int, int]]]):
    """A sampler that returns an endless sequence of batches, which are lists of (epoch, image index) pairs.

    Each epoch contains every image once, in random order. A batch can contain images of two epochs, so all batches have
    the same size.

    length: number of images. batch_size: number of images in a batch, summed over all processes.
    seed: determines the order. start: number of batches to skip, because the run used them before it was resumed.
    part: (rank, number of processes). The sampler returns only this process's share of every batch.
    wide: (length,) bool, True for images that are wider than high. If given, batches contain only wide images or only
    other images, which reduces padding. Batches around the boundary of two epochs can contain both.
    """

    length: int
    batch_size: int
    seed: int
    start: int = 0
    part: tuple[int, int] = (0, 1)
    wide: np.ndarray | None = None

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number, parts = self.part
        own = slice(number * self.batch_size // parts, (number + 1) * self.batch_size // parts)
        epoch, position = divmod(self.start * self.batch_size, self.length)
        order = self._order(epoch)
        while True:
            batch: list[tuple[int, int]] = []
            while len(batch) < self.batch_size:
                if position == self.length:
                    epoch, position = epoch + 1, 0
                    order = self._order(epoch)
                batch.append((epoch, int(order[position])))
                position += 1
            yield batch[own]

    def _order(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        if self.wide is None:
            return order
        begun = -epoch * self.length % self.batch_size  # images that complete the last batch of the previous epoch
        places = np.arange(begun, self.length)
        batches, left = [], []
        for alike in (places[self.wide[order[begun:]]], places[~self.wide[order[begun:]]]):
            full = len(alike) - len(alike) % self.batch_size
            batches.extend(alike[:full].reshape(-1, self.batch_size))
            left.extend(alike[full:])
        batches.sort(key=lambda batch: int(batch[0]))  # a random order, so that neither kind comes first
        return order[np.concatenate([np.arange(min(begun, self.length)), *batches, np.sort(left)]).astype(np.int64)]


class WorkerDiedError(UserError):
    """A process that loads images died. The batches that were assigned to it are lost."""


class Loader(DataLoader):
    """A DataLoader that re-raises a worker's UserError without the worker's traceback.

    If a worker process dies, fetching the next batch raises WorkerDiedError with its exit status or signal.
    """

    def __iter__(self) -> Iterator:  # type: ignore[override]
        if not self.num_workers:
            yield from super().__iter__()
            return
        refuse_import()
        others = multiprocessing.active_children()
        answered = signal.getsignal(signal.SIGCHLD)
        method = multiprocessing.get_start_method()
        try:
            with start_method(method):
                iterator = super().__iter__()
        except (OSError, EOFError):  # from the pipe to a process that is importing the main script
            if method == "fork":
                raise
            raise WorkerDiedError(
                f"A process that loads images exited while it was starting. {missing_guard()}"
            ) from None
        if answered is not None and threading.current_thread() is threading.main_thread():
            # torch installed a signal handler that can raise at any time, even while a checkpoint is written.
            # Without it, a dead worker is detected within five seconds, because its batch does not arrive.
            signal.signal(signal.SIGCHLD, answered)
        own = [process for process in multiprocessing.active_children() if process not in others]
        ended = False
        try:
            yield from iterator
            ended = True
        except UserError as error:
            raise UserError(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].rstrip()) from None
        except (RuntimeError, OSError, EOFError) as error:  # no batch or only part of a batch arrived
            # If a pipe is closed, its process is about to exit, which can take a while on a busy machine.
            if dead := _dead(own, within=1.0 if isinstance(error, RuntimeError) else 60.0):
                if any(process.exitcode == UNGUARDED for process in dead):
                    raise UserError(missing_guard()) from None
                raise WorkerDiedError(_obituary(dead)) from None
            raise
        finally:
            if not ended:  # the dead worker can have held a lock that the others would wait for forever
                _stop_pinning(iterator)
                for process in own:
                    process.kill()


def _stop_pinning(iterator: Any) -> None:
    """End the thread that copies batches to pinned memory, if there is one. Call this before workers are killed.

    The thread waits forever for the rest of a message whose sender was killed, and DataLoader waits for the thread. If
    a worker died in the middle of a message, the thread cannot be ended, and is left to the end of the process.
    """
    if hasattr(iterator, "_pin_memory_thread"):
        iterator._pin_memory_thread_done_event.set()
        iterator._worker_result_queue.cancel_join_thread()
        iterator._worker_result_queue.put((None, None))  # wakes the thread
        iterator._pin_memory_thread.join(10.0)
        del iterator._pin_memory_thread  # DataLoader would wait for it without a time limit


def _dead(processes: Sequence[BaseProcess], within: float) -> list[BaseProcess]:
    """Return the processes that have exited. If all are running, wait up to `within` seconds for one to exit."""
    ended = wait([process.sentinel for process in processes], timeout=within)
    for process in processes:
        if process.sentinel in ended:  # its files are closed, but it can take a moment to exit
            process.join(60.0)
    return [process for process in processes if not process.is_alive()]


def _obituary(dead: Sequence[BaseProcess]) -> str:
    """Return an error message with the id, and the signal or exit status, of each dead process, and with advice."""
    causes = []
    for process in dead:
        code = process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        causes.append(f"process {process.pid} ({how})")
    return (
        f"Loading images failed because of dead worker processes: {', '.join(causes)}. The most likely cause is a "
        "lack of memory. Reduce runtime.workers (0 loads images in the main process), or use smaller images."
    )


def start_worker(_number: int) -> None:
    """Make a worker process ignore SIGINT and SIGTERM, and exit when its parent process ends."""
    prepare((signal.SIGINT, signal.SIGTERM))


def training_loader(
    dataset: DetectionDataset,
    batch_size: int,
    workers: int = 0,
    start: int = 0,
    pin_memory: bool = False,
    group_aspects: bool = False,
) -> DataLoader:
    """Return a loader of endless training batches that begins with batch number `start`, counted from 0.

    batch_size: number of images in a batch, summed over all processes. Each process loads only its share of them.
    group_aspects: put images that are wider than high and other images into separate batches (see EndlessBatches).
    """
    wide = np.array([s.width > s.height for s in dataset.samples]) if group_aspects else None
    part = distributed.rank(), distributed.size()
    return Loader(
        dataset,
        batch_sampler=EndlessBatches(len(dataset), batch_size, dataset.seed, start, part, wide),
        collate_fn=collate,
        **_options(workers, pin_memory),
    )


def detection_loader(
    dataset: DetectionDataset, batch_size: int = 1, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """Return a loader of image pyramids (images in several sizes), in the order of the data set.

    Each item is a list of batches, which contain the same `batch_size` images at different scales (lengths of the short
    side). With several processes, each process loads only its share of the images (see distributed.share).
    """
    levels = dataset.augmentation.levels()
    own = Views(dataset, [(index, levels) for index in distributed.share(range(len(dataset)))])
    return Loader(own, batch_size=batch_size, collate_fn=collate_pyramids, **_options(workers, pin_memory))


def views_loader(dataset: DetectionDataset, chosen: Sequence[tuple[int, View]], workers: int = 0) -> DataLoader:
    """Return a loader of images after transformations, in order. Each item is a list with one Batch of one image."""
    own = Views(dataset, [(index, [view]) for index, view in chosen])
    return Loader(own, batch_size=1, collate_fn=collate_pyramids, **_options(workers, False))


def collate_pyramids(pyramids: Sequence[list[Example]]) -> list[Batch]:
    """Collate image pyramids, which are lists of Examples of one image in several sizes, into one Batch per size."""
    return [collate(level) for level in zip(*pyramids, strict=True)]


def _options(workers: int, pin_memory: bool) -> dict:
    # The iterator of a DataLoader draws a random number, which must not come from the global generator.
    generator = torch.Generator().manual_seed(0)
    return {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "generator": generator,
        "persistent_workers": workers > 0,
        "worker_init_fn": start_worker,
        "prefetch_factor": 4 if workers > 0 else None,
    }
