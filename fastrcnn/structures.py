"""Data structures that several modules use. Boxes are half-open x1 y1 x2 y2 in pixels (see boxes.py).

This module imports torch only when it is needed, because the processes that generate proposals do without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """An image and its ground truth, without the pixel values. Boxes are in pixels of the original image."""

    image_id: str  # unique in the data set
    path: Path  # image file
    width: int  # size of the original image after `turn` is applied
    height: int
    boxes: np.ndarray  # (G, 4) float64; can extend one pixel beyond the image
    labels: np.ndarray  # (G,) int64, 1 .. number of classes
    difficult: np.ndarray  # (G,) bool
    sizes: np.ndarray | None = None  # (G, 2) float64, width and height in the COCO file; None: x2 - x1 and y2 - y1
    areas: np.ndarray | None = None  # (G,) float64, `area` in the COCO file (e.g. of a mask); None: box areas
    number: int | str | None = None  # image id in the COCO file; only unique within that file
    turn: int = 1  # EXIF orientation to apply when the image is read; 1: use it as stored (see data/frames.py)
    tiles: tuple[Tile, ...] = ()  # the images of a mosaic, whose `path` is that of the first (see data/mosaics.py)

    @property
    def file_id(self) -> int | str:
        """The image id for COCO results: the id in the COCO file, or image_id if there is no COCO file."""
        return self.image_id if self.number is None else self.number

    @property
    def training_boxes(self) -> np.ndarray:
        """The boxes (G, 4) float32 for training, clipped to the image."""
        limit = np.array([self.width, self.height, self.width, self.height], np.float32)
        return np.clip(np.asarray(self.boxes, np.float32).reshape(-1, 4), np.float32(0), limit)


@dataclass(frozen=True)
class Tile:
    """An image in a mosaic. box: the integers x1 y1 x2 y2 of its half-open box in pixels of the mosaic."""

    sample: Sample
    box: tuple[int, int, int, int]

    def moved(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (R, 4) of the image, in pixels of the original image, as float32 boxes of the mosaic."""
        x1, y1, x2, y2 = self.box
        scale = np.array([(x2 - x1) / self.sample.width, (y2 - y1) / self.sample.height] * 2)
        return (boxes * scale + (x1, y1, x1, y1)).astype(np.float32)


@dataclass(frozen=True)
class View:
    """The transformation of an image for the network. An image has the same pixels after two equal transformations.

    The order is: crop, transpose, flip horizontally, flip vertically, scale, change colours.
    short_side, long_side: the scaled image has this short side in pixels, or less if the long side would be too long.
    colour: the relative change of contrast of each channel, and the change of its brightness as a fraction of 255.
    part: the crop as half-open x1, y1, x2, y2 in pixels of the original image, or None.
    """

    short_side: int
    long_side: int
    transposed: bool = False  # swap x and y
    mirrored: bool = False  # flip horizontally
    upside_down: bool = False  # flip vertically
    colour: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    part: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Batch:
    """A batch of N images for the network. Boxes are in pixels of the cropped and flipped image, before scaling."""

    images: Tensor  # (N, 3, H, W) uint8 RGB, padded with 0 at the right and bottom
    sizes: Tensor  # (N, 2) int64, height and width of each image without padding; 0 if its pixels were not loaded
    scales: Tensor  # (N,) float64, pixels of the scaled image per pixel of the original
    proposals: list[Tensor]  # N tensors (P_i, 4) float32
    boxes: list[Tensor]  # N tensors (G_i, 4) float32, ground-truth boxes
    labels: list[Tensor]  # N tensors (G_i,) int64
    samples: list[Sample]  # source of each image
    views: list[View] = field(default_factory=list)  # transformation of each image

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple]:
        """Pickle the batch for another process, with images in shared memory and all other tensors as NumPy arrays.

        For each tensor in shared memory, the receiving process must connect to the sending process, which is busy. Only
        the images are large enough to justify this cost.
        """
        small = [[t.numpy() for t in tensors] for tensors in (self.proposals, self.boxes, self.labels)]
        return _batch, (self.images, self.sizes.numpy(), self.scales.numpy(), small, self.samples, self.views)

    def pin_memory(self) -> Batch:
        """Return a copy of the batch with its images in pinned memory. torch's DataLoader calls this method."""
        return replace(self, images=self.images.pin_memory())


def _batch(
    images: Tensor,
    sizes: np.ndarray,
    scales: np.ndarray,
    small: list[list[np.ndarray]],
    samples: list[Sample],
    views: list[View],
) -> Batch:
    import torch

    proposals, boxes, labels = ([torch.from_numpy(array) for array in arrays] for arrays in small)
    return Batch(images, torch.from_numpy(sizes), torch.from_numpy(scales), proposals, boxes, labels, samples, views)


@dataclass(frozen=True)
class RoITargets:
    """The training targets of K RoIs: class labels and box regression targets."""

    labels: Tensor  # (K,) int64, 0: background
    deltas: Tensor  # (K, 4) float32, normalised regression targets; 0 for background


class Detection(NamedTuple):
    """A detected object: half-open box x1 y1 x2 y2 in pixels of the original image, score, label and class name.

    score: probability or SVM margin. label: 1 .. number of classes. name: "class LABEL" if the names are not known.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True, repr=False)
class Detections:
    """The detections of one image, best first. Iteration yields Detection objects.

    boxes: half-open x1 y1 x2 y2 in pixels of the original image.
    """

    boxes: Tensor  # (D, 4) float32
    scores: Tensor  # (D,) float32, probabilities or SVM margins
    labels: Tensor  # (D,) int64, 1 .. number of classes
    entered: Tensor | None = None  # (M, classes) scores of the boxes that entered NMS, if requested; best first
    classes: tuple[str, ...] = ()  # names, if known; label k is classes[k - 1]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each detection, or "class LABEL" if the names are not known."""
        return [self.classes[label - 1] if self.classes else f"class {label}" for label in self.labels.tolist()]

    def __iter__(self) -> Iterator[Detection]:
        columns = (self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names)
        return (Detection(tuple(box), *rest) for box, *rest in zip(*columns, strict=True))

    def __repr__(self) -> str:
        lines = [f"{len(self)} detection{'' if len(self) == 1 else 's'}"]
        for box, score, _, name in list(self)[:20]:
            lines.append(f"  {name:<16} {score:.3f}  ({', '.join(f'{v:.1f}' for v in box)})")
        return "\n".join([*lines, *(["  ..."] if len(self) > 20 else [])])
