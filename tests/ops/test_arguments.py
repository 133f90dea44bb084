"""Bad arguments: an error that names the argument, the same on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastrcnn.ops import RoIPool, roi_pool, roi_warp

GOOD = torch.zeros(2, 3, 5, 5)
ROI = torch.tensor([[0, 0, 0, 4, 4.0]])
NAN = float("nan")

FLOATS = "float16, bfloat16, float32 or float64"

WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "features: expected the shape (N, C, H, W), got (3, 5, 5)", {"features": GOOD[0]}),
    (TypeError, f"features: expected {FLOATS}, got torch.int32", {"features": GOOD.int()}),
    (
        ValueError,
        "features: expected a height and width of at least 1, got the shape (2, 3, 0, 5)",
        {"features": GOOD[:, :, :0]},
    ),
    (TypeError, "features: expected a tensor, got ndarray", {"features": GOOD.numpy()}),
    (ValueError, "rois: expected the shape (K, 5), got (1, 4)", {"rois": ROI[:, 1:]}),
    (TypeError, "rois: expected a floating-point dtype, got torch.int64", {"rois": ROI.long()}),
    (ValueError, "rois: expected one tensor per image, got 1 for 2 image(s)", {"rois": [ROI[:, 1:]]}),
    (ValueError, "rois[1]: expected the shape (K, 4), got (1, 5)", {"rois": [ROI[:, 1:], ROI]}),
    (TypeError, "rois: expected a tensor or a list of tensors, got str", {"rois": "boxes"}),
    (ValueError, "rois: expected a tensor on cpu, the device of features, got meta", {"rois": ROI.to("meta")}),
    (
        ValueError,
        "rois: batch index 2 of RoI 0 is out of range for features of 2 image(s)",
        {"rois": torch.tensor([[2, 0, 0, 4, 4.0]])},
    ),
    (
        ValueError,
        "rois: batch index -1 of RoI 1 is out of range for features of 2 image(s)",
        {"rois": torch.tensor([[0, 0, 0, 4, 4], [-1, 0, 0, 4, 4.0]])},
    ),
    (
        ValueError,
        "rois: expected finite values, got [0.0, nan, 0.0, 4.0, 4.0] for RoI 0",
        {"rois": torch.tensor([[0, NAN, 0, 4, 4]])},
    ),
    (
        ValueError,
        "rois: expected finite values, got [0.0, 0.0, 0.0, inf, 4.0] for RoI 0",
        {"rois": torch.tensor([[0, 0, 0, float("inf"), 4]])},
    ),
    (ValueError, "output_size: expected one or two positive ints, got 0", {"output_size": 0}),
    (ValueError, "output_size: expected one or two positive ints, got (7, 7, 7)", {"output_size": (7, 7, 7)}),
    (ValueError, "spatial_scale: expected a positive number, got nan", {"spatial_scale": NAN}),
    (ValueError, "variant: expected one of fast_rcnn, partition, truncate, got 'caffe'", {"variant": "caffe"}),
    (ValueError, "out: expected the shape (1, 3, 7, 7), got (1, 3, 7, 6)", {"out": torch.empty(1, 3, 7, 6)}),
    (
        TypeError,
        "out: expected torch.float32, the dtype of features, got torch.float16",
        {"out": torch.empty(1, 3, 7, 7).half()},
    ),
    (
        ValueError,
        "out: expected a contiguous or channels_last tensor, got a tensor with the strides (294, 98, 14, 2)",
        {"out": torch.empty(1, 3, 7, 14)[..., ::2]},
    ),
    (
        ValueError,
        "out: not supported if features needs a gradient",
        {"features": GOOD.clone().requires_grad_(), "out": torch.empty(1, 3, 7, 7)},
    ),
]


@pytest.mark.parametrize(("error", "message", "change"), WRONG)
def test_names_the_argument(backend: str, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error) as raised:
        roi_pool(**{"features": GOOD, "rois": ROI, "output_size": 7, **change})
    assert str(raised.value) == message


def test_the_module_and_roi_warp_say_the_same() -> None:
    with pytest.raises(ValueError, match="variant: expected one of fast_rcnn, partition, truncate, got 'caffe'"):
        RoIPool(7, variant="caffe")
    with pytest.raises(ValueError, match=r"rois: expected the shape \(K, 5\), got \(1, 4\)"):
        roi_warp(GOOD, ROI[:, 1:], 7)


def test_the_last_image_and_an_empty_table_are_fine(backend: str) -> None:
    assert roi_pool(GOOD, torch.tensor([[1, 0, 0, 4, 4.0]]), 7).shape == (1, 3, 7, 7)
    assert roi_pool(GOOD, ROI[:0], 7).shape == (0, 3, 7, 7)


def test_rois_of_other_floating_types(backend: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(roi_pool(GOOD, ROI.to(dtype), 7), roi_pool(GOOD, ROI, 7))
