"""Selective search with the rules of its ICCV 2011 code: the boxes that its authors distribute, and each rule alone."""

from __future__ import annotations

import colorsys
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import plain_search
import pytest
from scipy.io import loadmat

from fastrcnn.config.compose import compose
from fastrcnn.data.frames import without_objects
from fastrcnn.data.images import read_image
from fastrcnn.errors import UserError
from fastrcnn.proposals import iccv2011, kernel
from fastrcnn.proposals.generate import propose_all
from fastrcnn.proposals.selective_search import propose
from fastrcnn.settings import SelectiveSearchSettings

SETTINGS: SelectiveSearchSettings = compose("propose", ["data=voc07_iccv2011"]).data.selective_search

needs_kernel = pytest.mark.skipif(kernel.library() is None, reason="the kernel was not built")


def noise(*shape: int, levels: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, levels, shape).astype(np.uint8)


@needs_kernel
@pytest.mark.parametrize("level", kernel.LEVELS)
@pytest.mark.parametrize(("image_id", "number"), [("000004", 2888), ("001551", 2057)])
def test_the_boxes_are_those_that_the_authors_distribute(
    test_data: Path, image_id: str, number: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel.LEVELS.index(level) > kernel.level():
        pytest.skip(f"this processor has no {level}")
    monkeypatch.setenv("FASTRCNN_SEARCH_LEVEL", level)
    theirs = loadmat(test_data / "selective_search" / f"{image_id}_boxes.mat")["boxes"].astype(int)
    theirs[:, 2:] += 1
    image = read_image(test_data / "VOCdevkit" / "VOC2007" / "JPEGImages" / f"{image_id}.jpg")
    ours = propose(image, SETTINGS)
    assert len(theirs) == number
    assert sorted(ours.tolist()) == sorted(theirs.tolist())


def segments(planes: np.ndarray, k: list[float], min_size: list[int]) -> np.ndarray:
    """The first segments (k, H, W) of one colour image, without a blur."""
    labels = np.empty((1, len(k), *planes.shape[1:]), np.int32)
    texture = np.zeros((len(planes), 4, *planes.shape[1:]), np.uint8)
    channels = [list(range(len(planes)))]
    kernel.search(planes, channels, k, np.ones(1), min_size, [kernel.SIZE], labels, texture)
    return labels[0]


@needs_kernel
@pytest.mark.parametrize("shape", [(3, 17, 23), (1, 1, 9), (1, 9, 1), (2, 2, 2), (3, 1, 1)])
def test_segments_are_those_of_a_plain_reference_with_eight_neighbours(shape: tuple[int, ...]) -> None:
    """Few levels: many edges weigh the same."""
    planes = noise(*shape, levels=8)
    k, min_size = [3.0, 30.0, 9.0], [1, 4, 12]
    for found, *how in zip(segments(planes, k, min_size), k, min_size, strict=True):
        np.testing.assert_array_equal(found, plain_search.segment(planes.astype(np.float32), *how, steps=4))


@needs_kernel
def test_each_k_has_its_own_smallest_segment() -> None:
    found = segments(noise(3, 60, 80), [50, 50, 50], [5, 200, 40])
    smallest = [np.bincount(labels.ravel()).min() for labels in found]
    assert 5 <= smallest[0] < 40 <= smallest[2] < 200 <= smallest[1]


@needs_kernel
@pytest.mark.parametrize("mode", ["fast", "iccv2011"])
def test_a_smallest_segment_of_0_is_k(mode: str) -> None:
    image, settings = noise(60, 80, 3), replace(SETTINGS, mode=mode, k=[60.0])
    boxes = propose(image, settings)
    np.testing.assert_array_equal(boxes, propose(image, replace(settings, min_size=60)))
    assert len(propose(image, replace(settings, min_size=10))) > len(boxes)


@needs_kernel
def test_what_is_set_by_hand_is_what_is_used() -> None:
    given = ["selective_search.k=[300]", "selective_search.min_size=70", "selective_search.max_boxes=40"]
    settings = compose("propose", ["data=voc07_iccv2011", *(f"data.{key}" for key in given)]).data.selective_search
    assert settings == replace(SETTINGS, k=[300.0], min_size=70, max_boxes=40)
    image = noise(120, 160, 3) // 4
    assert len(propose(image, settings)) <= 40 < len(propose(image, SETTINGS))
    for other in ({"side": 80}, {"sigma": 1.6}, {"k": [300.0]}, {"min_size": 300}, {"near": 0.5}, {"min_side": 30.0}):
        changed = propose(image, replace(SETTINGS, **other))
        assert sorted(changed.tolist()) != sorted(propose(image, SETTINGS).tolist()), other


@needs_kernel
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (7, 500)])
def test_odd_shapes_and_plain_images_do_no_harm(shape: tuple[int, int]) -> None:
    for image in (noise(*shape, 3), np.full((*shape, 3), 9, np.uint8), np.zeros((*shape, 3), np.uint8)):
        boxes = propose(image, SETTINGS)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= [shape[1], shape[0]]).all()
        assert [0, 0, shape[1], shape[0]] in boxes.tolist()


def test_without_the_kernel_the_mode_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "library", lambda: None)
    with pytest.raises(UserError, match=r"mode=iccv2011 needs the C\+\+ kernel.*set data.selective_search.mode=fast"):
        propose_all([without_objects("a", tmp_path / "missing.png")], tmp_path / "s.proposals", SETTINGS)
    with pytest.raises(UserError, match="mode=iccv2011 needs"):
        propose(noise(9, 9, 3), SETTINGS)


def test_colour_spaces() -> None:
    """HSV as Python has it; the others by hand, where some pixels settle their range."""
    image = noise(20, 30, 3)
    image[0, :4] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 0, 255]]
    image[1, :3] = [[0, 0, 0], [255, 255, 255], [80, 80, 80]]
    planes = iccv2011.planes(image)
    assert planes.shape == (12, 20, 30)
    np.testing.assert_array_equal(planes[:3], image.transpose(2, 0, 1))
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in (image.reshape(-1, 3) / 255).tolist()]
    expected = np.floor(np.array(hsv) * 255 + 0.5).T.reshape(3, 20, 30)
    np.testing.assert_array_equal(planes[3:6], expected)
    assert planes[6:9, 0, :3].T.tolist() == [[255, 0, 76], [0, 255, 150], [0, 0, 29]]  # rgI: .2989, .5870, .1140
    assert planes[6:9, 1, :3].T.tolist() == [[85, 85, 0], [85, 85, 255], [85, 85, 80]]
    assert planes[9, 1, :2].tolist() == [0, 255]  # the first opponent colour is brightness
    assert planes[10, 0, 2] == 0  # the second is least in blue
    assert planes[11, 0, 1] == 0  # the third is least in green
    assert planes[11, 0, 3] == 255  # and largest in magenta
    assert planes[11, 0, 0] == 235  # (.000846833 + .00173932) / (.000846833 + .00173932 + .000221515) of 255


def test_texture_is_that_of_a_plain_reference() -> None:
    """The diagonals' recursive filter run forth and back over a border of 30 pixels, in place of its kernel."""
    plane = noise(19, 26)
    height, width = plane.shape
    sigma = 0.8
    g = np.array([math.exp(-(i**2) / (2 * sigma**2)) for i in range(-3, 4)])
    g /= g.sum()
    slope = g * np.arange(-3, 4) / sigma**2
    dark = np.pad(plane / 255, 3)
    across, down = np.zeros(plane.shape), np.zeros(plane.shape)
    for y, x in itertools.product(range(height), range(width)):
        around = dark[y : y + 7, x : x + 7]
        across[y, x], down[y, x] = g @ around @ slope, slope @ around @ g
    smooth = recursive(recursive(np.pad(plane / 255, 30, mode="edge")).T).T[30:-30, 30:-30]
    smooth = np.pad(smooth, 1, mode="edge")
    right, below = (smooth[1:-1, 2:] - smooth[1:-1, :-2]) / 2, (smooth[2:, 1:-1] - smooth[:-2, 1:-1]) / 2
    expected = []
    for derivative in (across, down, (right + below) / 2**0.5, (right - below) / 2**0.5):
        index = np.minimum(np.abs(derivative) / 0.043, 9).astype(int)
        expected.append(index + np.where(derivative > 0, 10, 0))
    np.testing.assert_array_equal(iccv2011.texture(plane[None])[0], expected)
    assert np.ptp(expected) > 12
    assert (iccv2011.texture(np.full((1, 9, 9), 7, np.uint8))[0, :, 4:5, 4:5] == 20).all()


def recursive(rows: np.ndarray) -> np.ndarray:
    """The filter of Young, van Vliet and van Ginkel (2002) along rows, by its poles."""
    sigma = 0.8
    q = -0.2568 + 0.5784 * sigma + 0.0561 * sigma**2
    poles = np.array([1.1668, 1.10783 + 1.40586j, 1.10783 - 1.40586j])
    roots = q / (q + poles)  # of the denominator in z, as s + pole / q becomes 1 - root / z
    b = -np.poly(roots).real[1:]
    for _ in range(2):
        out = np.zeros_like(rows)
        for x in range(rows.shape[1]):
            out[:, x] = (1 - b.sum()) * rows[:, x] + sum(b[i] * out[:, x - 1 - i] for i in range(3) if x > i)
        rows = out[:, ::-1]
    return rows
