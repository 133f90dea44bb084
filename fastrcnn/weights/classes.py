"""The weights of a detector for other classes than it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastrcnn.weights.names import OUTPUTS


def for_classes(
    state: Mapping[str, Tensor], old: Sequence[str], fresh: Mapping[str, Tensor], new: Sequence[str]
) -> dict[str, Tensor]:
    """The state dict of a detector of the classes `old` for one of the classes `new`.

    Classes that both have keep their rows of the outputs and of the statistics of the regression targets, background
    too; other rows are those of `fresh`, the state dict of a new network of the classes `new`. Without any shared class
    the outputs are all fresh, so that background does not win everywhere. A box layer for all classes together stays.
    """
    shared = [name for name in new if name in old]
    to = [0, *(new.index(name) + 1 for name in shared)] if shared else []
    come = [0, *(old.index(name) + 1 for name in shared)] if shared else []
    result = dict(state)
    for key in [k for k in state if k.startswith((*OUTPUTS, "delta_"))]:
        values, target = state[key], fresh[key].clone()
        if key.startswith("bbox_pred") and len(values) == len(target) == 4:
            continue
        if key.startswith("delta_") and len(state["bbox_pred.bias"]) == 4:
            result[key] = values[-1:].expand_as(target).clone()  # one row for all
            continue
        width = 4 if key.startswith("bbox_pred") else 1  # rows of a class
        rows = target.unflatten(0, (-1, width))
        rows[torch.tensor(to, dtype=torch.long)] = values.unflatten(0, (-1, width))[come].to(target)
        result[key] = rows.flatten(0, 1)
    return result
