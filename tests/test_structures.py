"""Detections as a user meets them: their names, one by one, and printed."""

from __future__ import annotations

import torch

from fastrcnn.structures import Detection, Detections

BOXES = torch.tensor([[1.0, 2, 30, 40], [0, 0, 5.25, 5]])
FOUND = Detections(BOXES, torch.tensor([0.75, 0.5]), torch.tensor([2, 1]), classes=("cat", "dog é"))


def test_detections_are_iterated_with_their_names() -> None:
    assert list(FOUND) == [
        Detection((1.0, 2.0, 30.0, 40.0), 0.75, 2, "dog é"),
        Detection((0.0, 0.0, 5.25, 5.0), 0.5, 1, "cat"),
    ]
    assert FOUND.names == ["dog é", "cat"]
    assert Detections(BOXES, FOUND.scores, FOUND.labels).names == ["class 2", "class 1"]


def test_detections_print_as_a_table() -> None:
    assert repr(FOUND).splitlines() == [
        "2 detections",
        "  dog é            0.750  (1.0, 2.0, 30.0, 40.0)",
        "  cat              0.500  (0.0, 0.0, 5.2, 5.0)",
    ]
    many = Detections(BOXES[:1].expand(21, 4), torch.ones(21), torch.ones(21, dtype=torch.long))
    assert (repr(many).splitlines()[0], repr(many).splitlines()[-1]) == ("21 detections", "  ...")
    assert len(repr(many).splitlines()) == 22
    assert repr(Detections(BOXES[:1], torch.ones(1), torch.ones(1, dtype=torch.long))).startswith("1 detection\n")
