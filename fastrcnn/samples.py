"""Images with their ground truth, without pixel values, and the transformations of images.

This module does not import torch, because the processes that generate proposals would each need time and memory for it.
Boxes are half-open x1 y1 x2 y2 in pixels (see boxes.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


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
