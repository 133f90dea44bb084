"""Samples and their proposals to images with boxes, one at a time; runs in the loader's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from fastrcnn.data.frames import read_sample
from fastrcnn.data.transforms import Augmentation
from fastrcnn.structures import Sample

Proposals = Callable[[str], np.ndarray]  # image id -> (P, 4) float32, half-open, best first


@dataclass(frozen=True)
class Example:
    """One image, ready to be put into a Batch. Boxes are in pixels of the image before it was scaled."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    proposals: np.ndarray  # (P, 4) float32
    boxes: np.ndarray  # (G, 4) float32
    labels: np.ndarray  # (G,) int64
    scale: float
    sample: Sample


@dataclass(eq=False)
class DetectionDataset(Dataset):
    """Images with truth and proposals."""

    samples: Sequence[Sample]
    proposals: Proposals
    augmentation: Augmentation  # how images are scaled and varied
    # With the epoch and the index it decides all that is random, so that workers and the program's history do not.
    seed: int = 0
    max_proposals: int | None = None  # the best so many are used; None for all

    def __len__(self) -> int:
        return len(self.samples)

    def proposal_boxes(self, index: int) -> np.ndarray:
        """Proposals (P, 4) of an image in its own pixels."""
        return np.asarray(self.proposals(self.samples[index].image_id)[: self.max_proposals])

    def truth_and_proposals(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Proposals (P, 4), truth (G, 4) and labels (G,) of an image in its own pixels, without reading it."""
        sample = self.samples[index]
        return to_tensor(self.proposal_boxes(index)), to_tensor(sample.training_boxes), torch.from_numpy(sample.labels)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """The image `index`, varied, in the given epoch; `key` is (epoch, index). Raises as `picture` does."""
        epoch, index = key
        sample = self.samples[index]
        image = self.picture(index)
        rng = np.random.default_rng((self.seed, epoch, index))
        image, (boxes, proposals), scale = self.augmentation(
            image, [sample.training_boxes, self.proposal_boxes(index)], rng
        )
        return Example(image, proposals, boxes, sample.labels, scale, sample)

    def pyramid(self, index: int) -> list[Example]:
        """The image at each of the short sides, not varied otherwise. Raises as `picture` does."""
        sample = self.samples[index]
        boxes = [sample.training_boxes, self.proposal_boxes(index)]
        levels, (truth, proposals) = self.augmentation.levels(self.picture(index), boxes)
        return [Example(level, proposals, truth, sample.labels, scale, sample) for level, scale in levels]

    def picture(self, index: int) -> np.ndarray:
        """The image (H, W, 3) as it is. Raises UserError as `read_sample` does."""
        cv2.setNumThreads(0)  # the workers share the cores already
        return read_sample(self.samples[index])


@dataclass(eq=False)
class Pyramids(Dataset):
    """The images of a DetectionDataset by their number, each as its pyramid."""

    dataset: DetectionDataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[Example]:
        return self.dataset.pyramid(index)


def to_tensor(boxes: np.ndarray) -> torch.Tensor:
    """Boxes (R, 4) as a tensor of their own (memory-mapped arrays are read-only)."""
    return torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4))
