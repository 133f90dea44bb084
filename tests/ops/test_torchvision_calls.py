"""Calls that are written for torchvision.ops, unchanged on our operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

import fastrcnn.ops as ours

theirs = torchvision.ops
X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0, 0, 0, 50, 40], [1, 16, 8, 90, 99], [0, 30, 30, 30, 30.0]])
LIST = [ROIS[[0, 2], 1:], ROIS[[1], 1:]]
BOXES = torch.tensor([[0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 9.0]])
SCORES = torch.tensor([0.3, 0.9, 0.5, 0.4])
GROUPS = torch.tensor([0, 0, 1, 2])

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("roi_pool", (X, ROIS, 2, 1 / 16), {}),
    ("roi_pool", (), {"input": X, "boxes": ROIS, "output_size": (2, 3), "spatial_scale": 1 / 16}),
    ("roi_pool", (X,), {"boxes": LIST, "output_size": [2, 3]}),
    ("roi_pool", (X, tuple(LIST)), {"output_size": np.int64(2), "spatial_scale": np.float32(1 / 16)}),
    ("roi_pool", (X, ROIS, (np.int32(2), np.uint8(3)), np.float16(1 / 16)), {}),
    ("roi_pool", (X, ROIS, np.array([2, 3]), np.float64(1 / 16)), {}),
    ("roi_pool", (X, ROIS, torch.Size((2, 3)), 1), {}),
    ("roi_pool", (X, ROIS, torch.tensor([2, 3]), torch.tensor(1 / 16)), {}),
    ("roi_align", (), {"input": X, "boxes": ROIS, "output_size": 2, "spatial_scale": 1 / 16}),
    ("roi_align", (X, LIST, np.int64(2), np.float32(1 / 16), np.int64(2), True), {}),
    ("roi_align", (X.double(), ROIS.double(), 2), {"sampling_ratio": 2, "aligned": True}),
    ("nms", (BOXES, SCORES, 0.5), {}),
    ("nms", (), {"boxes": BOXES, "scores": SCORES, "iou_threshold": np.float32(0.5)}),
    ("batched_nms", (BOXES, SCORES, GROUPS, 0.5), {}),
    ("batched_nms", (), {"boxes": BOXES, "scores": SCORES, "idxs": GROUPS, "iou_threshold": 0.5}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), CALLS)
def test_gives_what_torchvision_gives(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert torch.equal(getattr(ours, name)(*args, **kwargs), getattr(theirs, name)(*args, **kwargs))


@pytest.mark.parametrize("size", [2, (2, 3), np.int64(2)])
def test_modules(size: Any) -> None:
    scale = np.float32(1 / 16)
    for call in ({"input": X, "rois": ROIS}, {"input": X, "rois": LIST}):
        assert torch.equal(ours.RoIPool(size, scale)(**call), theirs.RoIPool(size, scale)(**call))
        assert torch.equal(ours.RoIAlign(size, scale, 2)(**call), theirs.RoIAlign(size, scale, 2)(**call))
    assert ours.RoIWarp(size, scale, np.int64(2))(input=X, boxes=ROIS).shape[:2] == (3, 3)
    assert repr(ours.RoIPool(np.int64(2), np.float64(0.5))) == "RoIPool((2, 2), spatial_scale=0.5, variant='fast_rcnn')"


def test_our_names_work_beside_theirs() -> None:
    want = ours.roi_pool(X, ROIS, 2)
    assert torch.equal(ours.roi_pool(features=X, boxes=ROIS, output_size=2), want)
    with pytest.raises(TypeError, match=r"^input is an alias of features; pass only one"):
        ours.roi_pool(input=X, features=X, rois=ROIS, output_size=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'inputs'"):
        ours.roi_pool(inputs=X, rois=ROIS, output_size=2)


def test_symbolic_trace_keeps_the_operator() -> None:
    traced = torch.fx.symbolic_trace(ours.RoIPool(2, 1 / 16))
    assert torch.equal(traced(X, ROIS), theirs.roi_pool(X, ROIS, 2, 1 / 16))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_roi_align() -> None:
    x, rois = (torch.quantize_per_tensor(t, 0.5, 0, torch.quint8) for t in (X[:1].abs(), ROIS[:1]))
    assert torch.equal(ours.roi_align(x, rois, 2).int_repr(), theirs.roi_align(x, rois, 2).int_repr())


WRONG: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    *[
        ("roi_pool", ValueError, f"output_size: expected one or two positive ints, got {size!r}", {"size": size})
        for size in (2.0, True, None, "22", (2, 0), (2, 2.5), np.array([1, 2, 3]))
    ],
    *[
        ("roi_pool", ValueError, f"spatial_scale: expected a positive number, got {scale!r}", {"scale": scale})
        for scale in (0, -1.0, True, "1", None, np.float32("inf"), torch.ones(2))
    ],
    ("roi_align", TypeError, "rois: expected a tensor or a list of tensors, got str", {"rois": "boxes"}),
    ("roi_align", ValueError, "rois: expected the shape (K, 5), got (3, 4)", {"rois": ROIS[:, 1:]}),
    ("roi_align", ValueError, "output_size: expected one or two positive ints, got 0", {"size": 0}),
    ("roi_align", TypeError, "sampling_ratio: expected an int, got 2.5", {"ratio": 2.5}),
    ("roi_warp", TypeError, "sampling_ratio: expected an int, got 'a'", {"ratio": "a"}),
]


@pytest.mark.parametrize(("name", "error", "message", "change"), WRONG)
def test_messages_begin_with_the_argument(
    name: str, error: type[Exception], message: str, change: dict[str, Any]
) -> None:
    rois, size, scale = change.get("rois", ROIS), change.get("size", 2), change.get("scale", 1 / 16)
    ratio: dict[str, Any] = {"sampling_ratio": change["ratio"]} if "ratio" in change else {}
    with pytest.raises(error) as raised:
        getattr(ours, name)(X, rois, size, scale, **ratio)
    assert str(raised.value) == message


def test_zero_channels_on_every_backend(backend: str, pool_by_reference: Any) -> None:
    def shapes(pool: Any) -> tuple[Tensor, Tensor]:
        x = torch.zeros(1, 0, 5, 5, requires_grad=True)
        y = pool(x, ROIS[:1], 2)
        y.sum().backward()
        assert x.grad is not None
        return y.shape, x.grad.shape

    assert shapes(ours.roi_pool) == shapes(pool_by_reference) == ((1, 0, 2, 2), (1, 0, 5, 5))
