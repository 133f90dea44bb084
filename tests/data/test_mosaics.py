"""Mosaics of training images: where their objects and proposals are, compared with their pixels."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.frames import read_sample
from fastrcnn.data.mosaics import GREY, mosaics
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.structures import Sample
from fastrcnn.training.maps import MapFiles

COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20), (250, 20, 250)]
SIZES = [(200, 100), (120, 180), (150, 150), (300, 90), (240, 160)]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Five white images of several shapes. Each has one object, which is a rectangle of its own colour."""
    found = []
    for n, (colour, (width, height)) in enumerate(zip(COLOURS, SIZES, strict=True)):
        image = np.full((height, width, 3), 255, np.uint8)
        box = np.array([width // 4, height // 3, width // 4 + width // 3, height // 3 + height // 2])
        image[box[1] : box[3], box[0] : box[2]] = colour
        path = tmp_path / f"{n}.png"
        Image.fromarray(image).save(path)
        found.append(Sample(str(n), path, width, height, box[None] * 1.0, np.array([n + 1]), np.array([n == 3])))
    return found


@pytest.fixture
def data(samples: list[Sample]) -> DetectionDataset:
    nothing = np.zeros((0, 4), np.float32)
    images = [*samples, *mosaics(samples, 40)]
    return DetectionDataset(images, lambda _: nothing, Augmentation((90,), 300, flip=False))


def inside(shape: tuple[int, ...], box: np.ndarray, margin: int) -> np.ndarray:
    """The pixels in a box that is larger by a margin on each side."""
    x1, y1, x2, y2 = (int(v) for v in box.round())
    found = np.zeros(shape[:2], bool)
    found[max(0, y1 - margin) : max(0, y2 + margin), max(0, x1 - margin) : max(0, x2 + margin)] = True
    return found


def test_boxes_of_mosaics_are_around_their_objects(data: DetectionDataset) -> None:
    """Each box contains its object's colour, and nothing else in the mosaic has this colour."""
    corners = set()
    assert len(data) == 5 + 40
    for index in range(5, 45):
        sample, image = data.samples[index], data.picture(index)
        assert image.shape == (sample.height, sample.width, 3)
        assert len(sample.tiles) == len(sample.boxes) == len(sample.labels) == 4
        np.testing.assert_array_equal(sample.difficult, sample.labels == 4)
        for label in set(sample.labels.tolist()):
            at = np.abs(image.astype(int) - COLOURS[label - 1]).max(axis=2) < 40
            around = np.zeros_like(at)
            for box in sample.boxes[sample.labels == label]:
                inner = inside(at.shape, box, -2)
                assert inner.any()
                assert at[inner].all(), "the box is not on the object"
                around |= inside(at.shape, box, 2)
                corners.add((box[0] + box[2] > sample.width, box[1] + box[3] > sample.height))
            assert not at[~around].any(), "a part of the object is outside of its box"
    assert len(corners) == 4, "objects in every corner"


def test_images_in_a_mosaic_keep_their_shape_and_touch_its_centre(data: DetectionDataset) -> None:
    for index in range(5, 45):
        sample, image = data.samples[index], data.picture(index)
        covered = np.zeros(image.shape[:2], int)
        for tile in sample.tiles:
            x1, y1, x2, y2 = tile.box
            assert 0 <= x1 < x2 <= sample.width
            assert 0 <= y1 < y2 <= sample.height
            covered[y1:y2, x1:x2] += 1
            scale = (x2 - x1) / tile.sample.width
            assert abs(scale * tile.sample.height - (y2 - y1)) <= 0.5 + 0.5 * tile.sample.height / tile.sample.width
        assert covered.max() == 1, "two images overlap"
        assert (image[covered == 0] == GREY).all()
        meeting = [set(tile.box[::2]) for tile in sample.tiles], [set(tile.box[1::2]) for tile in sample.tiles]
        x, y = (set.intersection(*edges).pop() for edges in meeting)
        assert 0.39 * sample.width <= x <= 0.61 * sample.width
        assert 0.39 * sample.height <= y <= 0.61 * sample.height


def test_a_mosaic_is_scaled_and_flipped_as_an_image(data: DetectionDataset) -> None:
    plain, flipped = data[(0, 7)], replace(data, augmentation=replace(data.augmentation, mirrored=True))
    view = flipped.augmentation.levels()[0]
    other = flipped.examples(7, [view])[0]
    assert min(plain.image.shape[:2]) == 90
    np.testing.assert_array_equal(other.image, plain.image[:, ::-1])
    width = data.samples[7].width
    np.testing.assert_allclose(other.boxes[:, [0, 2]], width - plain.boxes[:, [2, 0]], atol=1e-4)
    np.testing.assert_array_equal(plain.boxes, data.samples[7].training_boxes)


def test_the_same_images_give_the_same_mosaics_and_others_other_ones(samples: list[Sample]) -> None:
    one, again = mosaics(samples, 5), mosaics(samples, 5)
    assert [s.tiles for s in one] == [s.tiles for s in again]
    assert {s.tiles[0].sample.image_id for s in one} == set("01234"), "each image is once the first"
    assert [s.image_id for s in one] == [s.image_id for s in mosaics(samples, 7)][:5]
    assert len({s.image_id for s in mosaics(samples, 40)}) == 40
    assert pickle.loads(pickle.dumps(one[0])).tiles[0].box == one[0].tiles[0].box
    assert mosaics(samples, 0) == []


def test_of_images_that_are_small_narrow_or_few(tmp_path: Path) -> None:
    none = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)
    for width, height in [(1, 1), (2, 1), (1, 400), (3, 2), (900, 2)]:
        path = tmp_path / f"{width}-{height}.png"
        Image.fromarray(np.full((height, width, 3), 9, np.uint8)).save(path)
        for mosaic in mosaics([Sample("a", path, width, height, *none)], 10):
            assert mosaic.boxes.shape == (0, 4)
            image = read_sample(mosaic)
            assert image.shape == (mosaic.height, mosaic.width, 3) == (max(2, height), max(2, width), 3)
            for x1, y1, x2, y2 in (tile.box for tile in mosaic.tiles):
                assert 0 <= x1 < x2 <= mosaic.width
                assert 0 <= y1 < y2 <= mosaic.height
                assert (image[y1:y2, x1:x2] == 9).all()


def test_an_image_of_a_mosaic_that_cannot_be_read_is_named(data: DetectionDataset) -> None:
    last = data.samples[9].tiles[-1].sample.path
    last.write_bytes(b"no image")
    with pytest.raises(UserError, match=last.name):
        data.picture(9)


def test_feature_maps_of_a_mosaic_are_not_those_of_its_images_before_a_change(
    samples: list[Sample], tmp_path: Path
) -> None:
    mosaic, view = mosaics(samples, 1)[0], Augmentation((90,), 300).levels()[0]
    files = MapFiles(tmp_path)
    before = files.path(mosaic, view)
    assert before not in (files.path(mosaic.tiles[0].sample, view), files.path(mosaics(samples, 2)[1], view))
    assert before == files.path(mosaics(samples, 2)[0], view)
    for tile in {tile.sample.image_id: tile for tile in mosaic.tiles}.values():
        content = tile.sample.path.read_bytes()
        tile.sample.path.write_bytes(content + b" ")
        assert files.path(mosaic, view) != before
        before = files.path(mosaic, view)
