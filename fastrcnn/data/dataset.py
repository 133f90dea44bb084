"""Load images with their boxes and proposals, one image at a time. This code usually runs in worker processes."""

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
    """An image and boxes, after the crop, flips and so on of a View. `collate` combines several examples into a Batch.

    Boxes are half-open x1 y1 x2 y2 in pixels of the cropped, transposed and flipped image, before scaling.
    """

    image: np.ndarray | None  # (H, W, 3) uint8 RGB, scaled; None if the pixels are not needed
    proposals: np.ndarray  # (P, 4) float32
    boxes: np.ndarray  # (G, 4) float32, ground-truth boxes
    labels: np.ndarray  # (G,) int64
    scale: float  # pixels of the scaled image per pixel of the original
    sample: Sample
    view: View


@dataclass(eq=False)
class DetectionDataset(Dataset):
    """A data set of images with ground truth and proposals. An (epoch, index) pair selects an item, an Example."""

    samples: Sequence[Sample]
    proposals: Proposals
    augmentation: Augmentation  # image sizes and random changes
    # Random numbers depend only on the seed, the epoch and the index, so the number of workers does not change them.
    seed: int = 0
    max_proposals: int | None = None  # use only the first max_proposals of each image; None uses all
    unneeded: Unneeded | None = None  # pixels are not read if it returns True for a sample and a view

    def __len__(self) -> int:
        return len(self.samples)

    def proposal_boxes(self, index: int) -> np.ndarray:
        """Return the first max_proposals proposals (P, 4) of image `index`, in pixels of the original image."""
        return np.asarray(self.proposals(self.samples[index].image_id)[: self.max_proposals])

    def truth_and_proposals(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return proposals (P, 4), ground-truth boxes (G, 4) and labels (G,) of image `index`. Its pixels are not read.

        Boxes are in pixels of the original image.
        """
        sample = self.samples[index]
        return to_tensor(self.proposal_boxes(index)), to_tensor(sample.training_boxes), torch.from_numpy(sample.labels)

    def view(self, epoch: int, index: int) -> View:
        """Return the random transformation of image `index` in `epoch`. It is the same in every call."""
        sample = self.samples[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        return self.augmentation.view(rng, sample.training_boxes, sample.width, sample.height)

    def views(self, epochs: range) -> list[tuple[int, View]]:
        """Return the distinct (image index, view) pairs in `epochs`, sorted by first epoch and then by index.

        A view is an image transformation. Do not use this with colour changes or crops, which differ in each epoch.
        """
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
        """Return the Example for `key`, an (epoch, index) pair. Raises UserError in the same cases as `examples`."""
        return self.examples(key[1], [self.view(*key)])[0]

    def examples(self, index: int, views: Sequence[View]) -> list[Example]:
        """Return an Example of image `index` for each transformation in `views`. The image is read at most once.

        Raises UserError if the pixels are needed and the image cannot be read or has the wrong size.
        """
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
        """Read the original image `index`, (H, W, 3) uint8 RGB. Raises UserError in the same cases as `read_sample`."""
        cv2.setNumThreads(0)  # the workers already use all cores
        return read_sample(self.samples[index])


@dataclass(eq=False)
class Views(Dataset):
    """Images of a DetectionDataset after chosen transformations. Each item is a list of the Examples of one image."""

    dataset: DetectionDataset
    chosen: Sequence[tuple[int, Sequence[View]]]  # (image index, views) of each item

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, number: int) -> list[Example]:
        return self.dataset.examples(*self.chosen[number])


def to_tensor(boxes: np.ndarray) -> torch.Tensor:
    """Copy boxes (R, 4) to a float32 tensor. The copy is needed because memory-mapped arrays are read-only."""
    return torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4))
