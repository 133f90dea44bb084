"""Scaling and varying pictures and their boxes. Pictures are uint8 RGB (H, W, 3)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


def scale_for(width: int, height: int, short_side: int, long_side: int) -> float:
    """Factor that makes the short side `short_side` pixels long, but the long side at most `long_side`."""
    return min(short_side / min(width, height), long_side / max(width, height))


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """The picture scaled, bilinear, as the author's code does with cv2.resize."""
    if scale == 1.0:
        return image
    if min(image.shape[:2]) * scale <= 0.5:  # of a picture a thousand times as long as wide nothing would be left
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


def flip_boxes(boxes: np.ndarray, width: float, axis: int = 0) -> np.ndarray:
    """Boxes (R, 4) in the mirror image of a picture `width` wide; `axis` 1 turns it upside down (`width`: height)."""
    flipped = boxes.copy()
    flipped[:, axis] = width - boxes[:, axis + 2]
    flipped[:, axis + 2] = width - boxes[:, axis]
    return flipped


@dataclass(frozen=True)
class Augmentation:
    """How training pictures vary. The paper's: one of the short sides, and a mirror image half of the time.

    short_sides: one of them is drawn for each picture, each time.
    flip, flip_vertical, transpose: probability .5 each. The second and third suit pictures without an up and down.
    colour: contrast and brightness vary by up to this share, each channel on its own; 0 for none.
    """

    short_sides: tuple[int, ...] = (600,)
    long_side: int = 1000
    flip: bool = True
    flip_vertical: bool = False
    transpose: bool = False
    colour: float = 0.0

    def levels(
        self, image: np.ndarray, boxes: list[np.ndarray]
    ) -> tuple[list[tuple[np.ndarray, float]], list[np.ndarray]]:
        """The picture at each of the short sides, with the factor from the original's pixels, and the boxes; nothing
        is left to chance, as detection wants it."""
        height, width = image.shape[:2]
        scales = [scale_for(width, height, side, self.long_side) for side in self.short_sides]
        return [(resize(image, scale), scale) for scale in scales], boxes

    def __call__(
        self, image: np.ndarray, boxes: list[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[np.ndarray], float]:
        """The picture; arrays of boxes (R, 4), mirrored with it but not scaled; and the factor from the original's
        pixels to the result's."""
        # All numbers are drawn whether they are needed or not: switching one thing off leaves the others as they were.
        which, mirror, upside_down, swap = rng.integers(len(self.short_sides)), *rng.random(3)
        gains, offsets = rng.uniform(-1, 1, (2, 3)) * self.colour
        if self.transpose and swap < 0.5:
            image = cv2.transpose(image)
            boxes = [b[:, [1, 0, 3, 2]] for b in boxes]
        height, width = image.shape[:2]
        if self.flip and mirror < 0.5:
            image = cv2.flip(image, 1)  # a quarter of the time of numpy's copy
            boxes = [flip_boxes(b, width) for b in boxes]
        if self.flip_vertical and upside_down < 0.5:
            image = cv2.flip(image, 0)
            boxes = [flip_boxes(b, height, axis=1) for b in boxes]
        scale = scale_for(width, height, self.short_sides[which], self.long_side)
        image = resize(image, scale)
        if self.colour:
            levels = np.arange(256)[:, None]  # contrast about the middle gray, then brightness
            table = (levels - 128) * (1 + gains) + 128 + 255 * offsets  # (256, 3)
            image = cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)[None])
        return image, boxes, scale


@dataclass(frozen=True)
class Mirrored(Augmentation):
    """As Augmentation, but of the picture's mirror image."""

    def __call__(
        self, image: np.ndarray, boxes: list[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[np.ndarray], float]:
        width = image.shape[1]
        return super().__call__(cv2.flip(image, 1), [flip_boxes(b, width) for b in boxes], rng)

    def levels(
        self, image: np.ndarray, boxes: list[np.ndarray]
    ) -> tuple[list[tuple[np.ndarray, float]], list[np.ndarray]]:
        width = image.shape[1]
        return super().levels(cv2.flip(image, 1), [flip_boxes(b, width) for b in boxes])
