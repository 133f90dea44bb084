"""Recall of proposals, worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastrcnn.evaluation.recall import Recall, proposal_recall
from fastrcnn.structures import Sample


def sample(boxes: list, labels: list[int], difficult: list[bool] | None = None) -> Sample:
    return Sample(
        image_id="1",
        path=Path("1.jpg"),
        width=200,
        height=200,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        difficult=np.array(difficult or [False] * len(labels), bool),
    )


def test_worked_by_hand() -> None:
    samples = [
        # best overlaps 1, 15/20, and a difficult one that must not count
        sample([(0, 0, 20, 20), (50, 0, 70, 20), (150, 150, 170, 170)], [1, 2, 2], [False, False, True]),
        # best overlap 50 x 30 of 50 x 60: exactly one half
        sample([(0, 0, 50, 60)], [2]),
        # no proposal at all
        sample([(0, 0, 100, 100)], [1]),
    ]
    proposals = [
        np.array([(0, 0, 20, 20), (50, 0, 65, 20), (50, 0, 70, 5)]),
        np.array([(0, 0, 50, 30)], np.uint16),
        np.zeros((0, 4)),
    ]
    result = proposal_recall(proposals, samples, ["cat", "dog", "cow"])
    assert result.all == Recall(4, at_50=3 / 4, at_70=2 / 4, best_overlap=(1 + 0.75 + 0.5 + 0) / 4)
    assert result.classes == {
        "cat": Recall(2, 1 / 2, 1 / 2, 1 / 2),
        "dog": Recall(2, 1.0, 1 / 2, 0.625),
        "cow": Recall(0, None, None, None),
    }
    assert result.sizes == {  # 20 x 20 < 32 x 32 <= 50 x 60 < 96 x 96 <= 100 x 100
        "small": Recall(2, 1.0, 1.0, 0.875),
        "medium": Recall(1, 1.0, 0.0, 0.5),
        "large": Recall(1, 0.0, 0.0, 0.0),
    }
    assert (result.images, result.proposals, result.fewest, result.most) == (3, 4 / 3, 0, 3)


def test_sizes_part_where_coco_parts_them() -> None:
    boxes = [(0, 0, 32, 31), (0, 0, 32, 32), (0, 0, 96, 95), (0, 0, 96, 96)]
    result = proposal_recall([np.zeros((0, 4))], [sample(boxes, [1] * 4)], ["cat"])
    assert [r.objects for r in result.sizes.values()] == [1, 2, 1]


def test_nothing_there() -> None:
    result = proposal_recall([], [], ["cat"])
    assert result.all == Recall(0, None, None, None)
    assert (result.images, result.proposals) == (0, 0.0)
    only_difficult = proposal_recall([np.ones((3, 4))], [sample([(0, 0, 9, 9)], [1], [True])], ["cat"])
    assert only_difficult.all.objects == 0
    assert only_difficult.proposals == 3


def test_lists_must_belong_together() -> None:
    with pytest.raises(ValueError):
        proposal_recall([np.zeros((0, 4))] * 2, [sample([], [])], ["cat"])


def test_inputs_are_read_once() -> None:
    samples = (sample([(0, 0, 10, 10)], [1]) for _ in range(3))
    boxes = (np.array([(0, 0, 10, 10)]) for _ in range(3))
    assert proposal_recall(boxes, samples, ["cat"]).all == Recall(3, 1.0, 1.0, 1.0)
