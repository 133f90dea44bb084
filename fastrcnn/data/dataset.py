"""Samples and their proposals to images with boxes, one at a time; runs in the loader's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from fastrcnn.data.frames import read_sample
from fastrcnn.data.transforms import Augmentation, boxes_in, scale_in, seen_in, show
from fastrcnn.structures import Sample, View

Proposals = Callable[[str], np.ndarray]  # image id -> (P, 4) float32, half-open, best first
Unneeded = Callable[[Sample, View], bool]


@dataclass(frozen=True)
class Example:
    """One image, ready to be put into a Batch. Boxes are in pixels of the image before it was scaled."""

    image: np.ndarray | None  # (H, W, 3) uint8 RGB; None where its pixels are not needed
    proposals: np.ndarray  # (P, 4) float32
    boxes: np.ndarray  # (G, 4) float32
    labels: np.ndarray  # (G,) int64
    scale: float
    sample: Sample
    view: View


@dataclass(eq=False)
class DetectionDataset(Dataset):
    """Images with truth and proposals."""

    samples: Sequence[Sample]
    proposals: Proposals
    augmentation: Augmentation  # how images are scaled and varied
    # With the epoch and the index it decides all that is random, so that workers and the program's history do not.
    seed: int = 0
    max_proposals: int | None = None  # the best so many are used; None for all
    unneeded: Unneeded | None = None  # tells the views of which no pixels are needed; those are not read

    def __len__(self) -> int:
        return len(self.samples)

    def proposal_boxes(self, index: int) -> np.ndarray:
        """Proposals (P, 4) of an image in its own pixels."""
        return np.asarray(self.proposals(self.samples[index].image_id)[: self.max_proposals])

    def truth_and_proposals(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Proposals (P, 4), truth (G, 4) and labels (G,) of an image in its own pixels, without reading it."""
        sample = self.samples[index]
        return to_tensor(self.proposal_boxes(index)), to_tensor(sample.training_boxes), torch.from_numpy(sample.labels)

    def view(self, epoch: int, index: int) -> View:
        """How an image is shown in an epoch."""
        sample = self.samples[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        return self.augmentation.view(rng, sample.training_boxes, sample.width, sample.height)

    def views(self, epochs: range) -> list[tuple[int, View]]:
        """How all images, each by its number, are shown in the epochs, in the order of their first use."""
        ways = len(set(self.augmentation.short_sides)) * 2 ** sum(
            (self.augmentation.flip, self.augmentation.flip_vertical, self.augmentation.transpose)
        )
        found: dict[tuple[int, View], None] = {}
        for epoch in epochs:
            if len(found) == ways * len(self):
                break
            found |= dict.fromkeys((index, self.view(epoch, index)) for index in range(len(self)))
        return list(found)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """The image `index`, varied, in the given epoch; `key` is (epoch, index). Raises as `picture` does."""
        return self.examples(key[1], [self.view(*key)])[0]

    def examples(self, index: int, views: Sequence[View]) -> list[Example]:
        """Views of the image `index`. Raises as `picture` does."""
        sample = self.samples[index]
        size, proposals, truth = (sample.width, sample.height), self.proposal_boxes(index), sample.training_boxes
        picture: np.ndarray | None = None
        examples = []
        for view in views:
            image = None
            if self.unneeded is None or not self.unneeded(sample, view):
                picture = self.picture(index) if picture is None else picture
                image, _ = show(picture, view)
            shown = seen_in(view, truth)
            boxes, objects = (boxes_in(view, b[seen_in(view, b)], *size) for b in (proposals, truth))
            examples.append(Example(image, boxes, objects, sample.labels[shown], scale_in(view, *size), sample, view))
        return examples

    def picture(self, index: int) -> np.ndarray:
        """The image (H, W, 3) as it is. Raises UserError as `read_sample` does."""
        cv2.setNumThreads(0)  # the workers share the cores already
        return read_sample(self.samples[index])


@dataclass(eq=False)
class Views(Dataset):
    """Chosen views of the images of a DetectionDataset: by its number an image's, as a list."""

    dataset: DetectionDataset
    chosen: Sequence[tuple[int, Sequence[View]]]  # of which image

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, number: int) -> list[Example]:
        return self.dataset.examples(*self.chosen[number])


def to_tensor(boxes: np.ndarray) -> torch.Tensor:
    """Boxes (R, 4) as a tensor of their own (memory-mapped arrays are read-only)."""
    return torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4))
