"""Resize and augment images and their boxes. Images are uint8 RGB (H, W, 3).

A view describes the crop, transposition, flips, scale and colour change of an image for the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fastrcnn.structures import View

LEAST_PART = 0.5  # minimum side of a crop, as a fraction of the image's side


def scale_for(width: int, height: int, short_side: int, long_side: int) -> float:
    """Return the factor by which to scale an image of `width` x `height` pixels.

    The short side becomes `short_side` pixels long, or less if the long side would otherwise exceed `long_side`.
    """
    return min(short_side / min(width, height), long_side / max(width, height))


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image bilinearly with cv2.resize, like the author's code."""
    if scale == 1.0:
        return image
    if min(image.shape[:2]) * scale <= 0.5:  # the short side of a very elongated image would become 0
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


def flip_boxes(boxes: np.ndarray, width: float, axis: int = 0) -> np.ndarray:
    """Flip boxes (R, 4) horizontally in an image of this width. axis=1 flips vertically; `width` is then the height."""
    flipped = boxes.copy()
    flipped[:, axis] = width - boxes[:, axis + 2]
    flipped[:, axis + 2] = width - boxes[:, axis]
    return flipped


def show(image: np.ndarray, view: View) -> tuple[np.ndarray, float]:
    """Apply a view (crop, flips, scale, colours) to an image (H, W, 3). Return the result and its scale factor."""
    scale = scale_in(view, image.shape[1], image.shape[0])
    if view.part is not None:
        x1, y1, x2, y2 = view.part
        image = image[y1:y2, x1:x2]
    if view.transposed:
        image = cv2.transpose(image)
    if view.mirrored:
        image = cv2.flip(image, 1)  # four times as fast as a copy by numpy
    if view.upside_down:
        image = cv2.flip(image, 0)
    image = resize(image, scale)
    if view.colour is not None:
        gains, offsets = (np.array(values) for values in view.colour)
        levels = np.arange(256)[:, None]  # change the contrast around mid-grey, then the brightness
        table = (levels - 128) * (1 + gains) + 128 + 255 * offsets  # (256, 3)
        image = cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)[None])
    return image, scale


def scale_in(view: View, width: int, height: int) -> float:
    """Return the factor by which the view scales an image of `width` x `height` pixels."""
    return scale_for(*size_in(view, width, height), view.short_side, view.long_side)


def size_in(view: View, width: int, height: int) -> tuple[int, int]:
    """Return the size of the view's crop, or of the image if there is no crop, before transposing and scaling."""
    return (width, height) if view.part is None else (view.part[2] - view.part[0], view.part[3] - view.part[1])


def boxes_in(view: View, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Apply the crop, transposition and flips of a view, but no scaling, to boxes (R, 4) x1 y1 x2 y2.

    width, height: size of the original image. Boxes are clipped to the crop.
    """
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
    """Return a mask (R,) of boxes (R, 4) at least half of whose area is in the view's crop; all True without a crop."""
    if view.part is None:
        return np.ones(len(boxes), bool)
    x1, y1, x2, y2 = view.part
    inside = np.clip(boxes, (x1, y1, x1, y1), (x2, y2, x2, y2))
    areas, whole = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (inside, boxes))
    return (areas > 0) & (2 * areas >= whole)


def part_with_objects(
    boxes: np.ndarray, width: int, height: int, numbers: np.ndarray
) -> tuple[int, int, int, int] | None:
    """Return a crop x1 y1 x2 y2 that contains at least one object and does not cut through any object.

    Returns None if the crop is the entire image, or if there are no objects. boxes: (G, 4), the objects.
    numbers: 5 random numbers from 0 to 1. They select one object that the crop contains, the size of the crop, and its
    position. Each side of the crop is at least LEAST_PART of the corresponding side of the image. If the crop would cut
    through an object, the crop is enlarged until it contains the object.
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
    """The random augmentation of training images. The paper uses only `short_sides` and `flip`.

    short_sides: lengths of the short side in pixels. One of them is chosen at random for each view.
    long_side: maximum length of the long side in pixels.
    flip, flip_vertical, transpose: apply this change with probability 0.5. The last two are suitable for images that
    have no natural "up" direction.
    colour: maximum relative change of contrast and brightness, drawn separately for each channel; 0 disables it.
    mirrored: flip images horizontally in all views that `levels` returns.
    crop: probability of a random crop that does not cut through any object.
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
        """Return the views (image transformations) for detection: one per short side, without random changes."""
        return [View(side, self.long_side, mirrored=self.mirrored) for side in self.short_sides]

    def view(self, rng: np.random.Generator, boxes: np.ndarray, width: int, height: int) -> View:
        """Return a random view (transformation) of an image of this size. boxes: (G, 4), its ground-truth boxes."""
        # All random numbers are always drawn, so that disabling one change does not affect the others.
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
