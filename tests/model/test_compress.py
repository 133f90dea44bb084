"""Truncated SVD against numpy's, the paper's counts and sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrcnn.build import models
from fastrcnn.errors import UserError
from fastrcnn.model import head
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.head import (
    Decomposition,
    Head,
    Ranks,
    decompose,
    factored_state,
    largest_rank,
    parameter_count,
    ranks_for,
    search,
)
from fastrcnn.settings import ModelSettings


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def nearest(weight: Tensor, rank: int) -> np.ndarray:
    """The best approximation of a rank, by numpy's SVD."""
    u, s, vt = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def test_the_papers_ranks_have_the_papers_numbers_of_weights() -> None:
    with torch.device("meta"):
        model = FastRCNN(20, fc6_rank=1024, fc7_rank=256)
    shapes = {n.removeprefix("head."): tuple(v.shape) for n, v in model.state_dict().items() if n.startswith("head.")}
    assert shapes == {
        "fc6.L.weight": (1024, 25088),
        "fc6.U.weight": (4096, 1024),
        "fc6.U.bias": (4096,),
        "fc7.L.weight": (256, 4096),
        "fc7.U.weight": (4096, 256),
        "fc7.U.bias": (4096,),
    }
    assert 1024 * 25088 + 4096 * 1024 == 29_884_416
    assert 256 * 4096 + 4096 * 256 == 2_097_152
    assert parameter_count(model) == 134_690_729 - 102_760_448 + 29_884_416 - 16_777_216 + 2_097_152


@pytest.mark.parametrize(
    ("rows", "columns", "most"),
    [
        (4096, 25088, 3521),  # 3521 x 29184 = 102,756,864; a rank more is 102,786,048, above 102,760,448
        (4096, 4096, 2047),  # 2048 x 8192 are just as many weights
        (2, 3, 1),  # 5 of 6
        (2, 2, 0),
        (1, 9, 0),
    ],
)
def test_the_largest_rank_that_saves_anything(rows: int, columns: int, most: int) -> None:
    assert largest_rank(rows, columns) == most


def test_a_rank_that_saves_nothing_is_refused_with_the_numbers() -> None:
    config = ModelSettings(width=0.05, fc6_rank=177)  # fc6: 205 x 1274
    with pytest.raises(UserError, match=r"model.fc6_rank=177: .* 261,783 weights, .* 261,170.* at most 176"):
        models.model(config, 2)
    models.model(ModelSettings(width=0.05, fc6_rank=176), 2)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (20, 20)])
@pytest.mark.parametrize("rank", [1, 5, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_factors_product_is_the_best_approximation_of_its_rank(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], rank: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(head, "BLOCK", 7)
    weight = random(*shape, dtype=dtype)
    first, last = decompose(weight).factors(rank)
    assert (first.shape, last.shape) == ((rank, shape[1]), (shape[0], rank))
    assert first.dtype == last.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose((last.double() @ first.double()).numpy(), nearest(weight, rank), atol=tolerance)


def test_the_first_factor_bears_the_singular_values() -> None:
    """L = S V^T and U with orthonormal columns, as the author's compress_net.py has them."""
    weight = random(9, 30, dtype=torch.float64)
    first, last = decompose(weight).factors(4)
    singular = np.linalg.svd(weight.numpy(), compute_uv=False)
    np.testing.assert_allclose((last.T @ last).numpy(), np.eye(4), atol=1e-12)
    np.testing.assert_allclose((first @ first.T).numpy(), np.diag(singular[:4] ** 2), atol=1e-10)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_the_energy_is_that_of_numpys_singular_values(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    singular = np.zeros(shape[0])
    singular[:12] = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(decompose(weight).energy.numpy(), singular**2, atol=1e-11)


@pytest.mark.parametrize(
    ("keep", "rank"), [(0.01, 1), (0.64, 1), (0.65, 2), (0.8, 2), (0.81, 3), (0.96, 3), (0.97, 4), (1.0, 4)]
)
def test_the_rank_for_a_share_of_the_energy_by_hand(keep: float, rank: int) -> None:
    """Singular values 4, 2, 2, 1: squared 16, 4, 4, 1 of 25, so .64, .80, .96 and 1."""
    weight = torch.zeros(6, 5)
    weight[[0, 1, 2, 3], [1, 0, 4, 3]] = torch.tensor([1.0, 4.0, -2.0, 2.0])
    assert decompose(weight).rank_for(keep) == rank


def test_no_share_takes_more_than_the_true_rank() -> None:
    weight = random(30, 3) @ random(3, 50, seed=1)
    found = decompose(weight.double())
    assert found.rank_for(1.0) == 3
    first, last = found.factors(3)
    torch.testing.assert_close(last @ first, weight.double(), atol=1e-6, rtol=0)


def test_a_layer_of_zeros_has_rank_1_and_stays_zero() -> None:
    found = decompose(torch.zeros(4, 6))
    assert found.rank_for(0.5) == 1
    first, last = found.factors(1)
    assert not (last @ first).any()


def model_with_biases() -> FastRCNN:
    torch.manual_seed(0)
    model = FastRCNN(2, width=0.03, dropout=0.5)
    for layer in (model.head.fc6, model.head.fc7):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.bias)
    return model.eval()


def decompositions(model: FastRCNN) -> dict[str, Decomposition]:
    return {name: decompose(model.state_dict()[f"head.{name}.weight"]) for name in ("fc6", "fc7")}


def test_full_rank_gives_the_same_outputs() -> None:
    model = model_with_biases()  # fc6: 123 x 735, fc7: 123 x 123
    smaller = FastRCNN(2, width=0.03, fc6_rank=123, fc7_rank=123).eval()
    smaller.load_state_dict(factored_state(model.state_dict(), decompositions(model), {"fc6": 123, "fc7": 123}))
    images = torch.randint(0, 256, (1, 3, 64, 80), dtype=torch.uint8)
    rois = torch.tensor([[0, 0, 0, 80, 64], [0, 10, 5, 50, 60]], dtype=torch.float32)
    with torch.no_grad():
        for ours, before in zip(smaller(images, rois), model(images, rois), strict=True):
            torch.testing.assert_close(ours, before, atol=1e-5, rtol=1e-5)


def test_a_compressed_head_computes_the_truncated_layers_with_nothing_between_the_factors() -> None:
    model = model_with_biases()
    smaller = FastRCNN(2, width=0.03, fc6_rank=20, fc7_rank=9).eval()
    smaller.load_state_dict(factored_state(model.state_dict(), decompositions(model), {"fc6": 20, "fc7": 9}))
    pooled = random(5, 15, 7, 7)
    state = {n: v.double().numpy() for n, v in model.head.state_dict().items()}
    x = pooled.flatten(1).double().numpy()
    for name, rank in (("fc6", 20), ("fc7", 9)):
        weight = nearest(torch.from_numpy(state[f"{name}.weight"]), rank)
        x = np.maximum(x @ weight.T + state[f"{name}.bias"], 0)
    with torch.no_grad():
        np.testing.assert_allclose(smaller.head(pooled).numpy(), x, atol=1e-4)


def test_the_bias_stays_with_the_second_factor_and_all_else_as_it_is() -> None:
    model = model_with_biases()
    state = model.state_dict()
    before = {n: v.clone() for n, v in state.items()}
    smaller = factored_state(state, decompositions(model), {"fc6": 20, "fc7": None})
    assert set(smaller) == set(state) - {"head.fc6.weight", "head.fc6.bias"} | {
        "head.fc6.L.weight",
        "head.fc6.U.weight",
        "head.fc6.U.bias",
    }
    assert torch.equal(smaller["head.fc6.U.bias"], before["head.fc6.bias"])
    for name in set(smaller) & set(state):
        assert torch.equal(smaller[name], before[name])
    assert set(state) == set(before)


def test_factors_from_scratch_let_signals_through_as_one_layer_does() -> None:
    torch.manual_seed(0)
    pooled = random(400, 100, 3, 3)
    means = [
        Head(900, (410, 410), fc6_rank=rank, fc7_rank=rank).eval()(pooled).square().mean().item()
        for rank in (None, 100)
    ]
    assert 0.5 < means[1] / means[0] < 2


def flat(rows: int = 64, columns: int = 640) -> Decomposition:
    """All singular values 1: a share keeps so many of the rows."""
    return decompose(torch.eye(rows, columns, dtype=torch.float64))


def test_ranks_are_chosen_for_each_layer_by_itself_where_they_save_anything() -> None:
    found = {"fc6": flat(), "fc7": flat(64, 64)}  # the largest ranks that save: 58 and 31
    assert ranks_for(found, 0.25) == {"fc6": 16, "fc7": 16}
    assert ranks_for(found, 0.5) == {"fc6": 32, "fc7": None}
    assert ranks_for(found, 0.95) == {"fc6": None, "fc7": None}


def test_the_search_halves_towards_the_least_that_is_enough() -> None:
    asked: list[float] = []

    def measure(keep: float, ranks: Ranks) -> float:
        asked.append(keep)
        return (ranks["fc6"] or 0) / 64

    trials = search({"fc6": flat()}, measure, 20 / 64, most=6)
    assert asked == [0.5, 0.25, 0.375, 0.3125, 0.28125, 0.296875]
    assert [t.ranks["fc6"] for t in trials] == [32, 16, 24, 20, 18, 19]
    assert [t.enough for t in trials] == [True, False, True, True, False, False]
    assert [t.value for t in trials if t.enough][-1] == 20 / 64


def test_the_search_measures_nothing_twice_and_not_the_layer_as_it_is() -> None:
    asked: list[int | None] = []

    def measure(keep: float, ranks: Ranks) -> float:
        asked.append(ranks["fc6"])
        return 0.0

    trials = search({"fc6": flat(8, 800)}, measure, 1.0, most=6)  # at most rank 7 saves
    assert asked == [4, 6, 7]
    assert not any(t.enough for t in trials)
