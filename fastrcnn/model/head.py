"""What follows RoI pooling: fc6 and fc7, each one layer or, compressed, two (Girshick, 2015, section 3.1).

A layer W (rows, columns) = U S V^T is compressed to two, S V^T of the t largest singular values and then U, with
t (rows + columns) weights in place of rows x columns. No other pair of that rank is nearer to W (Eckart and Young).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BLOCK = 2048  # columns that are turned into float64 at a time
LAYERS = ("fc6", "fc7")

Ranks = dict[str, int | None]  # of each layer; None: it stays as it is


def largest_rank(rows: int, columns: int) -> int:
    """The largest rank whose two factors have fewer weights than a layer of rows x columns; 0 where there is none."""
    return (rows * columns - 1) // (rows + columns)


def fully_connected(rows: int, columns: int, rank: int | None = None) -> nn.Module:
    """A layer from `columns` to `rows` features; with a rank two in its place, L without bias and U with it, after the
    author's fc6_L and fc6_U (section 3.1 of the paper)."""
    last = nn.Linear(columns if rank is None else rank, rows, dtype=torch.float32)
    nn.init.kaiming_normal_(last.weight, nonlinearity="relu")
    nn.init.zeros_(last.bias)
    if rank is None:
        return last
    first = nn.Linear(columns, rank, bias=False, dtype=torch.float32)
    nn.init.kaiming_normal_(first.weight, nonlinearity="linear")
    return nn.Sequential(OrderedDict(L=first, U=last))


class Head(nn.Module):
    """fc6 and fc7 with ReLU and dropout, on pooled RoIs.

    inputs: channels x cells of a pooled RoI; features: of fc6 and fc7. dropout: probability after each.
    fc6_rank, fc7_rank: of a layer that stands as two, see fully_connected; None: one layer.
    """

    def __init__(
        self,
        inputs: int,
        features: tuple[int, int],
        dropout: float = 0.5,
        fc6_rank: int | None = None,
        fc7_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.out_features = features[1]
        self.fc6 = fully_connected(features[0], inputs, fc6_rank)
        self.fc7 = fully_connected(features[1], features[0], fc7_rank)
        self.dropout = dropout

    def forward(self, pooled: Tensor) -> Tensor:
        """Features (K, D) of pooled RoIs (K, C, roi_size, roi_size)."""
        x = pooled.flatten(1)  # (K, C * roi_size^2)
        for layer in (self.fc6, self.fc7):
            x = nn.functional.relu(layer(x), inplace=True)
            x = nn.functional.dropout(x, self.dropout, self.training)
        return x


def parameter_count(module: nn.Module) -> int:
    """Number of parameters; 134,690,729 for the paper's VGG16 with 20 classes."""
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True)
class Decomposition:
    """What any number of truncations of one layer need."""

    weight: Tensor  # (rows, columns)
    left: Tensor  # (rows, rows) float64, the left singular vectors as columns, largest singular value first
    energy: Tensor  # (rows,) float64, the squared singular values

    def rank_for(self, keep: float) -> int:
        """The least rank, 1 or more, whose squared singular values sum to the share `keep` of all, in (0, 1]."""
        share = self.energy.cumsum(0) / self.energy.sum().clamp(min=torch.finfo(torch.float64).tiny)
        enough = (share >= keep - 1e-12).nonzero()  # the sum has rounding errors, and keep=1 should be reached
        return int(enough[0]) + 1 if len(enough) else 1

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """L (rank, columns) = S V^T = U^T W and U (rows, rank) of the largest singular values."""
        u = self.left[:, :rank]
        parts = [u.T @ block.double() for block in self.weight.split(BLOCK, dim=1)]
        return torch.cat(parts, dim=1).to(self.weight.dtype), u.to(self.weight.dtype).contiguous()


def decompose(weight: Tensor) -> Decomposition:
    """Singular values and left singular vectors of a weight (rows, columns), from the eigenvectors of W W^T.

    Squaring halves the digits of the small singular values, which truncation drops; an SVD takes four times the memory.
    """
    weight = weight.detach()
    gram = weight.new_zeros(len(weight), len(weight), dtype=torch.float64)
    for block in weight.split(BLOCK, dim=1):
        wide = block.double()
        gram.addmm_(wide, wide.T)
    values, vectors = torch.linalg.eigh(gram)  # rising
    return Decomposition(weight, vectors.flip(1), values.flip(0).clamp(min=0))


def factored_state(
    state: Mapping[str, Tensor], decompositions: Mapping[str, Decomposition], ranks: Ranks
) -> dict[str, Tensor]:
    """The state dict of FastRCNN with layers of the given ranks, from that of one without."""
    result = dict(state)
    for name, rank in ranks.items():
        if rank is not None:
            layer = f"head.{name}"
            del result[f"{layer}.weight"]
            result[f"{layer}.L.weight"], result[f"{layer}.U.weight"] = decompositions[name].factors(rank)
            result[f"{layer}.U.bias"] = result.pop(f"{layer}.bias")
    return result


def ranks_for(decompositions: Mapping[str, Decomposition], keep: float) -> Ranks:
    """For each layer by itself the least rank that keeps this share of its energy, where that saves weights."""
    found = {name: (d.rank_for(keep), largest_rank(*d.weight.shape)) for name, d in decompositions.items()}
    return {name: rank if rank <= largest else None for name, (rank, largest) in found.items()}


@dataclass(frozen=True)
class Trial:
    """One step of `search`: the share of energy kept, the ranks, what `measure` gave, and whether that is enough."""

    keep: float
    ranks: Ranks
    value: float
    enough: bool


def search(
    decompositions: Mapping[str, Decomposition], measure: Callable[[float, Ranks], float], lowest: float, most: int = 6
) -> list[Trial]:
    """Trials that halve the share of energy to keep towards the least with which `measure` gives `lowest` or more.

    measure: called with the share and the ranks, at most `most` times, and never twice with the same ranks or with
        none. The last trial that is enough has the least share of those; where there is no such, nothing is enough.
    """
    low, high = 0.0, 1.0  # too little, enough
    trials: list[Trial] = []
    for _ in range(2 * most):
        keep = (low + high) / 2
        ranks = ranks_for(decompositions, keep)
        same = [t for t in trials if t.ranks == ranks]
        if not any(ranks.values()):
            enough = True
        elif same:
            enough = same[0].enough
        elif len(trials) == most:
            break
        else:
            value = measure(keep, ranks)
            enough = value >= lowest
            trials.append(Trial(keep, ranks, value, enough))
        low, high = (low, keep) if enough else (keep, high)
    return trials
