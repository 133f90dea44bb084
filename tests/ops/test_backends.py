"""Every backend against the reference, value for value and gradient for gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from roi_cases import expected, random_case, same
from torch import Tensor

from fastrcnn.ops import roi_pool

Pool = Callable[..., Tensor]


@pytest.mark.parametrize("batch", range(4))
def test_equals_the_reference(backend: str, batch: int) -> None:
    """400 cases for each of our own kernels, 100 for torchvision's: 1,700 in all."""
    if backend == "torchvision" and batch:
        pytest.skip("mostly the reference over again")
    for seed in range(batch * 100, batch * 100 + 100):
        case, want, grad, want_gradient = expected(seed)
        features = case.features.clone().requires_grad_()
        got = roi_pool(features, case.rois, case.size, case.scale, case.variant)
        assert same(got, want), f"seed {seed}"
        plain = roi_pool(case.features, case.rois, case.size, case.scale, case.variant)
        assert same(plain, want), f"seed {seed}, without a gradient"
        torch.use_deterministic_algorithms(True)
        try:
            got.backward(grad)
        finally:
            torch.use_deterministic_algorithms(False)
        assert features.grad is not None
        if backend == "torchvision":  # it adds up in an order of its own
            torch.testing.assert_close(features.grad, want_gradient)
        else:
            assert torch.equal(features.grad, want_gradient), f"seed {seed}, gradient"


def test_atomic_backward_adds_the_same_numbers(cuda_on_host: object, pool_by_reference: Pool) -> None:
    """On the host the atomics come in order; integers make the sums exact in any order."""
    from fastrcnn.ops import cuda

    for seed in range(60):
        case = random_case(seed, finite=True)
        features = case.features.clone().requires_grad_()
        want = pool_by_reference(features, case.rois, case.size, case.scale, case.variant)
        grad = torch.randint(-8, 9, want.shape, generator=torch.Generator().manual_seed(seed)).to(want.dtype)
        want.backward(grad)
        shape = (len(case.rois), *case.size, features.shape[1])
        out, argmax = torch.empty_like(want), torch.empty(shape, dtype=torch.int32)
        cuda.forward(case.features, case.rois, case.scale, case.variant, out.detach(), argmax)
        exact = torch.float64 if grad.dtype == torch.float64 else torch.float32
        total = torch.empty(features.shape, dtype=exact)
        cuda.backward(grad, case.rois, argmax, case.scale, case.variant, total)
        assert features.grad is not None
        assert torch.equal(total.to(grad.dtype), features.grad), f"seed {seed}"


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_writes_into_a_buffer(
    backend: str, pool_by_reference: Pool, memory: torch.memory_format, dtype: torch.dtype
) -> None:
    features = torch.randn(1, 512, 14, 15).to(dtype)
    rois = torch.tensor([[0, 0, 0, 200, 180], [0, 30, 40, 90, 100.0]])
    out = torch.full((2, 512, 7, 7), 5.0).to(dtype).contiguous(memory_format=memory)
    got = roi_pool(features, rois, 7, 1 / 16, out=out)
    assert got is out
    assert same(out, pool_by_reference(features, rois, 7, 1 / 16))


def test_large_output_goes_past_the_caches_and_arrives(backend: str) -> None:
    """More than 8 MB, where the CPU kernel stores around the caches and asks for large pages."""
    features = torch.randn(1, 512, 20, 20).contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0, 16.0 * i, 16.0 * i, 16.0 * i, 16.0 * i] for i in range(20)] * 10)
    got = roi_pool(features, rois, 7, 1 / 16)  # single cells of the diagonal
    want = features[0, :, range(20), range(20)].T.repeat(10, 1)[:, :, None, None].expand_as(got)
    assert torch.equal(got, want)


def test_far_away_coordinates_are_outside_and_harmless(backend: str) -> None:
    features = torch.ones(1, 3, 5, 5)
    rois = torch.tensor([[0, 1e30, 1e30, 2e30, 2e30], [0, -1e30, -1e30, 1e30, 1e30], [0, 3e38, 0, 3e38, 4]])
    for variant in ("fast_rcnn", "partition", "truncate"):
        got = roi_pool(features, rois, 2, 1.0, variant)
        assert got[0].eq(0).all()
        assert got[2].eq(0).all()
        assert got[1].isfinite().all()


def test_unchecked_rois_of_no_image_pool_to_zero(backend: str) -> None:
    if backend == "torchvision":
        pytest.skip("torchvision's own kernel reads outside of the features")
    features = torch.ones(2, 3, 5, 5, requires_grad=True)
    rois = torch.tensor([[7, 0, 0, 4, 4], [-1, 0, 0, 4, 4], [float("nan"), 0, 0, 4, 4], [1, 0, 0, 4, 4]])
    got = roi_pool(features, rois, 2, check_values=False)
    assert got[:3].eq(0).all()
    assert got[3].eq(1).all()
    got.sum().backward()
    assert features.grad is not None
    assert features.grad[0].eq(0).all()
    assert features.grad.sum() == got[3].numel()
