"""Selective search: class-independent object proposals from hierarchies of merged segments, with OpenCV.

Uijlings et al., "Selective Search for Object Recognition", IJCV 2013. An image is cut into segments in
several colour spaces and at several coarsenesses; neighbours are merged, most similar first, until one is
left; every segment that ever existed gives a box.

What differs from OpenCV's ready-made modes, and why (figures in BENCHMARKS.md):
 - The search runs on an image of one fixed size, so that the coarseness means the same for every image.
 - OpenCV's order of the boxes depends on the C library's rand() and differs from call to call. So they are sorted,
   shuffled with a fixed seed, and thinned of near-duplicates: what is kept is the same everywhere and spread evenly.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.settings import SelectiveSearchSettings

ALGORITHM = 1  # raise it when `propose` comes to give other boxes for the same settings

BLOCK = 128  # boxes that are thinned at a time
# What is searched, by `mode`: HSV and Lab; for quality also intensity, hue, and red-green-intensity.
COLOURS = {"fast": ("hsv", "lab"), "quality": ("hsv", "lab", "intensity", "hue", "rgi")}


def propose(image: np.ndarray, settings: SelectiveSearchSettings | None = None) -> np.ndarray:
    """Proposals (P, 4) float32 for an image (H, W, 3) uint8 RGB: half-open x1 y1 x2 y2 in its pixels.

    At most `max_boxes`, no two of them near-duplicates, in an order without meaning: the first n are a fair sample. The
    same image and settings give the same boxes in any process, with any number of threads.
    """
    settings = settings or SelectiveSearchSettings()
    height, width = image.shape[:2]
    scale = settings.side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    rectangles = np.unique(_search(small, settings), axis=0)  # sorted; x y width height
    boxes = rectangles.astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    boxes *= np.array([width, height, width, height]) / np.array([*size, *size])
    boxes = np.minimum(boxes, [width, height, width, height]).astype(np.float32)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= settings.min_side]
    boxes = boxes[np.random.default_rng(0).permutation(len(boxes))]
    return _thin(boxes, settings.near, settings.max_boxes)


def _search(image: np.ndarray, settings: SelectiveSearchSettings) -> np.ndarray:
    """All rectangles (P, 4) int32 x y width height that OpenCV's search finds; their order means nothing."""
    module = segmentation()
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    colours = {
        "hsv": hsv,
        "lab": cv2.cvtColor(image, cv2.COLOR_RGB2Lab),
        "intensity": grey,
        "hue": np.ascontiguousarray(hsv[:, :, 0]),
        "rgi": np.dstack((image[:, :, 0], image[:, :, 1], grey)),
    }
    search = module.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    for name in COLOURS[settings.mode]:
        search.addImage(colours[name])
    for k in settings.k:
        search.addGraphSegmentation(module.createGraphSegmentation(settings.sigma, k, settings.min_size))
    # The same objects in both strategies: they keep the histograms of a segmentation.
    colour = module.createSelectiveSearchSegmentationStrategyColor()
    texture = module.createSelectiveSearchSegmentationStrategyTexture()
    size = module.createSelectiveSearchSegmentationStrategySize()
    fill = module.createSelectiveSearchSegmentationStrategyFill()
    multiple = module.createSelectiveSearchSegmentationStrategyMultiple
    search.addStrategy(multiple(colour, texture, size, fill))
    search.addStrategy(multiple(texture, size, fill))
    return np.asarray(search.process(), dtype=np.int32).reshape(-1, 4)


def _thin(boxes: np.ndarray, near: float, most: int) -> np.ndarray:
    """The first `most` boxes that do not overlap an earlier one kept by an IoU of `near` or more."""
    kept, number = np.empty((min(most, len(boxes)), 4), np.float32), 0
    for start in range(0, len(boxes), BLOCK):  # nothing behind the last box kept is looked at
        block = boxes[start : start + BLOCK]
        block = block[~_overlap(block, kept[:number], near).any(axis=1)]
        alike = _overlap(block, block, near)
        free = np.ones(len(block), bool)
        for i in range(len(block)):
            if free[i]:
                kept[number] = block[i]
                number += 1
                if number == most:
                    return kept
                free &= ~alike[i]
    return kept[:number].copy()


def _overlap(a: np.ndarray, b: np.ndarray, near: float) -> np.ndarray:
    """Whether each box of `a` (A, 4) overlaps each of `b` (B, 4) by an IoU of `near` or more: (A, B)."""
    ax1, ay1, ax2, ay2 = a.T[:, :, None]
    bx1, by1, bx2, by2 = np.ascontiguousarray(b.T)
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    intersection = width.clip(min=0) * height.clip(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return intersection >= near * union


def segmentation() -> Any:
    """OpenCV's module; raises UserError, with the way to get it, where it is not there."""
    module = getattr(getattr(cv2, "ximgproc", None), "segmentation", None)
    if module is None:
        names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
        others = sorted(n for n in names if n and n.startswith("opencv") and "contrib" not in n)
        remove = f"`pip uninstall -y {' '.join(others)}`, which took its place, then " if others else ""
        raise UserError(
            f"OpenCV {cv2.__version__} in {Path(cv2.__file__).parent} is not the contrib build and has no selective "
            f"search. Run {remove}`pip install --force-reinstall --no-deps opencv-contrib-python-headless`."
        )
    return module
