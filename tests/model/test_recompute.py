"""Switches that change time and memory and not the result: activation checkpointing and torch.compile."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
import torch
from torch import Tensor

from fastrcnn.build import machine
from fastrcnn.config.schema import RuntimeConfig
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN, freeze_before
from fastrcnn.model.loss import Losses, fast_rcnn_loss
from fastrcnn.structures import RoITargets

CPU = torch.device("cpu")
ROIS = torch.tensor([[0, 3, 4, 60, 50], [0, 20, 10, 44, 40], [1, 0, 0, 30, 30], [1, 10, 12, 62, 55]]).float()
TARGETS = RoITargets(torch.tensor([1, 0, 2, 0]), torch.linspace(-1, 1, 16).view(4, 4))


def network(**options: object) -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(2, **({"width": 0.06, "roi_size": 3} | options)).train()  # type: ignore[arg-type]


def step(model: FastRCNN, size: tuple[int, int] = (64, 72)) -> Losses:
    """Loss and gradients on two noisy pictures, dropout and all."""
    images = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    torch.manual_seed(2)
    model.zero_grad()
    losses = fast_rcnn_loss(*model(images, ROIS), TARGETS)
    losses.total.backward()
    return losses


def maps_kept(model: FastRCNN) -> int:
    """Numbers that autograd keeps for the way back through the trunk."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.numel() if t.dim() == 4 and t.shape[0] == 2 else 0
        return t

    images = torch.rand(2, 3, 64, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.trunk(images, ["conv5_3"])
    return sum(kept.values())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_norm": True},
        {"roi_features": ["conv2_1", "conv3_3", "conv5_3"], "batch_norm": True},
        {"network": "caffenet", "roi_features": ["conv5"]},
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_activations_computed_twice_give_the_same_bits(options: dict, frozen: bool) -> None:
    plain, twice = network(**options), network(**options)
    machine.speed_and_memory(twice, RuntimeConfig(checkpoint_activations=True), CPU)
    for model in (plain, twice):
        if frozen:
            freeze_before(model, model.trunk.network.conv_names[3])
            model.train()
    for _ in range(2):
        assert torch.equal(step(plain).total, step(twice).total)
        for (name, p), q in zip(plain.named_parameters(), twice.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None and q.grad is not None:
                assert torch.equal(p.grad, q.grad), name
    for name, value in plain.state_dict().items():  # running statistics saw each batch once
        assert torch.equal(value, twice.state_dict()[name]), name


def test_what_is_computed_again_is_not_kept() -> None:
    plain, twice = network(), network()
    twice.trunk.recompute = True
    assert maps_kept(twice) < 0.5 * maps_kept(plain)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_a_compiled_network_gives_the_same_loss_at_any_size() -> None:
    options = {"dropout": 0.0, "width": 0.03}
    plain, compiled = network(**options), network(**options)
    machine.speed_and_memory(compiled, RuntimeConfig(compile=True), CPU)
    assert compiled.trunk._compiled_call_impl is not None
    assert compiled.head._compiled_call_impl is not None
    for size in ((64, 72), (80, 64), (96, 112)):
        expected, found = step(plain, size), step(compiled, size)
        assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-4)
        for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None  # noqa: PT018
            torch.testing.assert_close(
                q.grad, p.grad, rtol=1e-3, atol=1e-4 * float(p.grad.abs().max() + 1e-3), msg=name
            )
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_compiled_code_is_cached_for_each_set_of_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for AVX-512 from torch's cache on disk does not compile for other instructions."""
    monkeypatch.setenv("CXX", sys.executable)  # any program: nothing is compiled before the first call
    tags = set()
    for capability in ("AVX512", "DEFAULT"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda said=capability: said)
        with torch.compiler.config.patch(cache_key_tag=""):
            machine.speed_and_memory(network(), RuntimeConfig(compile=True), CPU)
            tags.add(torch.compiler.config.cache_key_tag)
    assert len(tags) == 2


def test_without_a_compiler_the_switch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"runtime.compile=true: .* no-such-compiler was not found"):
        machine.speed_and_memory(network(), RuntimeConfig(compile=True), CPU)
