"""Our own selective search, ops/csrc/selective_search.cpp, which is built with the RoI pooling kernel at install.

It gives the boxes that OpenCV's gives, but where edges or similarities are equal, and the same on every processor.
Imports neither torch nor the rest of ops/, as processes that make proposals need none of it.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastrcnn.errors import UserError

FOLDER = Path(__file__).parents[1] / "ops"
INTERFACE = 1  # of the library, as selective_search.cpp counts
LEVELS = ("plain", "avx2", "avx512")
COLOUR, TEXTURE, SIZE, FILL = 1, 2, 4, 8  # what the similarity of two segments is made of


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel, in the package or where FASTRCNN_SEARCH_LIBRARY says; None where it was not built,
    or from other sources."""
    forced = os.environ.get("FASTRCNN_SEARCH_LIBRARY")
    for path in [Path(forced)] if forced else sorted(FOLDER.glob("_roi_cpu*.so")):
        try:
            kernel = ctypes.CDLL(str(path))
            search, take, thin = kernel.selective_search, kernel.selective_search_take, kernel.selective_search_thin
            if kernel.selective_search_interface() != INTERFACE:
                continue
        except (OSError, AttributeError):  # built for another machine, or from older sources
            continue
        p, n, i, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
        search.argtypes, search.restype = [i, i, i, p, i, p, p, i, p, i, p, p, i, p, p, p, i], n
        take.argtypes, take.restype = [p, p, p], None
        thin.argtypes, thin.restype = [p, n, f, n, p, i], n
        return kernel
    return None


def level() -> int:
    """Index into LEVELS of the instructions in use: the best that the processor has, or FASTRCNN_SEARCH_LEVEL.

    Raises UserError for a level that it does not have.
    """
    best = _kernel().roi_pool_best_level()
    name = os.environ.get("FASTRCNN_SEARCH_LEVEL", LEVELS[best])
    if name not in LEVELS[: best + 1]:
        raise UserError(f"FASTRCNN_SEARCH_LEVEL={name}: this processor can run {', '.join(LEVELS[: best + 1])}.")
    return LEVELS.index(name)


def search(
    planes: np.ndarray,
    colour_images: Sequence[Sequence[int]],
    k: Sequence[float],
    blur: np.ndarray,
    min_size: Sequence[int],
    similarities: Sequence[int],
    labels: np.ndarray | None = None,
    texture: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rectangles (P, 4) int32, x y width height, sorted, of the segments that ever existed, with ranks and fills.

    Both are means (P,) float64 over the segments that have the rectangle. Rank: log2, linear between the powers of two,
    of 1 for the last segment of a hierarchy, which is the whole image, 2 for the one before, and so on. Fill: the
    segment's share of the rectangle.

    planes: (planes, H, W) uint8. colour_images: of each, the planes it consists of. k: see SelectiveSearchSettings.
    blur: kernel of the blur before segmentation, of an odd length. min_size: area of the smallest segment, for each k.
    similarities: for each hierarchy, a sum of COLOUR, TEXTURE, SIZE and FILL. labels: takes the first segments, (colour
    images, k, H, W) int32, if given. texture: (planes, 4, H, W) uint8, the bins of four derivatives, as iccv2011.py
    makes them; with it the search follows the rules of that code in place of OpenCV's.
    """
    planes = np.ascontiguousarray(planes)
    count, height, width = planes.shape
    blur, sizes = np.ascontiguousarray(blur, np.float32), np.array(min_size, np.int32)
    assert len(sizes) == len(k)
    if texture is not None:
        texture = np.ascontiguousarray(texture)
        assert texture.shape == (count, 4, height, width)
        assert texture.dtype == np.uint8
    channels = np.array([len(image) for image in colour_images], np.int32)
    channel = np.array([plane for image in colour_images for plane in image], np.int32)
    coarseness, measures = np.array(k, np.float32), np.array(similarities, np.int32)
    found = _kernel().selective_search(
        *(height, width, count, planes.ctypes.data, len(channels), channels.ctypes.data, channel.ctypes.data),
        *(len(coarseness), coarseness.ctypes.data, blur.size, blur.ctypes.data, sizes.ctypes.data),
        *(len(measures), measures.ctypes.data, None if labels is None else labels.ctypes.data),
        *(None if texture is None else texture.ctypes.data, level()),
    )
    if found < 0:
        raise MemoryError(f"selective search: no memory for an image of {width} x {height} pixels")
    rectangles = np.empty((found, 4), np.int32)
    ranks, fills = np.empty(found), np.empty(found)
    _kernel().selective_search_take(rectangles.ctypes.data, ranks.ctypes.data, fills.ctypes.data)
    return rectangles, ranks, fills


def thin(boxes: np.ndarray, near: float, most: int) -> np.ndarray:
    """Indices of the first `most` boxes (P, 4) float32 that do not overlap an earlier one kept by an IoU of `near`."""
    boxes, kept = np.ascontiguousarray(boxes, np.float32), np.empty(min(most, len(boxes)), np.int32)
    number = _kernel().selective_search_thin(boxes.ctypes.data, len(boxes), near, most, kept.ctypes.data, level())
    if number < 0:
        raise MemoryError(f"selective search: no memory to compare {len(boxes)} boxes")
    return kept[:number]


def _kernel() -> ctypes.CDLL:
    kernel = library()
    assert kernel is not None
    return kernel
