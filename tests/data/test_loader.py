"""Batches: padding, order, resumption, and nothing left to the number of workers."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from voc_folder import VocFolder

from fastrcnn.data import loader as module
from fastrcnn.data.annotations.splits import load
from fastrcnn.data.dataset import DetectionDataset, Example
from fastrcnn.data.images import read_image
from fastrcnn.data.loader import EndlessBatches, WorkerDiedError, collate, detection_loader, training_loader
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.structures import Batch, Sample, View

PATIENT = 30.0  # seconds


def sample(image_id: str, width: int, height: int) -> Sample:
    return Sample(
        image_id, Path(image_id), width, height, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    )


def test_pictures_are_padded_with_black_at_the_right_and_the_bottom() -> None:
    rng = np.random.default_rng(0)
    wide, high = (rng.integers(1, 256, (*size, 3), dtype=np.uint8) for size in ((4, 9), (7, 5)))
    one, none = np.array([[1, 2, 3, 4]], np.float32), np.zeros((0, 4), np.float32)
    batch = collate(
        [
            Example(wide, one, none, np.zeros(0, np.int64), 0.5, sample("wide", 18, 8), View(4, 100)),
            Example(high, none, one + 1, np.array([3]), 2.0, sample("high", 3, 4), View(5, 100)),
        ]
    )
    assert (batch.images.shape, batch.images.dtype) == ((2, 3, 7, 9), torch.uint8)
    np.testing.assert_array_equal(batch.images[0, :, :4, :9], wide.transpose(2, 0, 1))
    np.testing.assert_array_equal(batch.images[1, :, :7, :5], high.transpose(2, 0, 1))
    assert batch.images[0, :, 4:].sum() == 0
    assert batch.images[1, :, :, 5:].sum() == 0
    assert batch.sizes.tolist() == [[4, 9], [7, 5]]
    assert (batch.scales.tolist(), batch.scales.dtype) == ([0.5, 2.0], torch.float64)
    assert [p.tolist() for p in batch.proposals] == [[[1, 2, 3, 4]], []]
    assert [b.tolist() for b in batch.boxes] == [[], [[2, 3, 4, 5]]]
    assert [tuple(p.shape) for p in batch.proposals] == [(1, 4), (0, 4)]
    assert [x.tolist() for x in batch.labels] == [[], [3]]
    assert [s.image_id for s in batch.samples] == ["wide", "high"]


# ------------------------------------------------------------------------------------------ the order


def keys(length: int, batch_size: int, batches: int, seed: int = 0, start: int = 0) -> list[tuple[int, int]]:
    found = list(islice(EndlessBatches(length, batch_size, seed, start), batches))
    assert all(len(batch) == batch_size for batch in found)  # none is short
    return [key for batch in found for key in batch]


@pytest.mark.parametrize(("length", "batch_size"), [(10, 2), (10, 4), (7, 3), (3, 8), (1, 2)])
def test_every_picture_comes_once_an_epoch(length: int, batch_size: int) -> None:
    """Also where batches run on over the end of an epoch, and where one batch holds several epochs."""
    epochs = 12
    found = keys(length, batch_size, -(-length * epochs // batch_size))[: length * epochs]
    assert Counter(found) == {(epoch, index): 1 for epoch in range(epochs) for index in range(length)}
    assert [epoch for epoch, _ in found] == sorted(epoch for epoch, _ in found)


def test_the_order_is_another_in_every_epoch_and_for_every_seed() -> None:
    found = keys(30, 5, 60)
    epochs = [tuple(i for e, i in found if e == epoch) for epoch in range(10)]
    assert len(set(epochs)) == 10
    assert tuple(range(30)) not in epochs
    assert keys(30, 5, 6, seed=1) != found[:30]


def grouped(wide: list[bool], batch_size: int, batches: int, start: int = 0) -> list[list[tuple[int, int]]]:
    return list(islice(EndlessBatches(len(wide), batch_size, 1, start, wide=np.array(wide)), batches))


@pytest.mark.parametrize(("length", "batch_size"), [(50, 4), (23, 8), (10, 2), (3, 8), (1, 2)])
def test_pictures_of_like_aspect_come_together_and_each_once_an_epoch(length: int, batch_size: int) -> None:
    wide = [i % 3 > 0 for i in range(length)]
    epochs = 12
    found = grouped(wide, batch_size, -(-length * epochs // batch_size))
    used = [key for batch in found for key in batch][: length * epochs]
    assert Counter(used) == {(epoch, index): 1 for epoch in range(epochs) for index in range(length)}
    mixed = sum(len({wide[index] for _, index in batch}) > 1 for batch in found)
    # An epoch ends with less than a batch of either kind, the last of them together with what the next begins with.
    assert mixed <= 2 * epochs
    kinds = [wide[batch[0][1]] for batch in found[:10]]
    assert length < 50 or len(set(kinds)) == 2, "neither kind comes first"
    assert grouped(wide, batch_size, 5, start=7) == grouped(wide, batch_size, 12)[7:], "a run that goes on has the same"


def test_pictures_that_are_all_alike_come_in_the_order_that_they_would_come_in_anyway() -> None:
    for kind in (True, False):
        assert [k for batch in grouped([kind] * 13, 4, 30) for k in batch] == keys(13, 4, 30, seed=1)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 17])
def test_a_run_that_goes_on_sees_the_batches_it_would_have_seen(start: int) -> None:
    assert keys(7, 3, 10, seed=5, start=start) == keys(7, 3, 30, seed=5)[start * 3 : start * 3 + 30]


# ------------------------------------------------------------------------------------------ loaders


def nothing(image_id: str) -> np.ndarray:
    return np.array([[0, 0, 30, 30]], np.float32)


@pytest.fixture
def data(tiny: VocFolder) -> DetectionDataset:
    samples, _ = load(tiny.root, ["a", "b", "c"], ["cat", "dog"])
    return DetectionDataset(samples, nothing, Augmentation((48, 72), 100, colour=0.2), seed=11)


def seen(batches: list[Batch]) -> list[tuple[list[str], list[bytes]]]:
    """All that batches hold."""
    return [
        (
            [s.image_id for s in b.samples],
            [t.numpy().tobytes() for t in (b.images, b.sizes, b.scales, *b.proposals, *b.boxes, *b.labels)],
        )
        for b in batches
    ]


def test_the_number_of_workers_changes_nothing(data: DetectionDataset) -> None:
    alone = seen(list(islice(training_loader(data, 2), 7)))
    assert seen(list(islice(training_loader(data, 2, workers=2), 7))) == alone
    assert seen(list(islice(training_loader(data, 2, workers=1, start=3), 4))) == alone[3:]


def test_detection_takes_every_picture_once_in_order(data: DetectionDataset) -> None:
    def ids(batch_size: int) -> list[list[list[str]]]:
        """Of each pyramid, of each level, of each picture."""
        return [[[s.image_id for s in b.samples] for b in pyramid] for pyramid in detection_loader(data, batch_size)]

    sides = len(data.augmentation.short_sides)
    assert sides == 2
    assert ids(1) == [[["a"]] * sides, [["b"]] * sides, [["c"]] * sides]
    assert ids(2) == [[["a", "b"]] * sides, [["c"]] * sides]
    assert len(detection_loader(data, 2)) == 2
    loader = detection_loader(data)
    assert [seen(p) for p in loader] == [seen(p) for p in loader]  # a second time


def test_a_pyramid_has_the_picture_at_every_short_side_and_boxes_in_its_own_pixels(data: DetectionDataset) -> None:
    data.augmentation = Augmentation((24, 48, 96), 100)  # mirrors in training, and not here
    (pyramid, *_) = detection_loader(data)
    width, height = data.samples[0].width, data.samples[0].height
    image = read_image(data.samples[0].path)
    for batch, side in zip(pyramid, (24, 48, 96), strict=True):
        scale = min(side / min(width, height), 100 / max(width, height))
        expected = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0).numpy(), expected)
        assert batch.scales.tolist() == [scale]
        np.testing.assert_array_equal(batch.boxes[0].numpy(), data.samples[0].boxes)
        np.testing.assert_array_equal(batch.proposals[0].numpy(), data.proposal_boxes(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_making_and_using_loaders_leaves_the_global_random_numbers(data: DetectionDataset, workers: int) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]
    list(islice(training_loader(data, 2, workers), 2))
    list(detection_loader(data, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_one_clear_message_also_from_a_worker(data: DetectionDataset, workers: int) -> None:
    path = data.samples[1].path
    path.write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        list(detection_loader(data, workers=workers))
    assert str(error.value) == f"{path}: the file is not an image, or it is truncated."


def test_a_worker_whose_pipe_closes_before_it_has_ended_is_waited_for(
    data: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process closes its pipes first; on a busy machine it is there for seconds after that."""
    batches = iter(detection_loader(data, workers=1))
    next(batches)
    waited = []

    def broken(*_: object, **__: object) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    def end_late(sentinels: list[int], timeout: float) -> list[object]:
        waited.append(timeout)
        if timeout >= PATIENT:  # the process ends only after that moment
            for process in multiprocessing.active_children():
                process.kill()
        return wait(sentinels, timeout)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", broken)
    monkeypatch.setattr(module, "wait", end_late)
    with pytest.raises(WorkerDiedError, match="killed by SIGKILL"):
        next(batches)
    assert min(waited) >= PATIENT


def test_the_thread_that_pins_memory_ends_before_workers_are_killed(
    data: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait forever for the rest of a message of a killed worker. The thread is real, pinning does nothing."""
    for name, value in {
        "is_available": True,
        "current_accelerator": torch.device("cpu"),
        "set_device_index": None,
        "current_device_index": 0,
    }.items():
        monkeypatch.setattr(torch.accelerator, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: batch)
    others = set(threading.enumerate())

    def threads() -> int:  # without those that write to queues
        return len({t for t in threading.enumerate() if "Queue" not in t.name} - others)

    at_kill, kill = [], BaseProcess.kill

    def watched(process: BaseProcess) -> None:
        at_kill.append(threads())
        kill(process)

    monkeypatch.setattr(BaseProcess, "kill", watched)
    batches = iter(training_loader(data, 2, workers=2, pin_memory=True))
    next(batches)
    assert threads() == 1
    batches.close()
    assert at_kill == [0, 0]
