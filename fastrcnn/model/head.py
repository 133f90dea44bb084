"""The head: fc6 and fc7, and their compression by truncated SVD (Girshick, 2015, section 3.1).

A layer with weight W = U S V^T (rows, columns) is replaced by two layers with weights S V^T and U, which keep only the
t largest singular values. They have t (rows + columns) weights instead of rows x columns. No other matrix of rank t
approximates W better (Eckart and Young).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BLOCK = 2048  # number of columns that are converted to float64 at a time
LAYERS = ("fc6", "fc7")

Ranks = dict[str, int | None]  # rank of each layer by name; None: the layer is not compressed


def largest_rank(rows: int, columns: int) -> int:
    """Return the largest rank at which the two factors have fewer than rows x columns weights, or 0 if no rank has."""
    return (rows * columns - 1) // (rows + columns)


def fully_connected(rows: int, columns: int, rank: int | None = None) -> nn.Module:
    """Create a linear layer from `columns` to `rows` features, or two layers L and U if a rank is given.

    Only U has a bias. L and U correspond to the author's fc6_L and fc6_U (section 3.1 of the paper).
    """
    last = nn.Linear(columns if rank is None else rank, rows, dtype=torch.float32)
    nn.init.kaiming_normal_(last.weight, nonlinearity="relu")
    nn.init.zeros_(last.bias)
    if rank is None:
        return last
    first = nn.Linear(columns, rank, bias=False, dtype=torch.float32)
    nn.init.kaiming_normal_(first.weight, nonlinearity="linear")
    return nn.Sequential(OrderedDict(L=first, U=last))


class Head(nn.Module):
    """The layers fc6 and fc7, each followed by ReLU and dropout.

    inputs: number of values (channels x cells) of a pooled RoI. features: numbers of outputs of fc6 and fc7.
    dropout: dropout probability.
    fc6_rank, fc7_rank: rank of a layer that is replaced by two layers, see fully_connected. None for a single layer.
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
        """Compute the output (K, D) of fc7 from pooled RoIs (K, C, roi_size, roi_size)."""
        x = pooled.flatten(1)  # (K, C * roi_size^2)
        for layer in (self.fc6, self.fc7):
            x = nn.functional.relu(layer(x), inplace=True)
            x = nn.functional.dropout(x, self.dropout, self.training)
        return x


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters (134,690,729 for the paper's VGG16 with 20 classes)."""
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True)
class Decomposition:
    """The singular value decomposition of a layer's weight, which can be truncated to any rank.

    The energy of the layer is the sum of its squared singular values.
    """

    weight: Tensor  # (rows, columns)
    left: Tensor  # (rows, rows) float64, left singular vectors as columns, largest singular value first
    energy: Tensor  # (rows,) float64, squared singular values

    def rank_for(self, keep: float) -> int:
        """Return the smallest rank (at least 1) that keeps at least the fraction `keep` in (0, 1] of the energy."""
        share = self.energy.cumsum(0) / self.energy.sum().clamp(min=torch.finfo(torch.float64).tiny)
        enough = (share >= keep - 1e-12).nonzero()  # tolerates rounding errors, so that keep=1 is reached
        return int(enough[0]) + 1 if len(enough) else 1

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the factors L (rank, columns) and U (rows, rank) for the `rank` largest singular values.

        With the decomposition W = U S V^T, the factor L is S V^T = U^T W.
        """
        u = self.left[:, :rank]
        parts = [u.T @ block.double() for block in self.weight.split(BLOCK, dim=1)]
        return torch.cat(parts, dim=1).to(self.weight.dtype), u.to(self.weight.dtype).contiguous()


def decompose(weight: Tensor) -> Decomposition:
    """Compute the singular values and left singular vectors of W (rows, columns) from the eigenvectors of W W^T.

    Squaring halves the number of correct digits of small singular values, but truncation drops these values. A direct
    SVD would need four times as much memory.
    """
    weight = weight.detach()
    gram = weight.new_zeros(len(weight), len(weight), dtype=torch.float64)
    for block in weight.split(BLOCK, dim=1):
        wide = block.double()
        gram.addmm_(wide, wide.T)
    values, vectors = torch.linalg.eigh(gram)  # in ascending order
    return Decomposition(weight, vectors.flip(1), values.flip(0).clamp(min=0))


def factored_state(
    state: Mapping[str, Tensor], decompositions: Mapping[str, Decomposition], ranks: Ranks
) -> dict[str, Tensor]:
    """Convert the state dict of an uncompressed FastRCNN to one in which fc6 and fc7 have the given ranks."""
    result = dict(state)
    for name, rank in ranks.items():
        if rank is not None:
            layer = f"head.{name}"
            del result[f"{layer}.weight"]
            result[f"{layer}.L.weight"], result[f"{layer}.U.weight"] = decompositions[name].factors(rank)
            result[f"{layer}.U.bias"] = result.pop(f"{layer}.bias")
    return result


def ranks_for(decompositions: Mapping[str, Decomposition], keep: float) -> Ranks:
    """Return for each layer the smallest rank that keeps the fraction `keep` of its energy; see Decomposition.

    The rank of a layer is None if compression would not reduce its number of weights.
    """
    found = {name: (d.rank_for(keep), largest_rank(*d.weight.shape)) for name, d in decompositions.items()}
    return {name: rank if rank <= largest else None for name, (rank, largest) in found.items()}


@dataclass(frozen=True)
class Trial:
    """A trial of `search`: the fraction of energy kept, the ranks, the measured value, and whether it is sufficient."""

    keep: float
    ranks: Ranks
    value: float
    enough: bool


def search(
    decompositions: Mapping[str, Decomposition], measure: Callable[[float, Ranks], float], lowest: float, most: int = 6
) -> list[Trial]:
    """Bisect to find the smallest fraction of energy at which `measure` returns at least `lowest`; return all trials.

    measure: a function of the fraction and the ranks; see ranks_for. It is called at most `most` times, never twice
        with the same ranks, and never with ranks that compress no layer.

    The last trial with `enough` set has the smallest sufficient fraction. If no trial has it set, the search failed.
    """
    low, high = 0.0, 1.0  # low is too small a fraction; high is large enough
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
