"""Batches: which pictures go together, and how they become tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from fastrcnn.data.dataset import DetectionDataset, Example, Pyramids, to_tensor
from fastrcnn.errors import UserError
from fastrcnn.structures import Batch


def collate(examples: Sequence[Example]) -> Batch:
    """A Batch of pictures, padded with 0 to the largest height and width among them."""
    height = max(e.image.shape[0] for e in examples)
    width = max(e.image.shape[1] for e in examples)
    images = torch.zeros((len(examples), 3, height, width), dtype=torch.uint8)
    for i, e in enumerate(examples):
        h, w = e.image.shape[:2]
        images[i, :, :h, :w] = torch.from_numpy(np.ascontiguousarray(e.image)).permute(2, 0, 1)
    return Batch(
        images=images,
        sizes=torch.tensor([e.image.shape[:2] for e in examples]),
        scales=torch.tensor([e.scale for e in examples], dtype=torch.float64),
        proposals=[to_tensor(e.proposals) for e in examples],
        boxes=[to_tensor(e.boxes) for e in examples],
        labels=[torch.from_numpy(e.labels.copy()) for e in examples],
        samples=[e.sample for e in examples],
    )


class EndlessBatches(Sampler[list[tuple[int, int]]]):
    """Lists of (epoch, index) without end, every picture once an epoch, in an order that the seed decides.

    Batches run on over the end of an epoch, so that none is short. start: number of batches already used by the run
    that is being resumed.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
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
            yield batch

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)


class Loader(DataLoader):
    """A DataLoader whose workers' UserErrors arrive as they were raised, without the workers' traceback."""

    def __iter__(self) -> Iterator:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].rstrip()) from None


def training_loader(
    dataset: DetectionDataset, batch_size: int, workers: int = 0, start: int = 0, pin_memory: bool = False
) -> DataLoader:
    """Batches without end for training, from batch number `start` on."""
    return Loader(
        dataset,
        batch_sampler=EndlessBatches(len(dataset), batch_size, dataset.seed, start),
        collate_fn=collate,
        **_options(workers, pin_memory),
    )


def detection_loader(
    dataset: DetectionDataset, batch_size: int = 1, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """Every picture once, in order, as pyramids: for so many pictures a list of batches, one for each short side."""
    return Loader(
        Pyramids(dataset), batch_size=batch_size, collate_fn=collate_pyramids, **_options(workers, pin_memory)
    )


def collate_pyramids(pyramids: Sequence[list[Example]]) -> list[Batch]:
    """For each level of the pictures' pyramids a Batch."""
    return [collate(level) for level in zip(*pyramids, strict=True)]


def _options(workers: int, pin_memory: bool) -> dict:
    # A generator of its own: a DataLoader's iterator draws a number, which must not come from the global generator.
    generator = torch.Generator().manual_seed(0)
    return {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "generator": generator,
        "persistent_workers": workers > 0,
        "prefetch_factor": 4 if workers > 0 else None,
    }
