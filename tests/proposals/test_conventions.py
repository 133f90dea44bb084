"""Conventions of boxes, worked by hand on one box: the pixels of columns 2 to 4 and rows 5 to 10, counted from 0."""

from __future__ import annotations

import numpy as np
import pytest

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.conventions import CONVENTIONS, HALF_OPEN, ORDERS, Convention, convention

BOX = [2, 5, 5, 11]  # half-open; 3 wide and 6 high
WRITTEN = {
    "xyxy-0-halfopen": [2, 5, 5, 11],
    "xyxy-0-inclusive": [2, 5, 4, 10],
    "xyxy-1-halfopen": [3, 6, 6, 12],
    "xyxy-1-inclusive": [3, 6, 5, 11],
    "yxyx-0-halfopen": [5, 2, 11, 5],
    "yxyx-0-inclusive": [5, 2, 10, 4],
    "yxyx-1-halfopen": [6, 3, 12, 6],
    "yxyx-1-inclusive": [6, 3, 11, 5],
    "xxyy-0-halfopen": [2, 5, 5, 11],
    "xxyy-0-inclusive": [2, 4, 5, 10],
    "xxyy-1-halfopen": [3, 6, 6, 12],
    "xxyy-1-inclusive": [3, 5, 6, 11],
    "xywh-0": [2, 5, 3, 6],
    "xywh-1": [3, 6, 3, 6],
    "yxhw-0": [5, 2, 6, 3],
    "yxhw-1": [6, 3, 6, 3],
}
# The box above is the same in both orders of half-open corners; this one tells them apart.
OTHER, OTHER_XXYY = [1, 2, 7, 30], [1, 7, 2, 30]


def test_all_conventions_are_there_and_none_twice() -> None:
    assert sorted(CONVENTIONS) == sorted(WRITTEN)
    assert len(set(CONVENTIONS.values())) == len(WRITTEN)
    assert {c.order for c in CONVENTIONS.values()} == set(ORDERS)
    assert str(HALF_OPEN) == "xyxy-0-halfopen"


@pytest.mark.parametrize("name", WRITTEN)
def test_a_box_is_read_and_written(name: str) -> None:
    c = CONVENTIONS[name]
    np.testing.assert_array_equal(c.read(np.array([WRITTEN[name]])), [BOX])
    np.testing.assert_array_equal(c.write(np.array([BOX])), [WRITTEN[name]])
    assert convention(name) is c
    assert str(c) == name


def test_the_order_of_xxyy() -> None:
    c = CONVENTIONS["xxyy-0-halfopen"]
    np.testing.assert_array_equal(c.read(np.array([OTHER_XXYY])), [OTHER])
    np.testing.assert_array_equal(c.write(np.array([OTHER])), [OTHER_XXYY])


@pytest.mark.parametrize("name", WRITTEN)
def test_the_smallest_and_the_largest_whole_numbers_do_not_wrap(name: str) -> None:
    """0 - 1 and 65535 + 1 in uint16, and sums beyond it."""
    c = CONVENTIONS[name]
    raw = np.array([[0, 0, 65535, 65535]], np.uint16)
    np.testing.assert_array_equal(c.read(raw), c.read(raw.astype(object).astype(np.float64)))
    assert c.read(raw).min() >= -1
    assert c.read(raw).max() >= 65534
    assert raw.tolist() == [[0, 0, 65535, 65535]]  # not written to


@pytest.mark.parametrize("name", WRITTEN)
def test_fractions_survive_the_way_there_and_back(name: str) -> None:
    boxes = np.random.default_rng(0).integers(0, 4000, (50, 4)) / 8  # exact in binary
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_array_equal(CONVENTIONS[name].read(CONVENTIONS[name].write(boxes)), boxes)


def test_no_boxes_are_no_boxes() -> None:
    for c in CONVENTIONS.values():
        assert c.read(np.zeros((0, 4))).shape == (0, 4) == c.write(np.zeros((0, 4), np.float32)).shape


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        UserError, match=r"convention=yxyx-1-inclusiv: unknown convention. Did you mean 'yxyx-1-inclusive'\?"
    ):
        convention("yxyx-1-inclusiv")
    with pytest.raises(UserError, match="Use one of: xyxy-0-halfopen"):
        convention("")


def test_a_size_says_nothing_of_the_last_pixel() -> None:
    assert Convention("xywh", 0, False).sized
    assert not HALF_OPEN.sized
