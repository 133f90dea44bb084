"""What travels between the parts of the program. Boxes are half-open x1 y1 x2 y2 in pixels (see boxes.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """An image and its truth, without the pixels. Boxes are in the image's own pixels."""

    image_id: str
    path: Path  # of the image
    width: int
    height: int
    boxes: np.ndarray  # (G, 4) float32
    labels: np.ndarray  # (G,) int64, 1 .. number of classes; 0 would be background
    difficult: np.ndarray  # (G,) bool


@dataclass(frozen=True)
class Batch:
    """N pictures as the network sees them. Boxes are in pixels of the picture before it was scaled, but mirrored with
    it: overlaps and targets do not depend on the scale, and the network scales RoIs as the author's code does."""

    images: Tensor  # (N, 3, H, W) uint8 RGB, padded with 0 at the right and the bottom
    sizes: Tensor  # (N, 2) int64, height and width of each picture in `images`, without the padding
    scales: Tensor  # (N,) float64, pixels of the scaled picture per pixel of the original
    proposals: list[Tensor]  # N tensors (P_i, 4) float32
    boxes: list[Tensor]  # N tensors (G_i, 4) float32, the truth
    labels: list[Tensor]  # N tensors (G_i,) int64
    samples: list[Sample]  # where each picture came from


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
