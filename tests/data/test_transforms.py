"""Scaling, mirroring and colours: boxes by hand, and painted boxes that must move with their pixels."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from fastrcnn.data.transforms import (
    Augmentation,
    boxes_in,
    flip_boxes,
    part_with_objects,
    resize,
    scale_for,
    seen_in,
    show,
)
from fastrcnn.structures import View


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [
        (500, 375, 600 / 375),  # the short side decides: 800 x 600
        (375, 500, 600 / 375),
        (500, 300, 2.0),  # both at once: 1000 x 600
        (500, 200, 1000 / 500),  # the long side decides: 1000 x 400
        (200, 500, 1000 / 500),
        (600, 600, 1.0),
        (2000, 1200, 0.5),
        (4000, 1200, 0.25),
    ],
)
def test_short_side_600_but_long_side_at_most_1000(width: int, height: int, scale: float) -> None:
    assert scale_for(width, height, 600, 1000) == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.6, 2.0, 0.3333])
def test_resize_is_bilinear_as_opencv_does_it(scale: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    expected = cv2.resize(image, None, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize(image, scale), expected)


def test_resize_by_one_leaves_the_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(image, 1.0), image)


def test_boxes_flip_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 5], [90, 2, 100, 3], [0, 0, 100, 50], [2.5, 1, 4, 8]], np.float32)
    expected = [[90, 0, 100, 5], [0, 2, 10, 3], [0, 0, 100, 50], [96, 1, 97.5, 8]]
    before = boxes.copy()
    np.testing.assert_array_equal(flip_boxes(boxes, 100), expected)
    np.testing.assert_array_equal(boxes, before)
    np.testing.assert_array_equal(flip_boxes(boxes[:2], 50, axis=1), [[0, 45, 10, 50], [90, 47, 100, 48]])
    assert flip_boxes(np.zeros((0, 4), np.float32), 100).shape == (0, 4)


BOXES = np.array([[3, 2, 9, 7], [0, 10, 40, 12], [39, 0, 40, 30], [20, 15, 33, 29]], np.float32)
WIDTH, HEIGHT = 40, 30


def painted() -> list[np.ndarray]:
    """For each of BOXES a black picture with this box in white."""
    pictures = []
    for x1, y1, x2, y2 in BOXES.astype(int):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[y1:y2, x1:x2] = 255
        pictures.append(image)
    return pictures


def extent(image: np.ndarray) -> tuple[int, int, int, int]:
    """The half-open box around the white pixels, which are a full rectangle."""
    ys, xs = np.nonzero(image[:, :, 0] > 127)
    box = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    assert (box[2] - box[0]) * (box[3] - box[1]) == len(xs)
    return box


PLAIN = Augmentation(short_sides=(30,), long_side=1000, flip=False)


def varied(
    augmentation: Augmentation, image: np.ndarray, boxes: list[np.ndarray], seed: int
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """The image, boxes and factor of the view that the seed draws."""
    objects = boxes[0] if boxes else np.zeros((0, 4))
    view = augmentation.view(np.random.default_rng(seed), objects, image.shape[1], image.shape[0])
    return shown(view, image, boxes)


def shown(view: View, image: np.ndarray, boxes: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray], float]:
    turned, scale = show(image, view)
    return turned, [boxes_in(view, b, image.shape[1], image.shape[0]) for b in boxes], scale


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("which", ["flip", "flip_vertical", "transpose", "all"])
def test_a_painted_box_moves_with_its_pixels(which: str, factor: int) -> None:
    switches = ("flip", "flip_vertical", "transpose") if which == "all" else (which,)
    augmentation = replace(PLAIN, short_sides=(30 * factor,), **dict.fromkeys(switches, True))
    seen = set()
    for seed in range(24):
        for box, picture in zip(BOXES, painted(), strict=True):
            image, (moved, same), scale = varied(augmentation, picture, [box[None], box[None]], seed)
            assert scale == factor
            if factor == 1:
                assert extent(image) == tuple(moved[0])
            else:  # the border of a scaled box is blurred by a pixel
                assert np.abs(np.subtract(extent(image), moved[0] * factor)).max() <= 1
            np.testing.assert_array_equal(moved, same)
            seen.add((*image.shape, *moved[0]))
    # Each of the ways was taken: 2, or 8 with all of them, for every box that is not its own mirror image.
    assert len({s for s in seen if s[0] * s[1] == WIDTH * HEIGHT * factor**2}) >= {1: 2, 3: 8}[len(switches)] * 2


def test_each_change_happens_half_of_the_time() -> None:
    for switch in ("flip", "flip_vertical", "transpose"):
        augmentation = replace(PLAIN, **{switch: True})
        box, picture = BOXES[:1], painted()[0]
        changed = sum(not np.array_equal(varied(augmentation, picture, [box], seed)[1][0], box) for seed in range(400))
        assert 150 <= changed <= 250  # five standard deviations about 200


def test_by_default_pictures_are_mirrored_and_nothing_else() -> None:
    """The paper's training: 600 pixels, at most 1000, and a mirror image."""
    assert Augmentation() == Augmentation((600,), 1000, True, False, False, 0.0)


def test_with_everything_off_the_picture_is_only_scaled() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for seed in range(10):
        image, (boxes,), scale = varied(PLAIN, picture, [BOXES], seed)
        np.testing.assert_array_equal(image, picture)
        np.testing.assert_array_equal(boxes, BOXES)
        assert (scale, boxes.dtype) == (1.0, np.float32)
    image, (boxes,), scale = varied(replace(PLAIN, short_sides=(45,)), picture, [BOXES], 0)
    np.testing.assert_array_equal(image, cv2.resize(picture, (60, 45), interpolation=cv2.INTER_LINEAR))
    np.testing.assert_array_equal(boxes, BOXES)
    assert scale == 1.5


def test_one_of_the_short_sides_is_drawn_each_as_often() -> None:
    augmentation = replace(PLAIN, short_sides=(15, 30, 60))
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    scales = [varied(augmentation, picture, [], seed)[2] for seed in range(300)]
    counts = {s: scales.count(s) for s in (0.5, 1.0, 2.0)}
    assert sum(counts.values()) == 300
    assert min(counts.values()) > 60


def test_the_long_side_bounds_the_scaled_picture() -> None:
    image, _, scale = varied(replace(PLAIN, short_sides=(300,), long_side=80), painted()[0], [], 0)
    assert (image.shape, scale) == ((60, 80, 3), 2.0)


EVERYTHING = Augmentation((20, 30), 1000, True, True, True, 0.3)


def test_the_generator_decides_everything() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    before = picture.copy()
    for seed in range(20):
        a, (boxes_a,), scale_a = varied(EVERYTHING, picture, [BOXES], seed)
        b, (boxes_b,), scale_b = varied(EVERYTHING, picture, [BOXES], seed)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(boxes_a, boxes_b)
        assert scale_a == scale_b
    np.testing.assert_array_equal(picture, before)


def test_switching_one_thing_off_leaves_the_others_as_they_were() -> None:
    """Where neither is mirrored, the pictures with and without `flip` agree in turning, size and colours."""
    picture = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    equal = seen = 0
    for seed in range(40):
        a, _, _ = varied(EVERYTHING, picture, [BOXES], seed)
        b, _, _ = varied(replace(EVERYTHING, flip=False), picture, [BOXES], seed)
        assert a.shape == b.shape
        if min(a.shape[:2]) == 30:  # not scaled, so the mirror image is exact
            same, mirrored = np.array_equal(a, b), np.array_equal(a[:, ::-1], b)
            assert same or mirrored
            equal += same - mirrored
            seen += 1
    assert 10 <= seen <= 30
    assert abs(equal) < seen


def test_colours_stay_without_colour_and_vary_within_the_share() -> None:
    """At 0.3 a middle gray (128) moves by brightness alone: at most .3 x 255; each channel on its own."""
    gray = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    lights = []
    for seed in range(60):
        image, _, _ = varied(replace(PLAIN, colour=0.3), gray, [], seed)
        assert (image == image[0, 0]).all()
        lights.append(image[0, 0].astype(int) - 128)
    shifts = np.array(lights)
    assert np.abs(shifts).max() <= round(0.3 * 255) + 1
    assert np.abs(shifts).max() > 60
    assert (shifts[:, 0] != shifts[:, 1]).mean() > 0.9
    assert abs(shifts.mean()) < 15


def test_contrast_is_a_straight_line_cut_off_at_black_and_white() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(2, axis=0)
    lines = []
    for seed in range(40):
        image, _, _ = varied(Augmentation((2,), 10_000, flip=False, colour=0.5), ramp, [], seed)
        for channel in range(3):
            curve = image[0, :, channel].astype(float)
            inner = np.flatnonzero((curve > 0) & (curve < 255))
            gain, light = np.polyfit(inner, curve[inner], 1)
            assert 0.49 <= gain <= 1.51
            expected = np.clip(gain * np.arange(256) + light, 0, 255)
            assert np.abs(curve - expected).max() <= 1
            lines.append((gain, gain * 128 + light))
    # Contrast turns about the middle gray: how bright that becomes has nothing to do with the gain.
    assert abs(np.corrcoef(np.array(lines).T)[0, 1]) < 0.35
    assert np.ptp(lines, axis=0)[1] > 100


def test_mirrored_is_the_mirror_image_scaled_as_the_picture_is() -> None:
    """Every painted box lies where its pixels are white, at twice the size, whatever is drawn."""
    plain = Augmentation((2 * HEIGHT,), 1000, flip=False)
    mirrored = replace(plain, mirrored=True)
    for image, box in zip(painted(), BOXES, strict=True):
        pixels, (boxes,), scale = shown(mirrored.levels()[0], image, [box[None]])
        expected = [[WIDTH - box[2], box[1], WIDTH - box[0], box[3]]]
        np.testing.assert_array_equal(boxes, expected)
        assert scale == 2
        np.testing.assert_array_equal(pixels, varied(plain, image[:, ::-1].copy(), [], 1)[0])
        np.testing.assert_array_equal(varied(plain, image, [box[None]], 0)[1][0], box[None])


def test_a_part_is_shown_with_its_boxes() -> None:
    """Columns 10 to 50 and rows 5 to 25 of an image of 60 x 30, mirrored, at twice the size."""
    image = np.zeros((30, 60, 3), np.uint8)
    image[10:20, 15:25] = 255
    view = View(40, 1000, mirrored=True, part=(10, 5, 50, 25))
    boxes = np.array([[15, 10, 25, 20], [0, 0, 60, 30]], np.float32)
    seen, (moved,), scale = shown(view, image, [boxes])
    assert (seen.shape, scale) == ((40, 80, 3), 2.0)
    np.testing.assert_array_equal(moved, [[25, 5, 35, 15], [0, 0, 40, 20]])  # 40 - (25 - 10), 40 - (15 - 10)
    assert extent(seen) == (50, 10, 70, 30)


def test_boxes_of_which_less_than_half_is_shown_are_left_out() -> None:
    boxes = np.array([[0, 0, 20, 10], [5, 0, 15, 10], [1, 0, 21, 10], [30, 0, 40, 10]], np.float32)
    assert seen_in(View(40, 1000, part=(10, 0, 30, 10)), boxes).tolist() == [True, True, True, False]
    assert seen_in(View(40, 1000, part=(11, 0, 30, 10)), boxes).tolist() == [False, False, True, False]
    assert seen_in(View(40, 1000), boxes).all()


def test_a_part_has_an_object_and_cuts_none() -> None:
    rng = np.random.default_rng(0)
    cropped = 0
    for _ in range(500):
        width, height = (int(v) for v in rng.integers(20, 200, 2))
        corners = rng.uniform(0, 1, (int(rng.integers(1, 6)), 2, 2)) * (width, height)
        boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
        part = part_with_objects(boxes, width, height, rng.random(5))
        if part is None:
            continue
        cropped += 1
        x1, y1, x2, y2 = part
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert (x2 - x1 >= width / 2 - 1) and (y2 - y1 >= height / 2 - 1)  # noqa: PT018
        inside = (boxes[:, :2] >= (x1, y1)).all(axis=1) & (boxes[:, 2:] <= (x2, y2)).all(axis=1)
        overlap = np.minimum(boxes[:, 2:], (x2, y2)) - np.maximum(boxes[:, :2], (x1, y1))
        assert inside.any()
        assert (inside | (overlap < 1).any(axis=1)).all()
    assert cropped > 200


def test_the_part_is_where_its_numbers_say() -> None:
    """One object, 10 to 20 of 100: a part of half the side begins between 0 and 10, one of .75 there too."""
    box = np.array([[10.0, 10.0, 20.0, 20.0]])
    assert part_with_objects(box, 100, 100, np.array([0, 0, 0, 0, 0])) == (0, 0, 50, 50)
    assert part_with_objects(box, 100, 100, np.array([0, 0.5, 0, 1, 1])) == (10, 10, 85, 60)
    assert part_with_objects(box, 100, 100, np.array([0, 1, 1, 0.5, 0.5])) is None
    assert part_with_objects(np.zeros((0, 4)), 100, 100, np.zeros(5)) is None
