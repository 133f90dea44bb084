"""Derivatives beyond the first in reverse mode: right, or refused, and never a silent zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck

from fastrcnn.ops import roi_align, roi_pool, roi_warp

VARIANTS = ("fast_rcnn", "partition", "truncate")
ROIS = torch.tensor([[0, 0, 0, 50, 40], [1, 16, 8, 70, 60], [0, 30, 30, 30, 30], [1, 500, 500, 600, 600.0]])
NO_IMAGE = torch.tensor([[7, 0, 0, 4, 4], [-1, 0, 0, 4, 4], [float("nan"), 0, 0, 4, 4], [1, 0, 0, 4, 4]])


def features(dtype: torch.dtype = torch.float64) -> Tensor:
    """Distinct values, so that a small step does not change which cell is largest."""
    order = torch.randperm(2 * 2 * 25, generator=torch.Generator().manual_seed(0))
    return (order.to(dtype) / 10).view(2, 2, 5, 5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_second_and_forward_derivatives_are_the_numerical_ones(backend: str, variant: str) -> None:
    x = features().requires_grad_()

    def pool(x: Tensor) -> Tensor:
        return roi_pool(x, ROIS, (3, 2), 1 / 16, variant)

    assert gradcheck(pool, x, check_forward_ad=True)
    assert gradgradcheck(pool, x, check_fwd_over_rev=True, check_rev_over_rev=True)


def cubes(x: Tensor) -> Tensor:
    """The sum of the third powers of nine bins that all hold cell (1, 1) of a 4 x 4 map: 9 c ** 3."""
    return (roi_pool(x, torch.tensor([[0.0, 1, 1, 1, 1]]), 3) ** 3).sum()


def twice_in_reverse(x: Tensor) -> Tensor:
    x = x.requires_grad_()
    (first,) = grad(cubes(x), x, create_graph=True)
    return grad(first.sum(), x)[0].sum()


def forward_over_reverse(x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        x = forward_ad.make_dual(x.requires_grad_(), torch.ones_like(x))
        (first,) = grad(cubes(x), x, create_graph=True)
        return forward_ad.unpack_dual(first).tangent.sum()


SECOND: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse over reverse": twice_in_reverse,
    "forward over reverse": forward_over_reverse,
    "func.hessian": lambda x: func.hessian(cubes)(x).sum(),
    "func.grad twice": lambda x: func.grad(lambda x: func.grad(cubes)(x).sum())(x).sum(),
    "func.jvp twice": lambda x: func.jvp(
        lambda x: func.jvp(cubes, (x,), (torch.ones_like(x),))[1], (x,), (torch.ones_like(x),)
    )[1],
    "func.jvp of func.vmap": lambda x: func.jvp(
        lambda x: func.vmap(func.grad(cubes))(x[None]), (x,), (torch.ones_like(x),)
    )[1].sum(),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # func.vmap pools one by one
@pytest.mark.parametrize("how", SECOND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivative_by_hand(backend: str, how: str, dtype: torch.dtype) -> None:
    """The cell holds 5, so the second derivative of 9 c ** 3 is 54 c = 270."""
    assert SECOND[how](torch.arange(16.0).view(1, 1, 4, 4).to(dtype)).item() == 270


def test_third_derivative_by_hand(backend: str) -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()
    (first,) = grad(cubes(x), x, create_graph=True)
    (second,) = grad(first.sum(), x, create_graph=True)
    assert grad((second**2).sum(), x)[0].sum() == 2 * 270 * 54


@pytest.mark.parametrize(
    ("shape", "rois"), [((2, 3, 5, 5), ROIS[:0]), ((0, 3, 5, 5), ROIS[:0]), ((2, 0, 5, 5), ROIS)], ids=str
)
def test_second_derivative_of_nothing(backend: str, shape: tuple[int, ...], rois: Tensor) -> None:
    x = torch.ones(shape, requires_grad=True)
    (first,) = grad((roi_pool(x, rois, 2, 1 / 16) ** 2).sum(), x, create_graph=True)
    (second,) = grad(first.sum(), x)
    assert second.shape == x.shape
    assert second.eq(0).all()


def test_second_derivative_of_unchecked_rois_of_no_image(backend: str) -> None:
    if backend == "torchvision":
        pytest.skip("torchvision's own kernel reads outside of the features")
    assert gradgradcheck(lambda x: roi_pool(x, NO_IMAGE, 2, check_values=False), features().requires_grad_())


def test_derivatives_inside_of_torch_compile(cpu_library: None) -> None:
    """torch.compile has no autograd.Function in forward mode: an error where it must, and eagerly where it may."""
    x = torch.arange(16.0).view(1, 1, 4, 4)

    def tangent(x: Tensor) -> Tensor:
        return func.jvp(cubes, (x,), (torch.ones_like(x),))[1]

    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"no forward-mode derivative under torch.compile"):
        torch.compile(tangent, fullgraph=True, backend="eager")(x)
    torch._dynamo.reset()
    assert torch.compile(tangent, backend="eager")(x) == 27 * 25
    torch._dynamo.reset()


def test_a_buffer_has_no_tangent() -> None:
    x = features(torch.float32)
    with pytest.raises(ValueError, match=r"^out: not supported if features needs a gradient"):
        func.jvp(lambda x: roi_pool(x, ROIS, 2, out=torch.empty(4, 2, 2, 2)), (x,), (x,))


@pytest.mark.parametrize("operator", [roi_align, roi_warp])
def test_what_torchvision_cannot_derive_is_refused(operator: Callable[..., Tensor]) -> None:
    x = features().requires_grad_()
    (first,) = grad((operator(x, ROIS.double(), 2, 1 / 16) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backwards on roi_align not supported"):
        grad(first.sum(), x)
    with pytest.raises(NotImplementedError, match=r"^features: RoI Align has no forward-mode derivative"):
        func.jvp(lambda x: operator(x, ROIS.double(), 2, 1 / 16), (x.detach(),), (x.detach(),))
