"""Scaling and varying images and their boxes. Images are uint8 RGB (H, W, 3)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fastrcnn.structures import View


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


def show(image: np.ndarray, view: View) -> tuple[np.ndarray, float]:
    """The image as the view has it, and the factor from the original's pixels to its own."""
    scale = scale_in(view, image.shape[1], image.shape[0])
    if view.transposed:
        image = cv2.transpose(image)
    if view.mirrored:
        image = cv2.flip(image, 1)  # a quarter of the time of numpy's copy
    if view.upside_down:
        image = cv2.flip(image, 0)
    image = resize(image, scale)
    if view.colour is not None:
        gains, offsets = (np.array(values) for values in view.colour)
        levels = np.arange(256)[:, None]  # contrast about the middle gray, then brightness
        table = (levels - 128) * (1 + gains) + 128 + 255 * offsets  # (256, 3)
        image = cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)[None])
    return image, scale


def scale_in(view: View, width: int, height: int) -> float:
    """The factor from the pixels of an image of this size to those of the view."""
    return scale_for(width, height, view.short_side, view.long_side)


def boxes_in(view: View, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes (R, 4) of an image of this size, turned as the view turns it but not scaled."""
    if view.transposed:
        boxes, width, height = boxes[:, [1, 0, 3, 2]], height, width
    if view.mirrored:
        boxes = flip_boxes(boxes, width)
    if view.upside_down:
        boxes = flip_boxes(boxes, height, axis=1)
    return boxes


@dataclass(frozen=True)
class Augmentation:
    """How training images vary. The paper's: one of the short sides, and a mirror image half of the time.

    short_sides: one of them is drawn for each image, each time.
    flip, flip_vertical, transpose: probability .5 each. The second and third suit images without an up and down.
    colour: contrast and brightness vary by up to this share, each channel on its own; 0 for none.
    mirrored: `levels` are of the mirror image.
    """

    short_sides: tuple[int, ...] = (600,)
    long_side: int = 1000
    flip: bool = True
    flip_vertical: bool = False
    transpose: bool = False
    colour: float = 0.0
    mirrored: bool = False

    def levels(self) -> list[View]:
        """The image at each of the short sides; nothing is left to chance, as detection needs it."""
        return [View(side, self.long_side, mirrored=self.mirrored) for side in self.short_sides]

    def view(self, rng: np.random.Generator) -> View:
        """A view drawn at random."""
        # All numbers are drawn whether they are needed or not: switching one thing off leaves the others as they were.
        which, flip, upside_down, swap = rng.integers(len(self.short_sides)), *rng.random(3)
        gains, offsets = rng.uniform(-1, 1, (2, 3)) * self.colour
        return View(
            self.short_sides[which],
            self.long_side,
            transposed=self.transpose and bool(swap < 0.5),
            mirrored=self.flip and bool(flip < 0.5),
            upside_down=self.flip_vertical and bool(upside_down < 0.5),
            colour=(tuple(gains.tolist()), tuple(offsets.tolist())) if self.colour else None,
        )
