"""What selective search's first code makes of an image before it segments it: its colour spaces, texture and blur.

The authors of selective search distribute boxes for VOC 2007, and the archive of Fast R-CNN's author contains them.
They are not from the code of the journal paper (IJCV 2013), which R-CNN's selective_search_boxes.m calls, but from the
earlier one: van de Sande, Uijlings, Gevers and Smeulders, "Segmentation as Selective Search for Object Recognition",
ICCV 2011. Issues 26 and 41 of rbgirshick/fast-rcnn say that they are from an older version. With what follows, the
boxes of both images that there are to compare with come out exactly, 2,888 and 2,057 of them.

What that code does, and where it was found (nothing was copied):
 - The image is not resized; RGB, HSV, rgI and opponent colours; k = 100 and 200, the smallest segment as large as k,
   sigma .8; all boxes of all hierarchies, each once: SelectiveSearchPcode/demo.m in weiliu89/selectivesearch. The rest
   of that code is not readable.
 - The colour spaces' formulas: Image2ColourSpace.m, Rgb2Rgi.m and Rgb2Ooo.m of the IJCV code.
 - The segmentation is Felzenszwalb's, with edges to eight neighbours; two segments are neighbours if pixels of them
   share a side: mexFelzenSegmentIndex.cpp of the IJCV code.
 - Neighbours are merged by texture and size: the paper, section 3.1.
 - Texture: eight orientations of Gaussian derivatives at sigma .8, in ten bins up to .43: Image2OrientedGradients.m,
   BlobStructTextureHist.m and Vector2Hist.m of the IJCV code. The diagonals are from a recursive filter, anigauss.c.
   Across and down are from a sampled kernel with zeros around the image: no source says so, but only this gives the
   same boxes.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

SIGMA, BINS, LARGEST = 0.8, 10, 0.43  # of the texture; a derivative in shares of 255 a pixel
UNIT = 2**20  # weights of filters are whole multiples of 1 / UNIT, so that sums are exact in any order


def planes(image: np.ndarray) -> np.ndarray:
    """The planes (12, H, W) uint8 of an image (H, W, 3) uint8 RGB: three each of RGB, HSV, rgI and opponent colours."""
    red, green, blue = (image[:, :, c] / 255.0 for c in range(3))
    grey = 0.298936021293775 * red + 0.587043074451121 * green + 0.114020904255103 * blue
    opponent = [  # a factor of all three goes where a plane is spread
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
    """Hue, saturation and value, each from 0 to 1."""
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
    """The plane from its least to its largest value onto 0 to 1."""
    least, largest = plane.min(), plane.max()
    return (plane - least) / (largest - least) if largest > least else np.zeros_like(plane)


def blur_kernel(sigma: float) -> np.ndarray:
    """Felzenszwalb's kernel of the blur before segmentation: a Gaussian up to four sigma."""
    far = math.ceil(4 * sigma)
    weights = np.array([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-far, far + 1)])
    return weights / weights.sum()


def texture(planes: np.ndarray) -> np.ndarray:
    """Bins (planes, 4, H, W) uint8 of derivatives: across, down, and along both diagonals.

    0 to 9 of negative ones, 10 to 19 of positive ones, the larger the further from 0; 20, of none.
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
        # Twice the derivatives across and down of the smooth plane; their sum and difference are twice sqrt(2) times
        # those along the diagonals.
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
    """The plane correlated with both kernels."""
    return cv2.sepFilter2D(plane.astype(np.float64), cv2.CV_64F, along_x, along_y, borderType=border)


def _recursive_gauss() -> np.ndarray:
    """What the recursive Gaussian of Young, van Vliet and van Ginkel (2002) makes of a single pixel, forth and back."""
    m0, m1, m2 = 1.1668, 1.10783, 1.40586
    q = -0.2568 + 0.5784 * SIGMA + 0.0561 * SIGMA**2
    norm, scale = m1**2 + m2**2, (m0 + q) * (m1**2 + m2**2 + 2 * m1 * q + q**2)
    b1 = q * (2 * m0 * m1 + norm + (2 * m0 + 4 * m1) * q + 3 * q**2) / scale
    b2, b3 = -(q**2) * (m0 + 2 * m1 + 3 * q) / scale, q**3 / scale
    forth = [m0 * norm / scale]
    for _ in range(8):  # less than a millionth follows
        one, two, three = [*forth[::-1], 0, 0][:3]
        forth.append(b1 * one + b2 * two + b3 * three)
    return np.correlate(forth, forth, "full")
