"""The numbers that can be checked by hand. What each test expects was computed on paper or stands in the literature."""

from __future__ import annotations

import pytest
import torch

from fastrcnn.ops import RoIPool, RoIWarp, reference, roi_align, roi_pool, roi_warp

MAP_8X8 = torch.tensor(
    [
        [0.88, 0.44, 0.14, 0.16, 0.37, 0.77, 0.96, 0.27],
        [0.19, 0.45, 0.57, 0.16, 0.63, 0.29, 0.71, 0.70],
        [0.66, 0.26, 0.82, 0.64, 0.54, 0.73, 0.59, 0.26],
        [0.85, 0.34, 0.76, 0.84, 0.29, 0.75, 0.62, 0.25],
        [0.32, 0.74, 0.21, 0.39, 0.34, 0.03, 0.33, 0.48],
        [0.20, 0.14, 0.16, 0.13, 0.73, 0.65, 0.96, 0.32],
        [0.19, 0.69, 0.09, 0.86, 0.88, 0.07, 0.01, 0.48],
        [0.83, 0.24, 0.97, 0.04, 0.24, 0.35, 0.50, 0.91],
    ]
)[None, None]
MAP_16X16 = torch.arange(256.0).view(1, 1, 16, 16)
MAP_4X4 = torch.arange(16.0).view(1, 1, 4, 4)


def one(*box: float) -> torch.Tensor:
    return torch.tensor([[0.0, *box]])


@pytest.fixture(autouse=True)
def _every_backend(backend: str) -> None:
    """All of this file, on every backend."""


@pytest.mark.parametrize(
    ("variant", "box", "want"),
    [
        ("partition", (0, 3, 7, 8), [[0.85, 0.84], [0.97, 0.96]]),
        ("fast_rcnn", (0, 3, 7, 8), [[0.85, 0.96], [0.97, 0.91]]),
        ("fast_rcnn", (0, 3, 6, 7), [[0.85, 0.96], [0.97, 0.96]]),
    ],
)
def test_8x8(variant: str, box: tuple[float, ...], want: list[list[float]]) -> None:
    assert torch.equal(roi_pool(MAP_8X8, one(*box), 2, variant=variant)[0, 0], torch.tensor(want))


@pytest.mark.parametrize(
    ("aligned", "want"),
    [(True, [0.476953, 0.470977, 0.456914, 0.455234]), (False, [0.366328, 0.550117, 0.459805, 0.375234])],
)
def test_8x8_by_roi_align(aligned: bool, want: list[float]) -> None:
    got = roi_align(MAP_8X8, one(0, 3, 7, 8), 2, sampling_ratio=2, aligned=aligned)
    torch.testing.assert_close(got.flatten(), torch.tensor(want), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("variant", "want"),
    [
        ("truncate", [[106, 108, 110], [122, 124, 126], [138, 140, 142]]),
        ("fast_rcnn", [[123, 126, 127], [155, 158, 159], [187, 190, 191]]),
    ],
)
def test_16x16(variant: str, want: list[list[float]]) -> None:
    got = RoIPool(3, 1 / 32, variant)(MAP_16X16, one(296, 192, 496, 337))
    assert torch.equal(got[0, 0], torch.tensor(want, dtype=torch.float32))


def test_one_cell_fills_every_bin_and_its_gradients_add_up() -> None:
    features = MAP_4X4.clone().requires_grad_()
    got = roi_pool(features, one(1, 1, 1, 1), 3)
    assert got.eq(5).all()
    got.sum().backward()
    assert features.grad is not None
    assert features.grad[0, 0, 1, 1] == 9
    assert features.grad.sum() == 9


def test_inverted() -> None:
    assert roi_pool(MAP_4X4, one(3, 3, 1, 1), 2).eq(15).all()


def test_outside_is_zero_without_a_gradient() -> None:
    features = (MAP_4X4 - 20).requires_grad_()  # negative, so that a 0 is no maximum
    got = roi_pool(features, one(10, 10, 12, 12), 2)
    assert got.eq(0).all()
    got.sum().backward()
    assert features.grad is not None
    assert features.grad.eq(0).all()


def test_overhanging() -> None:
    assert roi_pool(MAP_4X4, one(2, 2, 6, 6), 2).tolist() == [[[[15, 0], [0, 0]]]]


def test_halves_go_away_from_zero() -> None:
    """2.5 is cell 3 (to even it would be 2), and 0.5 is cell 1 (0)."""
    for features in (MAP_4X4, -MAP_4X4):  # the largest cell, and the smallest, of an RoI of one
        assert roi_pool(features, one(2.5, 0.5, 2.5, 0.5), 1).abs().item() == 7
    assert reference.round_half_away(-0.5) == -1
    assert reference.round_half_away(0.49999997) == 0  # adding 0.5 in float32 gives 1


def test_57_cells_end_one_outside() -> None:
    """7 * float32(57 / 7) is a little more than 57, and its ceiling 58: the last bin sees the cell after the RoI."""
    features = torch.zeros(1, 1, 1, 60)
    features[..., 57] = 1
    assert roi_pool(features, one(0, 0, 56, 0), (1, 7))[0, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_ties_go_to_the_first_cell() -> None:
    features = torch.zeros(1, 1, 3, 3)
    features[0, 0, 0, 1] = -0.0
    features[0, 0, 0, 0] = -1
    features.requires_grad_()
    roi_pool(features, one(0, 0, 2, 2), 1).sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]  # -0 equals 0, and came first


def test_features_that_are_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    features = torch.tensor([[nan, 1, -inf, -inf], [inf, nan, nan, -5]])[None, None]
    got = [roi_pool(features, one(*box), 1).item() for box in [(1, 0, 1, 0), (2, 0, 3, 0), (0, 1, 0, 1), (3, 0, 3, 1)]]
    assert got == [1, -inf, inf, -5]
    for box in [(0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 1, 1), (2, 0, 3, 1)]:
        assert roi_pool(features, one(*box), 1).isnan().all()


def test_memory_format_follows_the_features() -> None:
    features = torch.randn(1, 3, 9, 9)
    last = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    assert roi_pool(features, one(0, 0, 4, 4), 3).is_contiguous()
    got = roi_pool(last, one(0, 0, 4, 4), 3)
    assert got.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(got.sum(), last)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_list_of_boxes_is_the_table() -> None:
    features = torch.randn(2, 3, 9, 9)
    boxes = [torch.tensor([[0, 0, 4, 4.0]]), torch.tensor([[1, 1, 7, 7], [2, 2, 3, 3.0]])]
    table = torch.tensor([[0, 0, 0, 4, 4], [1, 1, 1, 7, 7], [1, 2, 2, 3, 3.0]])
    assert torch.equal(roi_pool(features, boxes, (2, 3)), roi_pool(features, table, (2, 3)))
    assert roi_pool(features, [boxes[0][:0], boxes[1][:0]], 7).shape == (0, 3, 7, 7)


def test_roi_warp_samples_inside_the_quantised_roi() -> None:
    """On a plane 10 * row + column, a bin's mean is the value at its centre. RoI cells 1..4 by 2..3 in 2 x 2 bins: a
    cell's centre lies at its number, so the centres are at columns 1.5, 3.5 and rows 2, 3."""
    plane = 10 * torch.arange(8.0)[:, None] + torch.arange(8.0)
    box = one(1.4, 1.5, 3.5, 3.4)  # rounds to 1, 2, 4, 3
    want = torch.tensor([[21.5, 23.5], [31.5, 33.5]])
    assert torch.allclose(roi_warp(plane[None, None], box, 2)[0, 0], want)
    assert torch.allclose(RoIWarp(2)(plane[None, None].bfloat16(), box)[0, 0].float(), want, atol=0.25)
    assert torch.equal(roi_warp(plane[None, None], box, 2), roi_warp(plane[None, None], one(1, 2, 4, 3), 2))
