"""Scaling and varying images and their boxes. Images are uint8 RGB (H, W, 3)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fastrcnn.structures import View

LEAST_PART = 0.5  # of an image's side, in a part of it


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
    if view.part is not None:
        x1, y1, x2, y2 = view.part
        image = image[y1:y2, x1:x2]
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
    return scale_for(*size_in(view, width, height), view.short_side, view.long_side)


def size_in(view: View, width: int, height: int) -> tuple[int, int]:
    """Width and height, in pixels of the image, of what the view shows before it is transposed."""
    return (width, height) if view.part is None else (view.part[2] - view.part[0], view.part[3] - view.part[1])


def boxes_in(view: View, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes (R, 4) of an image of this size, cut off and turned as the view does it but not scaled."""
    if view.part is not None:
        x1, y1, x2, y2 = view.part
        low, high = np.array([[x1, y1, x1, y1], [x2, y2, x2, y2]], boxes.dtype)
        boxes = np.clip(boxes, low, high) - low
    width, height = size_in(view, width, height)
    if view.transposed:
        boxes, width, height = boxes[:, [1, 0, 3, 2]], height, width
    if view.mirrored:
        boxes = flip_boxes(boxes, width)
    if view.upside_down:
        boxes = flip_boxes(boxes, height, axis=1)
    return boxes


def seen_in(view: View, boxes: np.ndarray) -> np.ndarray:
    """Which of the boxes (R, 4) the view shows (R,) bool: those of which half or more lies in its part."""
    if view.part is None:
        return np.ones(len(boxes), bool)
    x1, y1, x2, y2 = view.part
    inside = np.clip(boxes, (x1, y1, x1, y1), (x2, y2, x2, y2))
    areas, whole = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (inside, boxes))
    return (areas > 0) & (2 * areas >= whole)


def part_with_objects(
    boxes: np.ndarray, width: int, height: int, numbers: np.ndarray
) -> tuple[int, int, int, int] | None:
    """A part of an image that has one of the objects (G, 4), and cuts none; None for all of the image.

    numbers: 5 from 0 to 1, which decide the object, the part's size, each side LEAST_PART of the image's or more, and
    its place. A part that cuts an object grows until it has all of it.
    """
    if not len(boxes):
        return None
    anchor = boxes[min(int(numbers[0] * len(boxes)), len(boxes) - 1)]
    low, high = np.zeros(2), np.zeros(2)
    for axis, side in enumerate((width, height)):
        length = side * (LEAST_PART + (1 - LEAST_PART) * numbers[1 + axis])
        first, last = max(0.0, anchor[axis + 2] - length), min(anchor[axis], side - length)
        low[axis] = first + max(0.0, last - first) * numbers[3 + axis]
        low[axis], high[axis] = min(low[axis], anchor[axis]), max(low[axis] + length, anchor[axis + 2])
    while True:
        touched = ((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(axis=1)
        wider = np.minimum(low, boxes[touched, :2].min(axis=0)), np.maximum(high, boxes[touched, 2:].max(axis=0))
        if (wider[0] == low).all() and (wider[1] == high).all():
            break
        low, high = wider
    x1, y1 = (int(v) for v in np.clip(np.floor(low), 0, None))
    x2, y2 = (int(v) for v in np.minimum(np.ceil(high), (width, height)))
    return None if (x2 - x1, y2 - y1) == (width, height) else (x1, y1, x2, y2)


@dataclass(frozen=True)
class Augmentation:
    """How training images vary. The paper's: one of the short sides, and a mirror image half of the time.

    short_sides: one of them is drawn for each image, each time.
    flip, flip_vertical, transpose: probability .5 each. The second and third suit images without an up and down.
    colour: contrast and brightness vary by up to this share, each channel on its own; 0 for none.
    mirrored: `levels` are of the mirror image.
    crop: share of the images of which only a part is shown, which cuts no object.
    """

    short_sides: tuple[int, ...] = (600,)
    long_side: int = 1000
    flip: bool = True
    flip_vertical: bool = False
    transpose: bool = False
    colour: float = 0.0
    mirrored: bool = False
    crop: float = 0.0

    def levels(self) -> list[View]:
        """The image at each of the short sides; nothing is left to chance, as detection needs it."""
        return [View(side, self.long_side, mirrored=self.mirrored) for side in self.short_sides]

    def view(self, rng: np.random.Generator, boxes: np.ndarray, width: int, height: int) -> View:
        """A view drawn at random, of an image of this size with objects (G, 4)."""
        # All numbers are drawn whether they are needed or not: switching one thing off leaves the others as they were.
        which, flip, upside_down, swap = rng.integers(len(self.short_sides)), *rng.random(3)
        gains, offsets = rng.uniform(-1, 1, (2, 3)) * self.colour
        cut, numbers = rng.random(), rng.random(5)
        return View(
            self.short_sides[which],
            self.long_side,
            transposed=self.transpose and bool(swap < 0.5),
            mirrored=self.flip and bool(flip < 0.5),
            upside_down=self.flip_vertical and bool(upside_down < 0.5),
            colour=(tuple(gains.tolist()), tuple(offsets.tolist())) if self.colour else None,
            part=part_with_objects(boxes, width, height, numbers) if cut < self.crop else None,
        )
