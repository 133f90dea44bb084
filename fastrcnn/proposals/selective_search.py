"""Selective search: class-independent object proposals from hierarchies of merged segments.

Uijlings et al., "Selective Search for Object Recognition", IJCV 2013. An image is divided into segments in several
colour spaces and at several scales. The most similar neighbouring segments are merged until one segment is left. The
bounding boxes of all initial and merged segments are the proposals.

The search runs in the C++ kernel (kernel.py), or in OpenCV if the kernel was not built. Differences from OpenCV's
built-in modes (measurements are in BENCHMARKS.md):
 - Every image is resized to the same longer side, so that the scale parameter k has the same meaning for every image.
 - In addition to the two similarities of OpenCV's fast mode, a third one uses only the sizes and boxes of segments. It
   is fast to compute, and it gives boxes that the other two do not give.
 - The order of OpenCV's boxes depends on rand() of the C library and differs between calls. Here the boxes are sorted
   by `score`, and near-duplicates of better boxes are dropped.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals import iccv2011, kernel
from fastrcnn.settings import SIDE, SelectiveSearchSettings

log = logging.getLogger(__name__)
Found: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # rectangles, ranks and fills; see kernel.search
ALGORITHM = 2  # increase this if a change makes `propose` return different boxes for the same settings

BLOCK = 128  # boxes that `_thin` processes at a time
LARGEST: int = SIDE["most"]  # maximum longer side of an image that is searched, in pixels
PLANES = ("hue", "saturation", "value", "lightness", "a", "b", "intensity", "red", "green")
HSV, LAB, RGI = PLANES[:3], PLANES[3:6], ("red", "green", "intensity")
COLOUR_IMAGES = {"fast": (HSV, LAB), "quality": (HSV, LAB, ("intensity",), ("hue",), RGI)}  # planes, by mode
SIMILARITIES = (
    kernel.COLOUR + kernel.TEXTURE + kernel.SIZE + kernel.FILL,
    kernel.TEXTURE + kernel.SIZE + kernel.FILL,
    kernel.SIZE + kernel.FILL,
)
WEIGHTS = -0.5, 1.2, 1.2, -1.1, -0.2  # of rank, fill, edges inside, edges outside, aspect ratio; see `score`
SPREAD = 1500, 5 / 6  # for the first 1,500 boxes, `near` is multiplied by 5 / 6; see `spread`


def propose(image: np.ndarray, settings: SelectiveSearchSettings | None = None) -> np.ndarray:
    """Generate proposals for an RGB image (H, W, 3) uint8.

    Returns at most `settings.max_boxes` boxes (P, 4) float32, half-open x1 y1 x2 y2 in pixels of the image, best first
    and without near-duplicates. The same image and settings give the same boxes in any process, with any number of
    threads and on any processor. If the compiled kernel is missing, OpenCV's search is used, which gives slightly
    different boxes in a less accurate order (see `_search`). Raises UserError if the search is not available.
    """
    return propose_scored(image, settings)[0]


def propose_scored(image: np.ndarray, settings: SelectiveSearchSettings | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of `propose` and their scores (P,) float32 in descending order."""
    settings = settings or SelectiveSearchSettings()
    height, width = image.shape[:2]
    small = resized(image, settings.side)
    size = small.shape[1], small.shape[0]
    rectangles, ranks, fills = _search(small, settings)
    rectangles[:, 2:] += rectangles[:, :2]
    boxes = rectangles * (np.array([width, height, width, height]) / np.array([*size, *size]))
    boxes = np.minimum(boxes, [width, height, width, height]).astype(np.float32)
    large = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= settings.min_side)
    scores = score(small, rectangles[large], ranks[large], fills[large])
    order = np.argsort(-scores, kind="stable")
    return spread(boxes[large[order]], scores[order], settings.near, settings.max_boxes)


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """Resize an image (H, W, 3) so that its longer side has `side` pixels.

    If `side` is 0, the longer side becomes LARGEST if it exceeds LARGEST; otherwise, the size does not change.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    scale = (side or min(longer, LARGEST)) / longer
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def score(image: np.ndarray, boxes: np.ndarray, ranks: np.ndarray, fills: np.ndarray) -> np.ndarray:
    """Return a score (P,) float64 for each box: the higher, the more likely the box contains an object.

    image: the resized image. boxes: (P, 4) integers x1 y1 x2 y2 in its pixels. ranks, fills: see `kernel.search`.
    The score is a weighted sum of five terms. The WEIGHTS are rounded coefficients of a logistic regression on images
    of VOC2007 trainval:
     - rank (negative weight), because segments that are merged late have a low rank and are more often objects
     - fill, because segments that fill their box are more often objects
     - the density of image edges just inside the box, as log2 of its ratio to the mean density of the image
     - the same density just outside the box (negative weight), because an object ends at its box
     - the squared log2 of the aspect ratio (negative weight), because few objects are very long

    The score is bit-identical on every machine, because `_log2` does not use the logarithm of the C library.
    """
    height, width = image.shape[:2]
    edges = np.abs(cv2.Sobel(image, cv2.CV_16S, 1, 0)) + np.abs(cv2.Sobel(image, cv2.CV_16S, 0, 1))
    edges = cv2.transform(edges, np.ones((1, 3))).reshape(height, width)  # sum over the colours
    sums = cv2.integral(edges.astype(np.float32), sdepth=cv2.CV_64F).ravel()  # integers, so sums are exact

    def measure(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        above, below = y1 * (width + 1), y2 * (width + 1)
        return (x2 - x1) * (y2 - y1), sums[below + x2] - sums[above + x2] - sums[below + x1] + sums[above + x1]

    x1, y1, x2, y2 = boxes.T.astype(np.int64)
    w, h = x2 - x1, y2 - y1
    dx, dy = np.minimum(np.maximum(w // 8, 2), w // 2), np.minimum(np.maximum(h // 8, 2), h // 2)  # strip widths
    inner = measure(x1 + dx, y1 + dy, x2 - dx, y2 - dy)
    whole = measure(x1, y1, x2, y2)
    outer = measure(
        np.maximum(x1 - dx, 0), np.maximum(y1 - dy, 0), np.minimum(x2 + dx, width), np.minimum(y2 + dy, height)
    )
    mean = max(sums[-1] / (width * height), 1.0)
    inside, outside = (
        _log2((large[1] - less[1]) / (np.maximum(large[0] - less[0], 1) * mean) + 0.05)
        for large, less in ((whole, inner), (outer, whole))
    )
    aspect = _log2(w / h)
    rank, fill, edge, ground, long = WEIGHTS
    return rank * ranks + fill * fills + edge * inside + ground * outside + long * (aspect * aspect)


def _log2(values: np.ndarray) -> np.ndarray:
    """Return log2, interpolated linearly between powers of two. The result is bit-identical on every machine."""
    mantissa, exponent = np.frexp(values)
    return exponent + (2 * mantissa - 2)


def spread(boxes: np.ndarray, scores: np.ndarray, near: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Drop near-duplicates and return the first `most` boxes (R, 4) and their scores (R,) float32.

    boxes: (P, 4) float32, best first. A box is dropped if its IoU with a box kept before is `near` or more. The first
    boxes are chosen with a lower threshold (see SPREAD), because they should cover many different objects. Boxes that
    pass only the threshold `near` follow after them. Their scores are reduced so that all scores are in descending
    order.
    """
    thin = kernel.thin if kernel.library() is not None else _thin
    few, factor = SPREAD
    first = thin(boxes, near * factor, min(few, most))
    if len(first) < most:
        passed = np.ones(len(boxes), bool)
        passed[first] = False
        order = np.concatenate([first, np.flatnonzero(passed)])
        kept = order[thin(boxes[order], near, most)]
    else:
        kept = first
    of_kept, begin = scores[kept], len(first)
    if 0 < begin < len(kept):
        of_kept[begin:] -= max(of_kept[begin] - of_kept[begin - 1], 0.0)
    return boxes[kept], of_kept.astype(np.float32)


def searcher(settings: SelectiveSearchSettings) -> dict[str, str]:
    """Return the search implementation and the OpenCV version, which together with the settings determine the boxes.

    The result, a dictionary, is saved in stores, and the names of stores depend on it. The implementation is logged
    once per process. Raises UserError if neither the kernel nor OpenCV's search is available, if the mode needs the
    kernel and the kernel was not built, or if `kernel.level` raises it.
    """
    _check_mode(settings)
    own = kernel.library() is not None
    if own:
        level = kernel.LEVELS[kernel.level()]
        _log_once(logging.INFO, f"Selective search uses the compiled kernel ({level})")
    else:
        segmentation()
        _log_once(
            logging.WARNING,
            "Selective search uses OpenCV, because the C++ kernel was not built when the package was installed. OpenCV "
            "takes 15 to 19 times as long. To build the kernel, install a C++ compiler and reinstall the package.",
        )
    return {"search": f"fastrcnn {ALGORITHM}" if own else f"OpenCV {ALGORITHM}", "opencv": cv2.__version__}


@functools.cache
def _log_once(level: int, text: str) -> None:
    log.log(level, text)


def _search(image: np.ndarray, settings: SelectiveSearchSettings) -> Found:
    """Search a resized RGB image. Returns the distinct rectangles with their ranks and fills, as in `kernel.search`.

    OpenCV does not return segments. With OpenCV, the rank of a box is therefore estimated as half of log2(image area /
    box area), and its fill as 1.
    """
    if settings.mode == "iccv2011":
        return _search_as_iccv2011(image, settings)
    hsv = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    lab = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2Lab))
    intensity = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    plane = dict(zip(PLANES, (*hsv, *lab, intensity, image[:, :, 0], image[:, :, 1]), strict=True))
    colour_images = COLOUR_IMAGES[settings.mode]
    if kernel.library() is not None:
        used = [name for name in PLANES if any(name in image for image in colour_images)]
        planes, numbers = np.stack([plane[name] for name in used]), {name: i for i, name in enumerate(used)}
        channels = [[numbers[name] for name in image] for image in colour_images]
        blur = cv2.getGaussianKernel(round(8 * settings.sigma + 1) | 1, settings.sigma, cv2.CV_32F)
        return kernel.search(planes, channels, settings.k, blur, _min_sizes(settings), SIMILARITIES)
    images = [cv2.merge([plane[name] for name in image]) for image in colour_images]
    rectangles = np.unique(_search_by_opencv(image, images, settings), axis=0)
    ratio = image[:, :, 0].size / rectangles[:, 2:].prod(axis=1)  # area of the image / area of the box
    return rectangles, 0.5 * _log2(ratio), np.ones(len(rectangles))


def _check_mode(settings: SelectiveSearchSettings) -> None:
    """Raise UserError if the mode needs the kernel and the kernel was not built."""
    if settings.mode == "iccv2011" and kernel.library() is None:
        raise UserError(
            "data.selective_search.mode=iccv2011 needs the C++ kernel, which was not built when the package was "
            "installed. OpenCV's selective search, which replaces the kernel in the other modes, does not have this "
            "mode. Install a C++ compiler (Debian and Ubuntu: `apt-get install g++`) and reinstall the package, or set "
            "data.selective_search.mode=fast or data.selective_search.mode=quality."
        )


def _min_sizes(settings: SelectiveSearchSettings) -> list[int]:
    """Return the minimum area of a segment in pixels, for each k in the settings."""
    return [settings.min_size or max(1, round(k)) for k in settings.k]


def _search_as_iccv2011(image: np.ndarray, settings: SelectiveSearchSettings) -> Found:
    """Search by the rules of the ICCV 2011 code (see iccv2011.py). Returns the same arrays as `_search`."""
    _check_mode(settings)
    planes = iccv2011.planes(image)
    channels = np.arange(len(planes)).reshape(-1, 3).tolist()
    texture, blur = iccv2011.texture(planes), iccv2011.blur_kernel(settings.sigma)
    similarities = [kernel.TEXTURE + kernel.SIZE]
    return kernel.search(planes, channels, settings.k, blur, _min_sizes(settings), similarities, texture=texture)


def _search_by_opencv(image: np.ndarray, images: Sequence[np.ndarray], settings: SelectiveSearchSettings) -> np.ndarray:
    """Search colour images with OpenCV. Returns unordered rectangles x y width height (P, 4), maybe with duplicates."""
    module = segmentation()
    search = module.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    for colour_image in images:
        search.addImage(colour_image)
    for k, min_size in zip(settings.k, _min_sizes(settings), strict=True):
        search.addGraphSegmentation(module.createGraphSegmentation(settings.sigma, k, min_size))
    # All similarities share these objects, which cache the histograms of a segmentation.
    measures = {
        kernel.COLOUR: module.createSelectiveSearchSegmentationStrategyColor(),
        kernel.TEXTURE: module.createSelectiveSearchSegmentationStrategyTexture(),
        kernel.SIZE: module.createSelectiveSearchSegmentationStrategySize(),
        kernel.FILL: module.createSelectiveSearchSegmentationStrategyFill(),
    }
    for similarity in SIMILARITIES:
        chosen = [measure for bit, measure in measures.items() if similarity & bit]
        search.addStrategy(module.createSelectiveSearchSegmentationStrategyMultiple(*chosen))
    return np.asarray(search.process(), dtype=np.int32).reshape(-1, 4)


def _thin(boxes: np.ndarray, near: float, most: int) -> np.ndarray:
    """Python implementation of `kernel.thin`, for installations without the kernel."""
    kept: list[int] = []
    for start in range(0, len(boxes), BLOCK):  # in blocks, because boxes after the last kept box need no comparison
        block = boxes[start : start + BLOCK]
        free = np.asarray(~_overlap(block, boxes[kept], near).any(axis=1))
        alike = _overlap(block, block, near)
        for i in range(len(block)):
            if free[i]:
                kept.append(start + i)
                if len(kept) == most:
                    return np.array(kept)
                free &= ~alike[i]
    return np.array(kept, np.int64)


def _overlap(a: np.ndarray, b: np.ndarray, near: float) -> np.ndarray:
    """Return a matrix (A, B) bool: whether box a[i] and box b[j] have an IoU of `near` or more."""
    ax1, ay1, ax2, ay2 = a.T[:, :, None]
    bx1, by1, bx2, by2 = np.ascontiguousarray(b.T)
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    intersection = width.clip(min=0) * height.clip(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return intersection >= near * union


def segmentation() -> Any:
    """Return OpenCV's selective search module. Raises UserError with instructions if it is missing."""
    module = getattr(getattr(cv2, "ximgproc", None), "segmentation", None)
    if module is None:
        names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
        others = sorted(n for n in names if n and n.startswith("opencv") and "contrib" not in n)
        remove = f"`pip uninstall -y {' '.join(others)}` to remove other builds, then " if others else ""
        raise UserError(
            f"OpenCV {cv2.__version__} in {Path(cv2.__file__).parent} is not the contrib build and has no selective "
            f"search. Run {remove}`pip install --force-reinstall --no-deps opencv-contrib-python-headless`."
        )
    return module
