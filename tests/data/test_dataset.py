"""A data set's pictures: what is checked, what is random, and that only the seed decides it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from voc_folder import VocFolder

from fastrcnn.data.annotations.splits import load
from fastrcnn.data.dataset import DetectionDataset, to_tensor
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError

PROPOSALS = np.array([[0, 0, 20, 20], [10, 5, 60, 40], [30, 30, 64, 48]], np.float32)
PLAIN = Augmentation((96,), 1000, flip=False)


def boxes_of(image_id: str) -> np.ndarray:
    return PROPOSALS


def dataset(tiny: VocFolder, augmentation: Augmentation = PLAIN, **options: int) -> DetectionDataset:
    samples, _ = load(tiny.root, ["a", "b", "c"], ["cat", "dog"])
    return DetectionDataset(samples, boxes_of, augmentation, **options)


def test_a_picture_comes_scaled_and_its_boxes_do_not(tiny: VocFolder) -> None:
    """64 x 48 pixels to a short side of 96: the picture is twice as large."""
    data = dataset(tiny)
    assert len(data) == 3
    example = data[(0, 0)]
    assert (example.image.shape, example.scale) == ((96, 128, 3), 2.0)
    np.testing.assert_array_equal(example.boxes, [[0, 0, 32, 24], [32, 9, 64, 48]])
    np.testing.assert_array_equal(example.proposals, PROPOSALS)
    assert example.labels.tolist() == [1, 2]
    assert example.sample is data.samples[0]


def test_a_part_of_an_image_has_its_objects_alone(tiny: VocFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right half of 64 x 48 has the second object alone."""
    from fastrcnn.data import transforms

    monkeypatch.setattr(transforms, "part_with_objects", lambda *_: (32, 0, 64, 48))
    example = dataset(tiny, Augmentation((96,), 1000, flip=False, crop=1.0))[(0, 0)]
    assert (example.image.shape, example.scale) == ((288 // 2, 96, 3), 3.0)
    np.testing.assert_array_equal(example.boxes, [[0, 9, 32, 48]])
    assert example.labels.tolist() == [2]


def test_truth_and_proposals_come_unscaled_without_the_picture(tiny: VocFolder) -> None:
    data = dataset(tiny)
    data.samples[0].path.unlink()
    proposals, boxes, labels = data.truth_and_proposals(0)
    np.testing.assert_array_equal(proposals, PROPOSALS)
    np.testing.assert_array_equal(boxes, [[0, 0, 32, 24], [32, 9, 64, 48]])
    assert labels.tolist() == [1, 2]


def test_the_best_proposals_are_used(tiny: VocFolder) -> None:
    data = dataset(tiny, max_proposals=2)
    np.testing.assert_array_equal(data[(0, 0)].proposals, PROPOSALS[:2])
    np.testing.assert_array_equal(data.truth_and_proposals(0)[0], PROPOSALS[:2])
    assert len(dataset(tiny)[(0, 0)].proposals) == 3


def test_boxes_are_copied_from_read_only_arrays() -> None:
    locked = PROPOSALS.copy()
    locked.flags.writeable = False
    tensor = to_tensor(locked)
    tensor += 1
    assert tensor.dtype == torch.float32
    assert locked[0, 0] == 0
    assert to_tensor(np.zeros(0, np.float32)).shape == (0, 4)


def test_a_size_other_than_the_annotations_is_an_error_that_names_both(tiny: VocFolder) -> None:
    data = dataset(tiny)
    tiny.picture("a", size=(64, 47))
    with pytest.raises(
        UserError, match=r"a\.jpg: the image has 64 x 47 pixels, but its annotation has size 64 x 48\. Fix"
    ):
        data[(0, 0)]
    tiny.picture("a", size=(48, 64))
    with pytest.raises(
        UserError, match=r"48 x 64 pixels, but its annotation has size 64 x 48\. .* swapped, but .* no EXIF"
    ):
        data[(0, 0)]


def test_an_unreadable_picture_is_an_error_with_its_name(tiny: VocFolder) -> None:
    data = dataset(tiny)
    path = data.samples[1].path
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"b\.jpg: the image cannot be decoded"):
        data[(0, 1)]


VARIED = Augmentation((48, 60, 72), 1000, flip=True, flip_vertical=True, colour=0.2)


def looks(data: DetectionDataset, epoch: int, index: int) -> bytes:
    example = data[(epoch, index)]
    return example.image.tobytes() + example.boxes.tobytes() + example.proposals.tobytes()


def test_seed_epoch_and_index_alone_decide_what_is_random(tiny: VocFolder) -> None:
    first = dataset(tiny, VARIED, seed=3)
    keys = [(epoch, index) for epoch in range(4) for index in range(3)]
    forwards = [looks(first, *key) for key in keys]
    np.random.seed(7)
    torch.manual_seed(7)
    again = pickle.loads(pickle.dumps(dataset(tiny, VARIED, seed=3)))  # as a worker gets it
    assert [looks(again, *key) for key in reversed(keys)] == forwards[::-1]


def test_seed_epoch_and_index_each_change_what_is_random(tiny: VocFolder) -> None:
    tiny.root.joinpath("JPEGImages/b.jpg").write_bytes(tiny.root.joinpath("JPEGImages/a.jpg").read_bytes())
    data = dataset(tiny, VARIED, seed=3)
    assert len({data[(epoch, 0)].image.tobytes() for epoch in range(8)}) == 8
    assert len({dataset(tiny, VARIED, seed=seed)[(0, 0)].image.tobytes() for seed in range(8)}) == 8
    assert data[(0, 0)].image.tobytes() != data[(0, 1)].image.tobytes()  # the same picture under another index


def test_a_gray_picture_is_used_as_rgb(tiny: VocFolder, tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)
    (tiny.root / "JPEGImages/a.jpg").unlink()
    Image.fromarray(gray).save(tiny.root / "JPEGImages/a.png")
    image = dataset(tiny, Augmentation((48,), 1000, flip=False))[(0, 0)].image
    np.testing.assert_array_equal(image, np.repeat(gray[:, :, None], 3, axis=2))
