"""Boxes against torchvision, and against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from fastrcnn import boxes as box_ops


def random_boxes(n: int, seed: int, extent: float = 100.0) -> Tensor:
    """Boxes (n, 4) of at least one pixel."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * extent
    return torch.cat((corner, corner + 1 + torch.rand(n, 2, generator=generator) * extent), dim=1)


def inclusive_codes(rois: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Regression codes of inclusive boxes, whose width is x2 - x1 + 1."""
    codes = []
    for (a1, b1, a2, b2), (c1, d1, c2, d2) in zip(rois.tolist(), truth.tolist(), strict=True):
        w, h, tw, th = a2 - a1 + 1, b2 - b1 + 1, c2 - c1 + 1, d2 - d1 + 1
        dx = (c1 + 0.5 * tw - (a1 + 0.5 * w)) / w
        dy = (d1 + 0.5 * th - (b1 + 0.5 * h)) / h
        codes.append((dx, dy, math.log(tw / w), math.log(th / h)))
    return np.array(codes)


def test_area_by_hand_and_none_for_inverted_boxes() -> None:
    boxes = torch.tensor([[1.0, 2, 4, 7], [0, 0, 0, 9], [5, 0, 2, 3], [5, 5, 2, 2]])
    assert box_ops.area(boxes).tolist() == [15, 0, 0, 0]


def test_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 10, 10]])
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 10, 5], [10, 0, 20, 10], [2, 2, 4, 4]])
    assert box_ops.iou(a, b)[0].tolist() == pytest.approx([1, 50 / 150, 0.5, 0, 4 / 100])
    assert box_ops.iou(a, b)[0, 2] == 0.5, "a threshold of .5 is met exactly"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16, torch.int32, torch.int64])
def test_small_types_hold_a_large_box(dtype: torch.dtype) -> None:
    """290 x 290 is 84,100 pixels: more than float16 and int16 hold, and no bfloat16."""
    box = torch.tensor([[0, 0, 290, 290], [0, 0, 290, 144]], dtype=dtype)
    assert box_ops.area(box).tolist() == torchvision.ops.box_area(box).tolist() == [84_100, 41_760]
    assert torch.equal(box_ops.iou(box, box), torchvision.ops.box_iou(box, box))
    assert box_ops.iou(box, box).flatten().tolist() == pytest.approx([1, 144 / 290, 144 / 290, 1])


def test_integers_do_not_wrap() -> None:
    """Here torchvision's do: bytes in a difference, and int32 in an area of 70,000 x 70,000."""
    bytes_ = torch.tensor([[0, 0, 10, 10], [200, 200, 250, 250]], dtype=torch.uint8)
    assert box_ops.iou(bytes_, bytes_).tolist() == [[1, 0], [0, 1]]
    large = torch.tensor([[0, 0, 70_000, 70_000]], dtype=torch.int32)
    assert box_ops.area(large).item() == 4_900_000_000


def test_iou_is_torchvisions() -> None:
    a, b = random_boxes(40, 0), random_boxes(30, 1)
    expected = torchvision.ops.box_iou(a.double(), b.double())
    assert (expected > 0.3).any()
    torch.testing.assert_close(box_ops.iou(a, b).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(box_ops.iou(a.double(), b.double()), expected, rtol=1e-12, atol=1e-12)


def test_iou_equals_the_inclusive_convention_of_the_papers_code() -> None:
    """Inclusive (0, 0, 9, 9) and (5, 0, 14, 9) are 10 wide and share 5 columns."""
    a, b = np.array([0, 0, 9, 9]), np.array([5, 0, 14, 9])
    shared = (a[2] - b[0] + 1) * (a[3] - a[1] + 1)
    union = 2 * (a[2] - a[0] + 1) * (a[3] - a[1] + 1) - shared
    half_open = [torch.tensor(x + np.array([0, 0, 1, 1]), dtype=torch.float32)[None] for x in (a, b)]
    assert box_ops.iou(*half_open).item() == pytest.approx(shared / union)


def test_iou_of_no_boxes_and_of_empty_boxes() -> None:
    some, none = random_boxes(3, 0), torch.zeros(0, 4)
    assert box_ops.iou(some, none).shape == (3, 0)
    assert box_ops.iou(none, some).shape == (0, 3)
    point = torch.tensor([[5.0, 5, 5, 5]])
    assert box_ops.iou(point, point).tolist() == [[0.0]], "not NaN"
    assert box_ops.iou(point, torch.tensor([[0.0, 0, 9, 9]])).tolist() == [[0.0]]


def test_clip_cuts_at_each_border_and_keeps_the_leading_dimensions() -> None:
    boxes = torch.tensor([[-5.0, -6, 200, 300], [3, 4, 5, 6], [120, 90, 130, 95], [-9, -9, -1, -1]])
    expected = [[0, 0, 100, 80], [3, 4, 5, 6], [100, 80, 100, 80], [0, 0, 0, 0]]
    assert box_ops.clip(boxes, height=80, width=100).tolist() == expected
    assert box_ops.clip(boxes.view(2, 2, 4), 80, 100).tolist() == [expected[:2], expected[2:]]


def test_encode_by_hand() -> None:
    """A RoI 10 x 20 at centre (5, 10); the truth 20 x 10 at centre (15, 10)."""
    codes = box_ops.encode(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 5, 25, 15]]))
    assert codes[0].tolist() == pytest.approx([1.0, 0.0, math.log(2), -math.log(2)])


def test_encode_of_half_open_boxes_equals_the_inclusive_code_with_plus_one() -> None:
    rois, truth = random_boxes(20, 2).round(), random_boxes(20, 3).round()
    one = torch.tensor([0.0, 0, 1, 1])
    expected = inclusive_codes((rois - one).double().numpy(), (truth - one).double().numpy())
    np.testing.assert_allclose(box_ops.encode(rois.double(), truth.double()).numpy(), expected, rtol=1e-12, atol=1e-14)


def test_decode_by_hand() -> None:
    """Class 0 moves the RoI right by half its width; class 1 doubles its height about its centre."""
    rois = torch.tensor([[10.0, 20, 30, 30]])
    deltas = torch.tensor([[[0.5, 0, 0, 0], [0, 0, 0, math.log(2)]]])
    assert box_ops.decode(rois, deltas)[0].tolist() == [[20, 20, 40, 30], pytest.approx([10, 15, 30, 35])]


def test_decode_undoes_encode_for_every_class() -> None:
    rois, truth = random_boxes(50, 4).double(), random_boxes(100, 5).double().view(50, 2, 4)
    deltas = torch.stack([box_ops.encode(rois, truth[:, k]) for k in range(2)], dim=1)  # (50, 2, 4)
    torch.testing.assert_close(box_ops.decode(rois, deltas), truth, rtol=1e-9, atol=1e-9)


def test_decode_bounds_the_growth_and_stays_finite() -> None:
    found = box_ops.decode(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[[0.0, 0, 500, 500]]]))[0, 0]
    assert (found[2] - found[0]).item() == pytest.approx(1000, rel=1e-5)
    assert (found[3] - found[1]).item() == pytest.approx(1000, rel=1e-5)


def test_decode_and_encode_of_no_boxes() -> None:
    assert box_ops.decode(torch.zeros(0, 4), torch.zeros(0, 3, 4)).shape == (0, 3, 4)
    assert box_ops.encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
