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

import functools
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals import iccv2011, kernel
from fastrcnn.settings import SIDE, SelectiveSearchSettings

log = logging.getLogger(__name__)
ALGORITHM = 2  # raise it when `propose` comes to give other boxes for the same settings

BLOCK = 128  # boxes that are thinned at a time
LARGEST: int = SIDE["most"]  # longer side of an image that can be searched
PLANES = ("hue", "saturation", "value", "lightness", "a", "b", "intensity", "red", "green")
HSV, LAB, RGI = PLANES[:3], PLANES[3:6], ("red", "green", "intensity")
COLOUR_IMAGES = {"fast": (HSV, LAB), "quality": (HSV, LAB, ("intensity",), ("hue",), RGI)}  # what is searched, by mode
SIMILARITIES = (
    kernel.COLOUR + kernel.TEXTURE + kernel.SIZE + kernel.FILL,
    kernel.TEXTURE + kernel.SIZE + kernel.FILL,
)


def propose(image: np.ndarray, settings: SelectiveSearchSettings | None = None) -> np.ndarray:
    """Proposals (P, 4) float32 for an image (H, W, 3) uint8 RGB: half-open x1 y1 x2 y2 in its pixels.

    At most `max_boxes`, no two of them near-duplicates, in an order without meaning: the first n are a fair sample. The
    same image and settings give the same boxes in any process, with any number of threads.
    """
    settings = settings or SelectiveSearchSettings()
    height, width = image.shape[:2]
    longer = max(height, width)
    scale = (settings.side or min(longer, LARGEST)) / longer
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    boxes = _search(small, settings).astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    boxes *= np.array([width, height, width, height]) / np.array([*size, *size])
    boxes = np.minimum(boxes, [width, height, width, height]).astype(np.float32)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= settings.min_side]
    boxes = boxes[np.random.default_rng(0).permutation(len(boxes))]
    thin = kernel.thin if kernel.library() is not None else _thin
    return thin(boxes, settings.near, settings.max_boxes)


def searcher() -> dict[str, str]:
    """Whose search this is, for stores and their names: what boxes depend on beside settings.

    The log has it once. Raises UserError where neither the kernel nor OpenCV's search is there.
    """
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


def _search(image: np.ndarray, settings: SelectiveSearchSettings) -> np.ndarray:
    """All rectangles (P, 4) int32 x y width height that the search finds, sorted, each once."""
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
    return np.unique(_search_by_opencv(image, images, settings), axis=0)


def check_mode(settings: SelectiveSearchSettings) -> None:
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


def _search_as_iccv2011(image: np.ndarray, settings: SelectiveSearchSettings) -> np.ndarray:
    """Rectangles as `_search` gives them, by the rules of the ICCV 2011 paper's code; see iccv2011.py."""
    check_mode(settings)
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
