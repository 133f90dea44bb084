"""What travels between the parts of the program. Boxes are half-open x1 y1 x2 y2 in pixels (see boxes.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """An image and its truth, without the pixels. Boxes are in the image's own pixels, as the annotation has them."""

    image_id: str  # unique in the data set
    path: Path  # of the image
    width: int
    height: int
    boxes: np.ndarray  # (G, 4) float64; may reach a pixel beyond the image
    labels: np.ndarray  # (G,) int64, 1 .. number of classes; 0 would be background
    difficult: np.ndarray  # (G,) bool
    sizes: np.ndarray | None = None  # (G, 2) float64, a COCO file's width and height; None: x2 - x1 and y2 - y1
    areas: np.ndarray | None = None  # (G,) float64, a COCO file's `area`, of a mask for one; None: the boxes' areas
    number: int | str | None = None  # the image's id in a COCO file, which is unique there alone
    turn: int = 1  # EXIF orientation that gives the image its size; see data/frames.py

    @property
    def file_id(self) -> int | str:
        """The image's id in COCO results: that of its COCO file where it has one."""
        return self.image_id if self.number is None else self.number

    @property
    def training_boxes(self) -> np.ndarray:
        """The boxes (G, 4) float32 cut off at the image's border, as training uses them."""
        limit = np.array([self.width, self.height, self.width, self.height], np.float32)
        return np.clip(np.asarray(self.boxes, np.float32).reshape(-1, 4), np.float32(0), limit)


@dataclass(frozen=True)
class View:
    """How an image is shown to the network (see data/transforms.py): equal views of an image have equal pixels.

    It is cut out first, then transposed, then mirrored and turned upside down, then scaled. colour: gain and offset of
    each channel. part: x1, y1, x2, y2 of what is cut out, half-open, in pixels of the image; None for all of it.
    """

    short_side: int
    long_side: int
    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False
    colour: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    part: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Batch:
    """N images as the network sees them. Boxes are in pixels of the image before scaling, but mirrored with it."""

    images: Tensor  # (N, 3, H, W) uint8 RGB, padded with 0 at the right and the bottom
    sizes: Tensor  # (N, 2) int64, height and width of each image in `images`, without the padding; 0 where it is absent
    scales: Tensor  # (N,) float64, pixels of the scaled picture per pixel of the original
    proposals: list[Tensor]  # N tensors (P_i, 4) float32
    boxes: list[Tensor]  # N tensors (G_i, 4) float32, the truth
    labels: list[Tensor]  # N tensors (G_i,) int64
    samples: list[Sample]  # where each picture came from
    views: list[View] = field(default_factory=list)  # how each is shown

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple]:
        """Between processes images go by shared memory, and all else, which is small, as arrays: a tensor is asked for
        at the other process, which is busy."""
        small = [[t.numpy() for t in tensors] for tensors in (self.proposals, self.boxes, self.labels)]
        return _batch, (self.images, self.sizes.numpy(), self.scales.numpy(), small, self.samples, self.views)

    def pin_memory(self) -> Batch:
        """The images in memory that a GPU copies from by itself; torch's DataLoader calls it."""
        return replace(self, images=self.images.pin_memory())


def _batch(
    images: Tensor,
    sizes: np.ndarray,
    scales: np.ndarray,
    small: list[list[np.ndarray]],
    samples: list[Sample],
    views: list[View],
) -> Batch:
    proposals, boxes, labels = ([torch.from_numpy(array) for array in arrays] for arrays in small)
    return Batch(images, torch.from_numpy(sizes), torch.from_numpy(scales), proposals, boxes, labels, samples, views)


@dataclass(frozen=True)
class RoITargets:
    """What the network should say about K RoIs."""

    labels: Tensor  # (K,) int64, 0 is background
    deltas: Tensor  # (K, 4) float32, normalised regression targets; 0 for background


class Detection(NamedTuple):
    """One object: its half-open box x1 y1 x2 y2 in pixels, its score, and its class by label and name."""

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True, repr=False)
class Detections:
    """Objects found in one image, best first. Boxes are in the image's own pixels. Iterating gives a Detection each."""

    boxes: Tensor  # (D, 4) float32
    scores: Tensor  # (D,) float32, probabilities, or margins of SVMs
    labels: Tensor  # (D,) int64, 1 .. number of classes
    entered: Tensor | None = None  # (M, classes) scores that entered the suppression, where they were asked for
    classes: tuple[str, ...] = ()  # names, where they are known; label k is classes[k - 1]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The name of each object's class."""
        return [self.classes[label - 1] if self.classes else f"class {label}" for label in self.labels.tolist()]

    def __iter__(self) -> Iterator[Detection]:
        columns = (self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names)
        return (Detection(tuple(box), *rest) for box, *rest in zip(*columns, strict=True))

    def __repr__(self) -> str:
        lines = [f"{len(self)} detection{'' if len(self) == 1 else 's'}"]
        for box, score, _, name in list(self)[:20]:
            lines.append(f"  {name:<16} {score:.3f}  ({', '.join(f'{v:.1f}' for v in box)})")
        return "\n".join([*lines, *(["  ..."] if len(self) > 20 else [])])
