"""Selective search: class-independent object proposals from hierarchies of merged segments.

Uijlings et al., "Selective Search for Object Recognition", IJCV 2013. An image is cut into segments in
several colour spaces and at several coarsenesses; neighbours are merged, most similar first, until one is
left; every segment that ever existed gives a box.

The search itself is kernel.py's, or OpenCV's where that was not built. What differs from OpenCV's ready-made modes, and
why (figures in BENCHMARKS.md):
 - The search runs on an image of one fixed size, so that the coarseness means the same for every image.
 - A third similarity uses sizes and boxes alone. It costs little and finds boxes that colour and texture do not.
 - OpenCV's order of the boxes depends on the C library's rand() and differs from call to call. Here the boxes are
   sorted by `score`, and near-duplicates of better boxes are dropped. So the first n are the best n, everywhere.
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
ALGORITHM = 2  # raise it when `propose` comes to give other boxes for the same settings

BLOCK = 128  # boxes that are thinned at a time
LARGEST: int = SIDE["most"]  # longer side of an image that can be searched
PLANES = ("hue", "saturation", "value", "lightness", "a", "b", "intensity", "red", "green")
HSV, LAB, RGI = PLANES[:3], PLANES[3:6], ("red", "green", "intensity")
COLOUR_IMAGES = {"fast": (HSV, LAB), "quality": (HSV, LAB, ("intensity",), ("hue",), RGI)}  # what is searched, by mode
SIMILARITIES = (
    kernel.COLOUR + kernel.TEXTURE + kernel.SIZE + kernel.FILL,
    kernel.TEXTURE + kernel.SIZE + kernel.FILL,
    kernel.SIZE + kernel.FILL,
)
WEIGHTS = -0.5, 1.2, 1.2, -1.1, -0.2  # of rank, fill, edges inside, edges outside, aspect; see `score`
SPREAD = 1500, 5 / 6  # among the first so many boxes `near` is smaller, by this factor; see `spread`


def propose(image: np.ndarray, settings: SelectiveSearchSettings | None = None) -> np.ndarray:
    """Proposals (P, 4) float32 for an image (H, W, 3) uint8 RGB: half-open x1 y1 x2 y2 in its pixels.

    At most `max_boxes`, best first, no two of them near-duplicates. The same image and settings give the same boxes in
    any process, with any number of threads, on any processor. Without the compiled kernel OpenCV searches. It reports
    rectangles but not their segments, so the order is less good (see `_search`), and it breaks ties in another way.
    """
    return propose_scored(image, settings)[0]


def propose_scored(image: np.ndarray, settings: SelectiveSearchSettings | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Proposals as `propose` gives them, and their scores (P,) float32, which never rise from one to the next."""
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
    """The image (H, W, 3) as it is searched: its longer side is `side`, or where that is 0, as it is, up to LARGEST."""
    height, width = image.shape[:2]
    longer = max(height, width)
    scale = (side or min(longer, LARGEST)) / longer
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def score(image: np.ndarray, boxes: np.ndarray, ranks: np.ndarray, fills: np.ndarray) -> np.ndarray:
    """How likely each box (P, 4), in whole pixels of the image that is searched, is an object's: (P,) float64.

    ranks, fills: see kernel.search. The score is a sum of five terms. Their WEIGHTS are rounded from a logistic
    regression on images of VOC2007's trainval:
     - rank: a segment that is merged late is more often an object than one of the many small ones
     - fill: the segment fills its box
     - edges just inside the box, and
     - no edges just outside, as where an object ends; both as log2 of the density relative to the image's mean
     - aspect: few objects are very long

    It is the same to the last bit on every machine: it uses no logarithm of the C library.
    """
    height, width = image.shape[:2]
    edges = np.abs(cv2.Sobel(image, cv2.CV_16S, 1, 0)) + np.abs(cv2.Sobel(image, cv2.CV_16S, 0, 1))
    edges = cv2.transform(edges, np.ones((1, 3))).reshape(height, width)  # of three colours, one sum
    sums = cv2.integral(edges.astype(np.float32), sdepth=cv2.CV_64F).ravel()  # whole numbers: exact

    def measure(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        above, below = y1 * (width + 1), y2 * (width + 1)
        return (x2 - x1) * (y2 - y1), sums[below + x2] - sums[above + x2] - sums[below + x1] + sums[above + x1]

    x1, y1, x2, y2 = boxes.T.astype(np.int64)
    w, h = x2 - x1, y2 - y1
    dx, dy = np.minimum(np.maximum(w // 8, 2), w // 2), np.minimum(np.maximum(h // 8, 2), h // 2)  # of the strips
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
    """log2, linear between the powers of two, to the same bit on every machine."""
    mantissa, exponent = np.frexp(values)
    return exponent + (2 * mantissa - 2)


def spread(boxes: np.ndarray, scores: np.ndarray, near: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `most` of the boxes (P, 4) float32, best first, and their scores, without near-duplicates.

    A box that overlaps an earlier one by an IoU of `near` is dropped. Among the first boxes a smaller overlap is
    enough, as SPREAD says: it is more useful to come near many objects first. The boxes passed over in this way compete
    for the remaining places. Their scores are lowered to continue below those of the first.
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
    """Whose search this is, for stores and their names: what boxes depend on beside settings.

    The log has it once. Raises UserError where neither the kernel nor OpenCV's search is there, or only OpenCV's, which
    lacks the mode.
    """
    _check_mode(settings)
    own = kernel.library() is not None
    if own:
        level = kernel.LEVELS[kernel.level()]
        _log_once(logging.INFO, f"selective search by the library's own kernel ({level})")
    else:
        segmentation()
        _log_once(
            logging.WARNING,
            "selective search by OpenCV, which takes some fifteen times as long: the kernel was not built at install "
            "(install a C++ compiler, then the package again)",
        )
    return {"search": f"fastrcnn {ALGORITHM}" if own else f"OpenCV {ALGORITHM}", "opencv": cv2.__version__}


@functools.cache
def _log_once(level: int, text: str) -> None:
    log.log(level, text)


def _search(image: np.ndarray, settings: SelectiveSearchSettings) -> Found:
    """All rectangles that the search finds, each once, with ranks and fills, as kernel.search gives them.

    OpenCV does not report segments. A box's rank is then log2 of the ratio of the image's size to its own, both the
    square root of the area, and its fill is 1.
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
    ratio = image[:, :, 0].size / rectangles[:, 2:].prod(axis=1)  # of areas
    return rectangles, 0.5 * _log2(ratio), np.ones(len(rectangles))


def _check_mode(settings: SelectiveSearchSettings) -> None:
    """Raises UserError for a mode that needs the kernel where it was not built."""
    if settings.mode == "iccv2011" and kernel.library() is None:
        raise UserError(
            "data.selective_search.mode=iccv2011 needs the C++ kernel, which was not built when the package was "
            "installed; OpenCV's selective search, used instead, has no such mode. Install a C++ compiler (Debian and "
            "Ubuntu: `apt-get install g++`) and reinstall the package, or set mode=fast or mode=quality."
        )


def _min_sizes(settings: SelectiveSearchSettings) -> list[int]:
    """Area of the smallest segment, for each k."""
    return [settings.min_size or max(1, round(k)) for k in settings.k]


def _search_as_iccv2011(image: np.ndarray, settings: SelectiveSearchSettings) -> Found:
    """What `_search` gives, by the rules of the ICCV 2011 paper's code; see iccv2011.py."""
    _check_mode(settings)
    planes = iccv2011.planes(image)
    channels = np.arange(len(planes)).reshape(-1, 3).tolist()
    texture, blur = iccv2011.texture(planes), iccv2011.blur_kernel(settings.sigma)
    similarities = [kernel.TEXTURE + kernel.SIZE]
    return kernel.search(planes, channels, settings.k, blur, _min_sizes(settings), similarities, texture=texture)


def _search_by_opencv(image: np.ndarray, images: Sequence[np.ndarray], settings: SelectiveSearchSettings) -> np.ndarray:
    """Rectangles as `_search` gives them; their order means nothing."""
    module = segmentation()
    search = module.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    for colour_image in images:
        search.addImage(colour_image)
    for k, min_size in zip(settings.k, _min_sizes(settings), strict=True):
        search.addGraphSegmentation(module.createGraphSegmentation(settings.sigma, k, min_size))
    # The same objects for all similarities: they keep the histograms of a segmentation.
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
    """As kernel.thin."""
    kept: list[int] = []
    for start in range(0, len(boxes), BLOCK):  # nothing behind the last box kept is looked at
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
