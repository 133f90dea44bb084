"""Convert the weights of a detector to a different set of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastrcnn.weights.names import OUTPUTS


def for_classes(
    state: Mapping[str, Tensor], old: Sequence[str], fresh: Mapping[str, Tensor], new: Sequence[str]
) -> dict[str, Tensor]:
    """Convert the state dict of a detector from the classes `old` to the classes `new`.

    `old` and `new` are lists of class names. The background and the classes that are in both lists keep their rows in
    the output layers and in the statistics of the regression targets. Other rows are copied from `fresh`, the state
    dict of a newly initialised network with the classes `new`. If the lists share no class, all rows are copied from
    `fresh`, because the trained background row would dominate all scores. A class-agnostic box layer is kept.
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
            result[key] = values[-1:].expand_as(target).clone()  # all classes have the same row
            continue
        width = 4 if key.startswith("bbox_pred") else 1  # rows per class
        rows = target.unflatten(0, (-1, width))
        rows[torch.tensor(to, dtype=torch.long)] = values.unflatten(0, (-1, width))[come].to(target)
        result[key] = rows.flatten(0, 1)
    return result
