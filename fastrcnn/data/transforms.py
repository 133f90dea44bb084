"""Scaling and varying images and their boxes. Images are uint8 RGB (H, W, 3)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


def scale_for(width: int, height: int, short_side: int, long_side: int) -> float:
    """Factor that makes the short side `short_side` pixels long, but the long side at most `long_side`."""
    return min(short_side / min(width, height), long_side / max(width, height))


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """The image scaled, bilinear, as the author's code does with cv2.resize."""
    if scale == 1.0:
        return image
    if min(image.shape[:2]) * scale <= 0.5:  # of an image a thousand times as long as wide nothing would be left
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


def flip_boxes(boxes: np.ndarray, width: float, axis: int = 0) -> np.ndarray:
    """Boxes (R, 4) in the mirror image of an image `width` wide; `axis` 1 turns it upside down (`width`: height)."""
    flipped = boxes.copy()
    flipped[:, axis] = width - boxes[:, axis + 2]
    flipped[:, axis + 2] = width - boxes[:, axis]
    return flipped


def mirror(image: np.ndarray, boxes: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The mirror image, and the boxes in it."""
    return cv2.flip(image, 1), [flip_boxes(b, image.shape[1]) for b in boxes]  # a quarter of the time of numpy's copy


Levels = list[tuple[np.ndarray, float]]  # images, each with the factor from the original's pixels


@dataclass(frozen=True)
class Augmentation:
    """How training images vary. The paper's: one of the short sides, and a mirror image half of the time.

    short_sides: one of them is drawn for each image, each time.
    flip, flip_vertical, transpose: probability .5 each. The second and third suit images without an up and down.
    colour: contrast and brightness vary by up to this share, each channel on its own; 0 for none.
    mirrored: the mirror image takes the place of each image.
    """

    short_sides: tuple[int, ...] = (600,)
    long_side: int = 1000
    flip: bool = True
    flip_vertical: bool = False
    transpose: bool = False
    colour: float = 0.0
    mirrored: bool = False

    def levels(self, image: np.ndarray, boxes: list[np.ndarray]) -> tuple[Levels, list[np.ndarray]]:
        """The image at each of the short sides, and the boxes; nothing is left to chance, as detection needs it."""
        height, width = image.shape[:2]
        if self.mirrored:
            image, boxes = mirror(image, boxes)
        scales = [scale_for(width, height, side, self.long_side) for side in self.short_sides]
        return [(resize(image, scale), scale) for scale in scales], boxes

    def __call__(
        self, image: np.ndarray, boxes: list[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[np.ndarray], float]:
        """The image; arrays of boxes (R, 4), mirrored with it but not scaled; and the factor from the original's
        pixels to the result's."""
        # All numbers are drawn whether they are needed or not: switching one thing off leaves the others as they were.
        which, flip, upside_down, swap = rng.integers(len(self.short_sides)), *rng.random(3)
        gains, offsets = rng.uniform(-1, 1, (2, 3)) * self.colour
        if self.mirrored:
            image, boxes = mirror(image, boxes)
        if self.transpose and swap < 0.5:
            image = cv2.transpose(image)
            boxes = [b[:, [1, 0, 3, 2]] for b in boxes]
        height, width = image.shape[:2]
        if self.flip and flip < 0.5:
            image, boxes = mirror(image, boxes)
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
