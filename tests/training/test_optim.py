"""Parameter groups, one rule of Caffe's solver worked by hand, and rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastrcnn.model.fast_rcnn import FastRCNN, freeze_before
from fastrcnn.training.optim import clip_gradients, learning_rate, make_optimizer, parameter_groups, set_rate


def group_of(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Each trained parameter's weight decay and factor on the rate."""
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.0005, bias_lr_factor=2.0)
    listed = [(names[id(p)], (g["weight_decay"], g["lr_factor"])) for g in groups for p in g["params"]]
    assert len({n for n, _ in listed}) == len(listed), "no parameter twice"
    return dict(listed)


def test_groups_of_the_slim_network_with_batch_normalisation() -> None:
    model = FastRCNN(2, width=0.03, batch_norm=True, roi_size=2, roi_features=("conv4_3", "conv5_3"))
    freeze_before(model, "conv2_1")
    found = group_of(model)
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any("conv1_" in n for n in found)
    for name, group in found.items():
        if ".norms." in name:
            assert group == (0.0, 1.0), name
        elif name.endswith("bias"):
            assert group == (0.0, 2.0), name
        else:
            assert group == (0.0005, 1.0), name
    assert {"trunk.norms.conv2_1.bias", "trunk.convs.conv2_1.bias", "bbox_pred.bias", "reduce.weight"} <= set(found)


def test_a_network_without_batch_normalisation_has_no_empty_group() -> None:
    assert len(parameter_groups(nn.Linear(2, 2), 0.0005, 2.0)) == 2
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.0005, 2.0)) == 1


def step_on(x: torch.Tensor, layer: nn.Module, optimizer: torch.optim.Optimizer, rate: float) -> None:
    """A step that makes the layer's outputs smaller: the loss is half the sum of their squares."""
    set_rate(optimizer, rate)
    optimizer.zero_grad()
    (layer(x).square().sum() / 2).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("optimizer_name", "rates"),
    [
        ("caffe_sgd", [0.01] * 4),
        ("caffe_sgd", [0.01, 0.02, 0.001, 0.0]),
        ("sgd", [0.01] * 4),
        ("fused_sgd", [0.01] * 4),
    ],
)
def test_steps_are_those_of_caffes_solver(optimizer_name: str, rates: list[float]) -> None:
    """Caffe: v = momentum v + rate factor (gradient + decay w); w = w - v. torch's is the same at one rate."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    optimizer = make_optimizer(layer, momentum=0.9, weight_decay=0.05, bias_lr_factor=2.0, optimizer=optimizer_name)
    w, b = layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()
    vw, vb = np.zeros_like(w), np.zeros_like(b)
    generator = torch.Generator().manual_seed(1)
    for rate in rates:
        x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        out = x.numpy() @ w.T + b  # the loss is half the sum of squares, so its gradient by `out` is `out`
        vw = 0.9 * vw + rate * (out.T @ x.numpy() + 0.05 * w)
        vb = 0.9 * vb + rate * 2 * out.sum(axis=0)
        w, b = w - vw, b - vb

        step_on(x, layer, optimizer, rate)
    np.testing.assert_allclose(layer.weight.detach().numpy(), w, rtol=1e-12)
    np.testing.assert_allclose(layer.bias.detach().numpy(), b, rtol=1e-12)


def test_steps_are_those_of_adamw_as_its_paper_has_them() -> None:
    """Algorithm 2 of Loshchilov and Hutter (2019); the rate multiplies the decay too, as in torch."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    optimizer = make_optimizer(layer, momentum=0.8, weight_decay=0.05, bias_lr_factor=2.0, optimizer="adamw")
    w, b = layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()
    moments = [np.zeros_like(a) for a in (w, w, b, b)]
    generator = torch.Generator().manual_seed(1)
    for t, rate in enumerate([0.01, 0.02, 0.001], start=1):
        x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        out = x.numpy() @ w.T + b
        slopes = out.T @ x.numpy(), out.sum(axis=0)
        moves = []
        for i, slope in enumerate(slopes):
            moments[2 * i] = 0.8 * moments[2 * i] + 0.2 * slope
            moments[2 * i + 1] = 0.999 * moments[2 * i + 1] + 0.001 * slope**2
            mean, square = moments[2 * i] / (1 - 0.8**t), moments[2 * i + 1] / (1 - 0.999**t)
            moves.append(mean / (np.sqrt(square) + 1e-8))
        w, b = w - rate * (moves[0] + 0.05 * w), b - 2 * rate * moves[1]

        step_on(x, layer, optimizer, rate)
    np.testing.assert_allclose(layer.weight.detach().numpy(), w, rtol=1e-9)
    np.testing.assert_allclose(layer.bias.detach().numpy(), b, rtol=1e-9)


def test_the_rate_reaches_every_group_by_its_factor() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), bias_lr_factor=2.0)
    set_rate(optimizer, 0.001)
    assert [g["lr"] for g in optimizer.param_groups] == [0.001, 0.002]
    set_rate(optimizer, 0.0001)
    assert [g["lr"] for g in optimizer.param_groups] == [0.0001, 0.0002]


@pytest.mark.parametrize(("step", "expected"), [(0, 0.001), (29999, 0.001), (30000, 0.0001), (39999, 0.0001)])
def test_the_papers_schedule(step: int, expected: float) -> None:
    assert learning_rate(step, 40000, 0.001) == pytest.approx(expected)


def test_several_steps_multiply() -> None:
    rates = [learning_rate(i, 40, 1.0, lr_steps=(10, 20), lr_gamma=0.5) for i in (9, 10, 19, 20, 39)]
    assert rates == [1.0, 0.5, 0.5, 0.25, 0.25]


def test_cosine_falls_along_half_a_wave() -> None:
    rates = [learning_rate(i, 12, 2.0, "cosine") for i in (0, 4, 6, 8)]
    assert rates == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert learning_rate(11, 12, 2.0, "cosine") == pytest.approx(1 + math.cos(math.pi * 11 / 12))


def test_warmup_rises_in_a_straight_line_to_the_rate() -> None:
    rates = [learning_rate(i, 100, 0.4, lr_steps=(6,), warmup=4) for i in range(8)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.04, 0.04])


def test_caffes_velocity_runs_out_after_the_rate_falls_and_torchs_stops_at_once() -> None:
    moved = {}
    for name in ("caffe_sgd", "sgd"):
        weight = nn.Parameter(torch.zeros(1))
        module = nn.ParameterList([weight])
        optimizer = make_optimizer(module, momentum=0.9, weight_decay=0.0, optimizer=name)
        for rate in (1.0, 0.0):
            set_rate(optimizer, rate)
            weight.grad = torch.ones(1)
            optimizer.step()
        moved[name] = weight.item()
    assert moved == {"caffe_sgd": pytest.approx(-1.9), "sgd": pytest.approx(-1.0)}


def test_an_interrupted_caffe_run_goes_on_with_its_velocity() -> None:
    def run(steps: int, state: dict | None = None, start: float = 0.0) -> tuple[float, dict]:
        weight = nn.Parameter(torch.full((1,), start))
        optimizer = make_optimizer(nn.ParameterList([weight]), optimizer="caffe_sgd")
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            set_rate(optimizer, 0.1)
            weight.grad = torch.ones(1)
            optimizer.step()
        return weight.item(), optimizer.state_dict()

    whole, _ = run(5)
    half, state = run(2)
    assert run(3, state, half)[0] == whole


def test_a_gradient_longer_than_the_limit_is_scaled_down_to_it() -> None:
    """Gradients 3 and 4 of two weights are a vector of length 5; a weight that is not trained does not count."""
    first, second, still = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first, still]}, {"params": [second]}], lr=1.0)

    def gradients() -> list[list[float]]:
        return [p.grad.tolist() for p in (first, second) if p.grad is not None]

    for limit, expected in ((2.5, [[1.5], [0.0, 2.0]]), (5.0, [[3.0], [0.0, 4.0]]), (math.inf, [[3.0], [0.0, 4.0]])):
        first.grad, second.grad = torch.tensor([3.0]), torch.tensor([0.0, 4.0])
        assert clip_gradients(optimizer, limit).item() == 5.0, "the norm before it is scaled"
        assert gradients() == [pytest.approx(row, rel=1e-6) for row in expected]
    first.grad, second.grad = torch.tensor([0.1]), torch.tensor([0.2, 0.3])
    before = gradients()
    clip_gradients(optimizer, 10.0)
    assert gradients() == before, "a shorter one keeps its bits"
