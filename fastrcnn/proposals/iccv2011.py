"""Colour spaces, texture and blur of the first selective search code (ICCV 2011).

The authors of selective search distribute boxes for VOC 2007, and the archive of the Fast R-CNN author contains these
boxes. They were not generated with the code of the journal paper (IJCV 2013), which R-CNN's selective_search_boxes.m
calls. They were generated with the code of the earlier paper: van de Sande, Uijlings, Gevers and Smeulders,
"Segmentation as Selective Search for Object Recognition", ICCV 2011. Issues 26 and 41 of rbgirshick/fast-rcnn confirm
that the boxes are from an older version. Distributed boxes of two images were available for comparison. This program
reproduces all of them (2,888 and 2,057) exactly.

The steps of that code and their sources (no code was copied):
 - The image is not resized. The colour spaces are RGB, HSV, rgI and opponent colours. Each is segmented with k = 100
   and k = 200; the minimum segment size is k pixels, and the sigma of the blur is 0.8. The result is the set of boxes
   of all hierarchies of segments. Source: SelectiveSearchPcode/demo.m in weiliu89/selectivesearch; the rest of that
   code is distributed only as MATLAB P-code.
 - Formulas of the colour spaces: Image2ColourSpace.m, Rgb2Rgi.m and Rgb2Ooo.m of the IJCV code.
 - Segmentation: Felzenszwalb's algorithm with edges to eight neighbours. Two segments are neighbours if a pixel of one
   shares a side with a pixel of the other. Source: mexFelzenSegmentIndex.cpp of the IJCV code.
 - Neighbours are merged by texture and size. Source: section 3.1 of the paper.
 - Texture: histograms of Gaussian derivatives in eight orientations at sigma 0.8, with ten bins up to 0.43. Source:
   Image2OrientedGradients.m, BlobStructTextureHist.m and Vector2Hist.m of the IJCV code. The diagonal derivatives are
   computed with a recursive filter (anigauss.c). The horizontal and vertical derivatives are computed with a sampled
   kernel and zero padding. No source documents this, but only this variant gives the same boxes.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

SIGMA, BINS, LARGEST = 0.8, 10, 0.43  # of the texture; LARGEST: upper limit of the bins, for pixel values from 0 to 1
UNIT = 2**20  # filter weights are integer multiples of 1 / UNIT, so that sums are exact in any order


def planes(image: np.ndarray) -> np.ndarray:
    """Convert an RGB image (H, W, 3) uint8 to the planes (12, H, W) uint8 of RGB, HSV, rgI and opponent colours.

    rgI is normalised red, normalised green, and intensity.
    """
    red, green, blue = (image[:, :, c] / 255.0 for c in range(3))
    grey = 0.298936021293775 * red + 0.587043074451121 * green + 0.114020904255103 * blue
    opponent = [  # constant factors do not matter, because each plane is rescaled below
        0.000233846 * red + 0.00261968 * green + 0.00127135 * blue,
        0.000726333 * red + 0.000718106 * green - 0.00121377 * blue,
        0.000846833 * red - 0.00173932 * green + 0.000221515 * blue,
    ]
    total = red + green + blue
    chromatic = [np.where(total > 0, c / np.where(total > 0, total, 1), 1 / 3) for c in (red, green)]
    spread = [_spread(plane) for plane in (*chromatic, *opponent)]
    found = [*_hsv(red, green, blue), *spread[:2], grey, *spread[2:]]
    return np.concatenate([image.transpose(2, 0, 1), [np.floor(p * 255 + 0.5).astype(np.uint8) for p in found]])


def _hsv(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> list[np.ndarray]:
    """Return the planes of hue, saturation and value, each from 0 to 1, of colour planes from 0 to 1."""
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    grey = chroma == 0
    divisor = np.where(grey, 1, chroma)
    sixths = np.select(
        [grey, value == blue, value == green],
        [np.zeros_like(value), 4 + (red - green) / divisor, 2 + (blue - red) / divisor],
        (green - blue) / divisor,
    )
    return [np.where(sixths < 0, sixths / 6 + 1, sixths / 6), chroma / np.where(value > 0, value, 1), value]


def _spread(plane: np.ndarray) -> np.ndarray:
    """Rescale the values of a plane linearly to the range 0 to 1. A constant plane becomes 0."""
    least, largest = plane.min(), plane.max()
    return (plane - least) / (largest - least) if largest > least else np.zeros_like(plane)


def blur_kernel(sigma: float) -> np.ndarray:
    """Return Felzenszwalb's kernel for the blur before segmentation: a Gaussian truncated at four sigma."""
    far = math.ceil(4 * sigma)
    weights = np.array([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-far, far + 1)])
    return weights / weights.sum()


def texture(planes: np.ndarray) -> np.ndarray:
    """Quantise the horizontal, vertical and two diagonal derivatives of planes (C, H, W) to bins (C, 4, H, W) uint8.

    Bins 0 to 9 contain negative derivatives, and bins 10 to 19 contain positive derivatives. In both ranges, a higher
    bin means a larger absolute value. Bin 20 contains derivatives of zero.
    """
    far = math.ceil(3 * SIGMA)
    gauss = np.array([math.exp(-0.5 * (i / SIGMA) ** 2) for i in range(-far, far + 1)])
    gauss /= gauss.sum()
    slope = _whole(gauss * np.arange(-far, far + 1) / SIGMA**2)
    gauss, recursive = _whole(gauss), _whole(_recursive_gauss())
    out = np.empty((len(planes), 4, *planes.shape[1:]), np.uint8)
    for plane, bins in zip(planes, out, strict=True):
        across, down = (_filtered(plane, *along, cv2.BORDER_CONSTANT) for along in ((slope, gauss), (gauss, slope)))
        smooth = np.pad(_filtered(plane, recursive, recursive, cv2.BORDER_REPLICATE), 1, mode="edge")
        # Twice the horizontal and vertical derivatives of the smoothed plane. Their sum and difference are 2 sqrt(2)
        # times the diagonal derivatives.
        right, below = smooth[1:-1, 2:] - smooth[1:-1, :-2], smooth[2:, 1:-1] - smooth[:-2, 1:-1]
        for bin, derivative, factor in zip(
            bins, (across, down, right + below, right - below), (1, 1, math.sqrt(8), math.sqrt(8)), strict=True
        ):
            step = LARGEST / BINS * 255 * UNIT**2 * factor
            index = np.minimum(np.abs(derivative) / step, BINS - 1).astype(np.uint8)
            bin[:] = np.where(derivative == 0, 2 * BINS, index + np.where(derivative > 0, BINS, 0))
    return out


def _whole(weights: np.ndarray) -> np.ndarray:
    return np.rint(weights * UNIT)


def _filtered(plane: np.ndarray, along_x: np.ndarray, along_y: np.ndarray, border: int) -> np.ndarray:
    """Correlate a plane with one kernel along x and one along y. border: OpenCV's border type."""
    return cv2.sepFilter2D(plane.astype(np.float64), cv2.CV_64F, along_x, along_y, borderType=border)


def _recursive_gauss() -> np.ndarray:
    """Return the impulse response of the recursive Gaussian of Young, van Vliet and van Ginkel (2002), in 17 taps."""
    m0, m1, m2 = 1.1668, 1.10783, 1.40586
    q = -0.2568 + 0.5784 * SIGMA + 0.0561 * SIGMA**2
    norm, scale = m1**2 + m2**2, (m0 + q) * (m1**2 + m2**2 + 2 * m1 * q + q**2)
    b1 = q * (2 * m0 * m1 + norm + (2 * m0 + 4 * m1) * q + 3 * q**2) / scale
    b2, b3 = -(q**2) * (m0 + 2 * m1 + 3 * q) / scale, q**3 / scale
    forth = [m0 * norm / scale]
    for _ in range(8):  # the remaining terms are below one millionth
        one, two, three = [*forth[::-1], 0, 0][:3]
        forth.append(b1 * one + b2 * two + b3 * three)
    return np.correlate(forth, forth, "full")
