"""How well a reading of a proposal file fits some images: overlap with the truth, and the images' borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastrcnn import boxes
from fastrcnn.proposals.readings import Reading, Scale, read
from fastrcnn.structures import Sample


@dataclass(frozen=True)
class Borders:
    """How the boxes of N images lie to the images' borders.

    sides: (N, 4) left, top, right, bottom: 1 where the outermost box ends within half a pixel of the side, -1 where it
        stands out further, else 0.
    inside: share of the boxes that are upright and stand out by half a pixel at most.
    strays: (N,) whether some box stands out by more than two pixels.
    """

    sides: np.ndarray
    inside: float
    strays: np.ndarray

    @property
    def touched(self) -> float:
        """Share of the sides that some box ends at."""
        return float((self.sides == 1).mean())

    @property
    def votes(self) -> int:
        """Sides touched, less those that boxes stand out of."""
        return int(self.sides.sum())


@dataclass(frozen=True)
class Fit:
    """How well a reading fits. Boxes are clipped to their image before overlaps are taken, as in training.

    best: (G,) IoU of each object with the best box of its image.
    chance: (G,) the same with the boxes of another image, stretched to the size of this one; zeros for one image.
    """

    reading: Reading
    best: np.ndarray
    chance: np.ndarray
    borders: Borders

    def recall(self, threshold: float) -> float:
        """Share of the objects that some box overlaps by at least the threshold."""
        return float((self.best >= threshold).mean())


class Images:
    """N images with their truth, and entries of a proposal file to hold against them.

    Difficult objects are left out, as in evaluation. entries: numbers (P, 4) by the entry's place in the file.
    """

    def __init__(self, samples: Sequence[Sample], entries: dict[int, np.ndarray]) -> None:
        self.sizes = np.array([(s.width, s.height) for s in samples], np.float64)  # (N, 2)
        self.truth = [np.asarray(s.boxes[~s.difficult], np.float64).reshape(-1, 4) for s in samples]
        self.entries = entries

    def extents(self, reading: Reading, at: np.ndarray) -> np.ndarray:
        """Largest x and y (N, 2) among the boxes of the entries `at` (N,); NaN where one has no box."""
        none = np.full((1, 4), np.nan)
        found = [self.entries[e] if len(self.entries[e]) else none for e in at.tolist()]
        return np.array([reading.convention.read(numbers).max(axis=0)[2:] for numbers in found])

    def borders(self, reading: Reading, scale: Scale, at: np.ndarray) -> Borders:
        """How the boxes of the entries `at` (N,) lie to the borders."""
        sides, strays, inside, total = [], [], 0, 0
        for frame, entry in zip(scale.frames, at.tolist(), strict=True):
            found = read(self.entries[entry], reading, frame)
            gaps = np.concatenate((found[:, :2], frame - found[:, 2:]), axis=1)  # (P, 4) from each side inwards
            upright = (found[:, 2:] > found[:, :2]).all(axis=1)
            inside += int((upright & (gaps >= -0.5).all(axis=1)).sum())
            total += len(found)
            outermost = gaps.min(axis=0, initial=np.inf)
            sides.append(np.where(np.abs(outermost) <= 0.5, 1, np.where(outermost < 0, -1, 0)))
            strays.append(bool((outermost < -2).any()))
        return Borders(np.array(sides), inside / max(total, 1), np.array(strays))

    def best(self, reading: Reading, scale: Scale, at: np.ndarray) -> np.ndarray:
        """IoU (G,) of each object of all images with the best box of the entries `at` (N,)."""
        return self._best(reading, scale.frames, at, scale.frames)

    def chance(self, reading: Reading, scale: Scale, at: np.ndarray) -> np.ndarray:
        """What `best` gives if each image gets the boxes of the one half the list away, stretched to its size."""
        half = len(self.truth) // 2
        if half == 0:
            return np.zeros(sum(map(len, self.truth)))
        return self._best(reading, scale.frames, np.roll(at, half), np.roll(scale.frames, half, axis=0))

    def _best(self, reading: Reading, frames: np.ndarray, at: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """theirs: (N, 2) frames that the entries were made in, where not the images' own."""
        found = [np.zeros(0)]
        for n, (truth, entry) in enumerate(zip(self.truth, at.tolist(), strict=True)):
            ours, frame = np.tile(frames[n], 2), theirs[n]
            numbers = read(self.entries[entry], reading, frame) * (ours / np.tile(frame, 2))
            clipped = torch.from_numpy(np.clip(numbers, 0, ours))
            overlaps = boxes.iou(torch.from_numpy(truth * (ours / np.tile(self.sizes[n], 2))), clipped)
            found.append(overlaps.numpy().max(axis=1, initial=0.0))
        return np.concatenate(found)


def mended(numbers: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Numbers (P, 4) of a file without boxes that are not finite, and with the sign that unsigned integers lost.

    Also gives how many numbers had lost their sign (65535 for -1, and the like), and how many boxes were not finite.
    """
    numbers = np.array(numbers, np.float64).reshape(-1, 4)
    finite = np.isfinite(numbers).all(axis=1)
    numbers, wrapped = numbers[finite], 0
    for bits in (16, 32):
        negative = (numbers >= 2**bits - 4) & (numbers < 2**bits)
        numbers[negative] -= 2**bits
        wrapped += int(negative.sum())
    return numbers, wrapped, int((~finite).sum())
