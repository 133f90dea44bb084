"""RoI pooling as a citizen of torch: gradients, compilation, autocast, processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.compiler.config
from limits import PATIENCE
from torch import Tensor, nn

from fastrcnn.ops import RoIAlign, RoIPool, RoIWarp, batched_nms, nms, roi_align, roi_pool, roi_warp

ROIS = torch.tensor([[0, 0, 0, 50, 40], [1, 16, 8, 90, 99], [0, 30, 30, 30, 30], [1, 500, 500, 600, 600.0]])


def features(channels: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Distinct values, so that a small step does not change which cell is largest."""
    order = torch.randperm(2 * channels * 49, generator=torch.Generator().manual_seed(0))
    return (order.to(dtype) / 10).view(2, channels, 7, 7)


@pytest.mark.parametrize("variant", ["fast_rcnn", "partition", "truncate"])
def test_gradcheck(backend: str, variant: str) -> None:
    x = features(dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, ROIS, (3, 2), 1 / 16, variant), x)


def test_gradcheck_of_roi_warp() -> None:
    x = features(2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_warp(x, ROIS, 2, 1 / 16), x)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_opcheck(backend: str, memory: torch.memory_format) -> None:
    x = features().contiguous(memory_format=memory)
    ops = torch.ops.fastrcnn
    for needs_gradient in (False, True):
        arguments = (x.clone().requires_grad_(needs_gradient), ROIS, 3, 2, 0.1, "fast_rcnn", needs_gradient, True)
        torch.library.opcheck(ops.roi_pool.default, arguments)
    out = torch.empty(4, 5, 3, 2)
    torch.library.opcheck(ops.roi_pool_out.default, (x, ROIS, 0.1, "partition", True, out))
    _, argmax = ops.roi_pool(x, ROIS, 3, 2, 0.1, "fast_rcnn", True, True)
    for last in (False, True):
        arguments = (torch.randn(4, 5, 3, 2).requires_grad_(last), ROIS, argmax, 2, 7, 7, 0.1, "fast_rcnn", last)
        torch.library.opcheck(ops.roi_pool_backward.default, arguments)


def test_compiles_in_one_graph(backend: str) -> None:
    def head(x: Tensor, rois: Tensor) -> Tensor:
        return roi_pool(torch.relu(x), rois, 3, 1 / 16, "fast_rcnn").flatten(1).sin()

    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    for memory in (torch.contiguous_format, torch.channels_last):
        eager, graph = (features().contiguous(memory_format=memory).requires_grad_() for _ in range(2))
        want, got = head(eager, ROIS), compiled(graph, ROIS)
        assert torch.equal(want, got)
        want.sum().backward()
        got.sum().backward()
        assert eager.grad is not None
        assert graph.grad is not None
        assert torch.equal(eager.grad, graph.grad)
    buffer = torch.empty(4, 5, 3, 3)
    into = torch.compile(lambda x: roi_pool(x, ROIS, 3, 1 / 16, out=buffer) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(into(features()), roi_pool(features(), ROIS, 3, 1 / 16) + 1)
    more = torch.cat([ROIS, ROIS])  # another number of RoIs
    assert torch.equal(compiled(features(), more), head(features(), more))


BOXES = ROIS[:, 1:].repeat(3, 1) + torch.arange(12)[:, None]
SCORES, GROUPS = torch.arange(12) % 5 / 5, torch.arange(12) % 2
ARGUMENTS = {
    "pool": [(features(), ROIS), (features()[:1, :3, :5], ROIS[[0, 2]]), (features(7), ROIS[:0])],
    "pool in size and scale": [
        (features(), ROIS, 3, 1 / 16),
        (features(), ROIS[:2], 2, 1 / 8),
        (features(3), [ROIS[[0, 2], 1:], ROIS[[1], 1:]], (4, 1), 0.3),
    ],
    "nms": [(BOXES, SCORES, 0.5), (BOXES[:7], SCORES[:7], 0.3), (BOXES[:0], SCORES[:0], 0.3)],
    "nms in groups": [(BOXES, SCORES, GROUPS, 0.5), (BOXES[:7], SCORES[:7], GROUPS[:7], 0.3)],
}


@pytest.mark.filterwarnings("ignore:.*create_unbacked_symint")
@pytest.mark.parametrize("dynamic", [True, False, None])
@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (RoIPool(3, 1 / 16), "pool"),
        (RoIPool(2, 1 / 16, "partition"), "pool"),
        (RoIWarp((2, 3), 1 / 16), "pool"),
        (RoIAlign(3, 1 / 16, 2), "pool"),
        (roi_pool, "pool in size and scale"),
        (roi_warp, "pool in size and scale"),
        (roi_align, "pool in size and scale"),
        (nms, "nms"),
        (batched_nms, "nms in groups"),
    ],
    ids=lambda x: x if isinstance(x, str) else getattr(x, "__name__", type(x).__name__),
)
def test_compiles_whatever_is_dynamic(
    cpu_library: None, function: Callable[..., Tensor], calls: str, dynamic: bool | None
) -> None:
    def both(*args: Any) -> Tensor:
        return function(*args) + 1

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for args in ARGUMENTS[calls]:
        assert torch.equal(compiled(*args), both(*args))


def test_opcheck_of_nms() -> None:
    torch.library.opcheck(torch.ops.fastrcnn.nms.default, (BOXES, SCORES, GROUPS, 0.5))


@pytest.mark.slow
@torch.compiler.config.patch(cache_key_tag=torch.backends.cpu.get_cpu_capability())  # see machine.speed_and_memory
def test_compiles_with_inductor(cpu_library: None) -> None:
    compiled = torch.compile(lambda x: roi_pool(x * 2, ROIS, 3, 1 / 16).sum(), fullgraph=True)
    eager, graph = features().requires_grad_(), features().requires_grad_()
    want, got = roi_pool(eager * 2, ROIS, 3, 1 / 16).sum(), compiled(graph)
    torch.testing.assert_close(want, got)
    want.backward()
    got.backward()
    assert eager.grad is not None
    assert graph.grad is not None
    assert torch.equal(eager.grad, graph.grad)


def test_autocast_keeps_bfloat16(backend: str) -> None:
    x = features().bfloat16().requires_grad_()
    far = torch.tensor([[0, 0, 0, 257, 257.0]])  # 257 is no bfloat16: were RoIs cast, the RoI would end at 256
    with torch.autocast("cpu", torch.bfloat16):
        got = roi_pool(x, ROIS, 3, 1 / 16)
        edge = roi_pool(torch.arange(260.0).view(1, 1, 1, 260).bfloat16(), far, 1)
    assert got.dtype == torch.bfloat16
    assert edge.item() == torch.tensor(257.0).bfloat16().item()
    assert torch.equal(got.float(), roi_pool(x.detach().float(), ROIS, 3, 1 / 16))
    got.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_argmax_is_made_only_for_a_gradient(backend: str) -> None:
    x = features().requires_grad_()
    with torch.no_grad():
        assert roi_pool(x, ROIS, 3).grad_fn is None
    assert torch.ops.fastrcnn.roi_pool(x.detach(), ROIS, 3, 3, 1.0, "fast_rcnn", False, True)[1].numel() == 0
    with torch.inference_mode():
        assert torch.equal(roi_pool(x, ROIS, 3), roi_pool(x.detach(), ROIS, 3))


def test_threads_do_not_change_a_bit(cpu_library: None) -> None:
    x = torch.randn(2, 200, 38, 63).contiguous(memory_format=torch.channels_last)
    rois = torch.rand(150, 5) * torch.tensor([1.99, 1000, 600, 1000, 600])
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = x.clone(memory_format=torch.preserve_format).requires_grad_()
            out = roi_pool(y, rois, 7, 1 / 16)
            out.backward(torch.sin(torch.arange(out.numel())).view(out.shape))
            results.append((out.detach(), y.grad))
    finally:
        torch.set_num_threads(before)
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0])
        assert grad is not None
        assert results[0][1] is not None
        assert torch.equal(grad, results[0][1])


def _in_a_worker(queue: multiprocessing.Queue[list[float]]) -> None:
    queue.put(roi_pool(features(), ROIS, 3, 1 / 16).flatten().tolist())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_process(cpu_library: None, start: str) -> None:
    want = roi_pool(features(), ROIS, 3, 1 / 16)  # threads have run in this process before the fork
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    worker = context.Process(target=_in_a_worker, args=(queue,))
    worker.start()
    assert queue.get(timeout=PATIENCE) == want.flatten().tolist()
    worker.join()


def test_distributed_data_parallel(cpu_library: None, tmp_path: os.PathLike[str]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:

        class Head(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(5, 8, 3, padding=1)
                self.pool = RoIPool(3, 1 / 16)

            def forward(self, x: Tensor) -> Tensor:
                return self.pool(self.conv(x), ROIS)

        torch.manual_seed(0)
        alone = Head()
        together = nn.parallel.DistributedDataParallel(Head())
        together.module.load_state_dict(alone.state_dict())
        for model in (alone, together):
            model(features()).sum().backward()
        assert alone.conv.weight.grad is not None
        assert torch.equal(alone.conv.weight.grad, together.module.conv.weight.grad)
    finally:
        torch.distributed.destroy_process_group()
