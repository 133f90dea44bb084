"""Mosaics: additional training images, each of which consists of four training images in its corners.

A mosaic is a Sample with `tiles`. It is not stored in a file: `read_sample` reads its four images and draws it. The
same images always give the same mosaics, so their feature maps can be cached like those of other images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from fastrcnn.structures import Sample, Tile

CENTRE = 0.4, 0.6  # the corners of the images meet in this range of the width and of the height of a mosaic
GREY = 123, 117, 104  # RGB around the images, the mean of ImageNet's images


def mosaics(samples: Sequence[Sample], number: int) -> list[Sample]:
    """Return `number` mosaics, each of an image of `samples` and of three that are drawn at random.

    A mosaic has the size of the first of its images and the objects of all four. The images are scaled to fit into its
    corners, with their aspect ratios, and touch the point where the corners meet. If `number` is at most the number of
    samples, no two mosaics have the same first image.
    """
    rng = np.random.default_rng(0)  # not the seed of the run, so that all runs share the proposals
    order = rng.permutation(len(samples))
    found = []
    for i in range(number):
        images = [samples[j] for j in (order[i % len(samples)], *rng.integers(len(samples), size=3))]
        size = max(2, images[0].width), max(2, images[0].height)
        centre = [min(max(1, round(side * rng.uniform(*CENTRE))), side - 1) for side in size]
        places = [_place(image, corner, size, centre) for image, corner in zip(images, rng.permutation(4), strict=True)]
        found.append(_mosaic(i + 1, size, list(map(Tile, images, places))))
    return found


def _place(image: Sample, corner: int, size: Sequence[int], centre: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the box of an image in a corner: 0 top left, 1 top right, 2 bottom left, 3 bottom right."""
    (x, y), right, below = centre, corner % 2, corner // 2
    room = (size[0] - x if right else x), (size[1] - y if below else y)
    scale = min(room[0] / image.width, room[1] / image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    left, top = (x if right else x - width), (y if below else y - height)
    return left, top, left + width, top + height


def _mosaic(number: int, size: tuple[int, int], tiles: Sequence[Tile]) -> Sample:
    images = [tile.sample for tile in tiles]
    return Sample(
        f"mosaic {number} of {', '.join(image.image_id for image in images)}",
        images[0].path,
        *size,
        boxes=np.concatenate([tile.moved(tile.sample.training_boxes) for tile in tiles]).astype(np.float64),
        labels=np.concatenate([image.labels for image in images]),
        difficult=np.concatenate([image.difficult for image in images]),
        tiles=tuple(tiles),
    )


def draw(mosaic: Sample, images: Iterable[np.ndarray]) -> np.ndarray:
    """Draw a mosaic (H, W, 3) uint8 RGB from the images of its tiles, in the same order."""
    drawn = np.full((mosaic.height, mosaic.width, 3), GREY, np.uint8)
    for tile, image in zip(mosaic.tiles, images, strict=True):
        x1, y1, x2, y2 = tile.box
        smaller = x2 - x1 < image.shape[1]  # without averaging, an image at a third of its size has jagged edges
        how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        drawn[y1:y2, x1:x2] = cv2.resize(image, (x2 - x1, y2 - y1), interpolation=how)
    return drawn
