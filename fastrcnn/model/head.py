"""What follows RoI pooling: fc6 and fc7, each one layer or, compressed, two."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


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
