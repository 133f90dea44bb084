"""Interface to the C++ selective search kernel, ops/csrc/selective_search.cpp.

The kernel is compiled together with the RoI pooling kernel when the package is installed. It returns the same boxes on
every processor. They differ from OpenCV's if several edges or similarities are equal, or if OpenCV rounds differently
(see docs/notes.md). This module imports neither torch nor the rest of ops/, because processes that generate proposals
do not need them.
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
INTERFACE = 1  # must equal the interface version in selective_search.cpp
LEVELS = ("plain", "avx2", "avx512")  # instruction sets
COLOUR, TEXTURE, SIZE, FILL = 1, 2, 4, 8  # terms of the similarity of two segments


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the kernel from the package, or from the path in the environment variable FASTRCNN_SEARCH_LIBRARY.

    Returns None if the kernel was not built, cannot be loaded, or was built from a different version of the sources.
    """
    forced = os.environ.get("FASTRCNN_SEARCH_LIBRARY")
    for path in [Path(forced)] if forced else sorted(FOLDER.glob("_roi_cpu*.so")):
        try:
            kernel = ctypes.CDLL(str(path))
            search, take, thin = kernel.selective_search, kernel.selective_search_take, kernel.selective_search_thin
            if kernel.selective_search_interface() != INTERFACE:
                continue
        except (OSError, AttributeError):  # compiled for another machine or from older sources
            continue
        p, n, i, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
        search.argtypes, search.restype = [i, i, i, p, i, p, p, i, p, i, p, p, i, p, p, p, i], n
        take.argtypes, take.restype = [p, p, p], None
        thin.argtypes, thin.restype = [p, n, f, n, p, i], n
        return kernel
    return None


def level() -> int:
    """Return the index in LEVELS of the instruction set to use.

    The default is the best one that the processor supports; the environment variable FASTRCNN_SEARCH_LEVEL overrides
    it. Raises UserError if its value is unknown, or if the processor does not support the instruction set.
    """
    best = _kernel().roi_pool_best_level()
    name = os.environ.get("FASTRCNN_SEARCH_LEVEL", LEVELS[best])
    if name not in LEVELS[: best + 1]:
        raise UserError(
            f"FASTRCNN_SEARCH_LEVEL={name}: this level is unknown or not supported by the processor. Use one of: "
            f"{', '.join(LEVELS[: best + 1])}."
        )
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
    """Return the distinct bounding rectangles of all segments, sorted, with their ranks and fills.

    For each colour image, k and similarity measure, segments are merged until one is left. The initial and merged
    segments form a hierarchy. The rectangles (P, 4) int32 are x y width height. Ranks and fills (P,) float64 are means
    over all segments with the same rectangle. The position of a segment is counted from the end of its hierarchy: 1 for
    the last segment, which is the entire image, 2 for the segment before it, and so on. The rank is log2 of the
    position, interpolated linearly between powers of two. The fill is the fraction of the rectangle that the segment
    covers. Raises MemoryError if memory runs out.

    planes: (C, H, W) uint8, the channels of all colour images.
    colour_images: for each colour image, the indices of its planes.
    k: the scale parameters of the segmentation; see SelectiveSearchSettings.
    blur: the symmetric kernel of the blur before segmentation. Its length is odd.
    min_size: for each k, the minimum area of a segment in pixels.
    similarities: for each similarity measure, the sum of its terms: COLOUR, TEXTURE, SIZE, FILL.
    labels: if given, an array (colour images, k, H, W) int32 that receives the initial segment of each pixel.
    texture: (C, 4, H, W) uint8, the bins of four derivatives from `iccv2011.texture`. If given, the search follows the
        rules of the ICCV 2011 code instead of OpenCV's.
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
        raise MemoryError(f"selective search: not enough memory for an image of {width} x {height} pixels")
    rectangles = np.empty((found, 4), np.int32)
    ranks, fills = np.empty(found), np.empty(found)
    _kernel().selective_search_take(rectangles.ctypes.data, ranks.ctypes.data, fills.ctypes.data)
    return rectangles, ranks, fills


def thin(boxes: np.ndarray, near: float, most: int) -> np.ndarray:
    """Keep boxes, in order, whose IoU with every box kept before is less than `near`. Stop after `most` boxes.

    boxes: (P, 4) float32, half-open x1 y1 x2 y2. Returns the indices of the kept boxes, in ascending order.
    """
    boxes, kept = np.ascontiguousarray(boxes, np.float32), np.empty(min(most, len(boxes)), np.int32)
    number = _kernel().selective_search_thin(boxes.ctypes.data, len(boxes), near, most, kept.ctypes.data, level())
    if number < 0:
        raise MemoryError(f"selective search: not enough memory to compare {len(boxes)} boxes")
    return kept[:number]


def _kernel() -> ctypes.CDLL:
    kernel = library()
    assert kernel is not None
    return kernel
