"""The reading of a proposal file that fits is found; what the data do not tell is not claimed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fastrcnn.proposals.fit import SHARES, Outcome, Reading, find_fit
from fastrcnn.proposals.formats.conventions import CONVENTIONS
from fastrcnn.structures import Sample

OWN = CONVENTIONS["xyxy-0-inclusive"]
Numbers = list[np.ndarray]
Mutation = Callable[[Numbers, list[Sample]], Numbers]


def sample(image_id: str, width: int, height: int, truth: np.ndarray) -> Sample:
    count = len(truth)
    nothing = np.zeros(count, bool)
    return Sample(
        image_id, Path(f"{image_id}.jpg"), width, height, truth.astype(np.float32), np.ones(count, int), nothing
    )


def made(
    count: int = 40, size: tuple[int, int] | None = None, boxes: int = 60, margin: int = 0
) -> tuple[list[Sample], Numbers]:
    """Images with two objects each, and proposals as half-open integers: some near the objects, others anywhere, of
    which those at `margin` 0 reach every side now and then."""
    rng = np.random.default_rng(7)
    samples, proposals = [], []
    for n in range(count):
        width, height = size or (int(rng.integers(150, 400)), int(rng.integers(120, 350)))
        limit = np.array([width, height, width, height])
        corner = rng.uniform(0.1, 0.5, (2, 2)) * (width, height)
        truth = np.rint(np.hstack([corner, corner + rng.uniform(0.15, 0.4, (2, 2)) * (width, height)]))
        near = np.repeat(truth, 5, axis=0) + np.rint(rng.normal(0, 0.02 * min(width, height), (10, 4)))
        ends = np.sort(rng.uniform(-0.2, 1.2, (boxes - 10, 2, 2)), axis=1).reshape(-1, 4) * limit
        found = np.clip(np.rint(np.vstack([near, ends])), margin, limit - margin)
        samples.append(sample(f"{n:03d}", width, height, truth))
        proposals.append(found[(found[:, 2] - found[:, 0] > 8) & (found[:, 3] - found[:, 1] > 8)])
    return samples, proposals


def fit(samples: list[Sample], numbers: Sequence[np.ndarray], own: str = str(OWN)) -> Outcome:
    return find_fit(numbers, CONVENTIONS[own], samples)


def inclusive(numbers: Numbers) -> Numbers:
    return [b - [0, 0, 1, 1] for b in numbers]


def resized(numbers: Numbers, samples: list[Sample]) -> Numbers:
    """As boxes found in pictures scaled to short side 600, long side at most 1000; inclusive."""
    out = []
    for b, s in zip(numbers, samples, strict=True):
        factor = min(600 / min(s.width, s.height), 1000 / max(s.width, s.height))
        out.append(np.rint(b * factor) - [0, 0, 1, 1])
    return out


MUTATIONS: dict[str, tuple[Mutation, Reading]] = {
    "none": (lambda b, s: inclusive(b), Reading(OWN)),
    "order yxyx": (lambda b, s: [x[:, [1, 0, 3, 2]] for x in inclusive(b)], Reading(CONVENTIONS["yxyx-0-inclusive"])),
    "order xxyy": (lambda b, s: [x[:, [0, 2, 1, 3]] for x in inclusive(b)], Reading(CONVENTIONS["xxyy-0-inclusive"])),
    "one-based": (lambda b, s: [x + 1 for x in inclusive(b)], Reading(CONVENTIONS["xyxy-1-inclusive"])),
    "half-open": (lambda b, s: b, Reading(CONVENTIONS["xyxy-0-halfopen"])),
    "width, height": (lambda b, s: [np.c_[x[:, :2], x[:, 2:] - x[:, :2]] for x in b], Reading(CONVENTIONS["xywh-0"])),
    "scaled": (resized, Reading(OWN, "short side 600")),
    "halved": (lambda b, s: [np.rint(x / 2) - [0, 0, 1, 1] for x in b], Reading(OWN, "times 0.5")),
    "shares": (
        lambda b, s: [x / [i.width, i.height, i.width, i.height] for x, i in zip(b, s, strict=True)],
        Reading(CONVENTIONS["xyxy-0-halfopen"], SHARES),
    ),
    "the author's": (
        lambda b, s: [x[:, [1, 0, 3, 2]] + [1, 1, 0, 0] for x in b],
        Reading(CONVENTIONS["yxyx-1-inclusive"]),
    ),
    "edge boxes": (
        lambda b, s: [np.c_[x[:, :2] + 1, x[:, 2:] - x[:, :2]] for x in b],
        Reading(CONVENTIONS["xywh-1"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", [None, (240, 240)], ids=["sizes differ", "one square size"])
@pytest.mark.parametrize("name", MUTATIONS)
def test_one_good_file_mutated_is_named_as_what_it_is(name: str, size: tuple[int, int] | None) -> None:
    """On images of one square size neither borders nor scale tell orders and ids: the overlap has to."""
    samples, boxes = made(size=size)
    mutate, expected = MUTATIONS[name]
    found = fit(samples, mutate(boxes, samples))
    assert found.fits
    assert found.winner.reading == expected
    assert (found.winner.reading == found.own.reading) == (name == "none")
    assert found.equal == 1
    assert found.own.reading == Reading(OWN)


def test_few_boxes_in_any_order_are_enough() -> None:
    samples, boxes = made(count=60, boxes=25)
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(b[:, [1, 0, 3, 2]] + [1, 1, 0, 0]) for b in boxes]
    assert str(fit(samples, shuffled).winner.reading.convention) == "yxyx-1-inclusive"


def test_where_no_box_meets_a_border_the_pixel_is_not_claimed_but_the_order_is() -> None:
    samples, boxes = made(margin=6)
    found = fit(samples, [b[:, [1, 0, 3, 2]] for b in boxes])
    equal = {str(f.reading.convention) for f in found.tried[: found.equal]}
    assert equal == {"yxyx-0-halfopen", "yxyx-0-inclusive", "yxyx-1-halfopen", "yxyx-1-inclusive"}
    kept = fit(samples, boxes, own="xyxy-1-inclusive")
    assert kept.winner is kept.own  # nothing speaks against the format's own convention


def test_boxes_that_stand_out_everywhere_do_not_tell_the_pixel() -> None:
    """Of a method that does not clip: a reading by a pixel smaller stands out of fewer sides, which means nothing."""
    samples, boxes = made()
    rng = np.random.default_rng(0)
    beyond = [
        np.vstack([b, np.array([[0, 0, s.width, s.height]]) + rng.uniform(0.6, 3, 4) * [-1, -1, 1, 1]])
        for b, s in zip(boxes, samples, strict=True)
    ]
    found = fit(samples, beyond, own="xyxy-1-inclusive")
    assert found.winner is found.own
    assert "xyxy-0-halfopen" in {str(f.reading.convention) for f in found.tried[: found.equal]}


@pytest.mark.parametrize("order", ["one later", "one earlier", "reversed", "shuffled"])
def test_boxes_under_the_ids_of_other_images_fit_nothing(order: str) -> None:
    samples, boxes = made()
    others = {
        "one later": [boxes[-1], *boxes[:-1]],
        "one earlier": [*boxes[1:], boxes[0]],
        "reversed": boxes[::-1],
        "shuffled": [boxes[i] for i in np.random.default_rng(1).permutation(len(boxes))],
    }
    assert not fit(samples, inclusive(others[order])).fits


def test_the_reading_that_only_makes_boxes_larger_is_not_preferred() -> None:
    """Corners read as sizes give larger boxes, which overlap anything more; ten boxes an image hide the rest."""
    samples, boxes = made(count=100)
    rng = np.random.default_rng(2)
    few = [rng.permutation(b)[:10] - [0, 0, 1, 1] for b in boxes]
    assert fit(samples, few).winner.reading == Reading(OWN)


def test_a_minus_one_that_wrapped_is_counted_and_understood() -> None:
    """Zero-based numbers of which one was subtracted as if they were one-based, in 16 bits without a sign."""
    samples, boxes = made()
    before = [(b - [0, 0, 1, 1]).astype(np.uint16) for b in boxes]
    wrapped = [b - np.uint16(1) for b in before]
    found = fit(samples, wrapped)
    assert found.wrapped == sum(int((b == 0).sum()) for b in before) > 40
    assert found.winner.reading.convention.order == "xyxy"
    assert found.fits
    assert fit(samples, inclusive(boxes)).wrapped == 0


def test_numbers_that_are_none_are_left_out_and_counted() -> None:
    """Four boxes, of which two are not finite and one has a -1 without a sign, which touches the left side."""
    truth = np.array([[0, 0, 4, 4]])
    numbers = np.array([[0, 1, np.nan, 3], [1, 2, 3, 4], [np.inf, 0, 0, 0], [65535, 2, 5, 5]])
    found = fit([sample("a", 10, 10, truth)], [numbers], own="xyxy-1-halfopen")
    assert (found.wrapped, found.not_finite) == (1, 2)
    assert found.own.sides.tolist() == [[-1, 0, 0, 0]]  # from one, -1 is two pixels out
    assert fit([sample("a", 10, 10, truth)], [np.array([[2**32 - 1, 0, 600, 65531]])]).wrapped == 1


def test_images_without_boxes_and_single_images() -> None:
    samples, boxes = made(count=6)
    gaps = [inclusive(boxes)[0], *(np.zeros((0, 4)) for _ in range(5))]
    assert fit(samples, gaps).winner.reading.convention.order == "xyxy"
    assert not fit(samples, [np.zeros((0, 4))] * 6).fits
    alone = fit(samples[:1], inclusive(boxes)[:1])
    assert alone.winner is alone.own


def test_figures_by_hand() -> None:
    """An image of 10 x 8, truth 0 0 4 4 and a difficult object; boxes 0 0 4 2 (IoU 1/2) and 5 5 10 9 (1 out)."""
    image = sample("a", 10, 8, np.array([[0, 0, 4, 4], [6, 6, 8, 8]]))
    image.difficult[1] = True
    found = fit([image], [np.array([[0.0, 0, 4, 2], [5, 5, 10, 9]])], own="xyxy-0-halfopen").own
    np.testing.assert_allclose(found.best, [0.5], rtol=1e-12)
    assert found.chance.tolist() == [0]
    assert found.sides.tolist() == [[1, 1, 1, -1]]
    assert (found.touched, found.recall(0.4), found.recall(0.6)) == (0.75, 1, 0)


def test_chance_gives_each_image_the_stretched_boxes_of_another() -> None:
    one, two = sample("a", 10, 10, np.array([[0, 0, 5, 5]])), sample("b", 20, 40, np.array([[0, 0, 10, 10]]))
    found = fit([one, two], [np.array([[0.0, 0, 5, 5]]), np.array([[0.0, 0, 10, 10]])], own="xyxy-0-halfopen").own
    assert found.best.tolist() == [1, 1]
    # 0 0 10 10 of 20 x 40 is 0 0 5 2.5 of 10 x 10: half of the object; 0 0 5 5 becomes 0 0 10 20: twice the object
    assert found.chance.tolist() == [0.5, 0.5]
