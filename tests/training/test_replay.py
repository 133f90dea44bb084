"""A step done again says where numbers stop being finite."""

from __future__ import annotations

import pytest
import torch

from fastrcnn.model import networks
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.training.replay import replay


@pytest.mark.parametrize("values", [10**12, 2_000])
def test_the_first_layer_is_named_whichever_strip_comes_first(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    """conv1_1 overflows at the top of the picture alone, conv1_2 everywhere."""
    monkeypatch.setattr(networks, "STRIP_VALUES", values)
    model = FastRCNN(2, width=0.05, mean=(0, 0, 0), std=(1, 1, 1))
    first, second = model.trunk.convs["conv1_1"], model.trunk.convs["conv1_2"]
    with torch.no_grad():
        first.weight.fill_(1e38)
        second.bias.fill_(torch.inf)
    images = torch.zeros(1, 3, 128, 64, dtype=torch.uint8)
    images[:, :, :8] = 255
    found = replay(
        model,
        {
            "images": images,
            "sizes": torch.tensor([[128, 64]]),
            "scales": torch.ones(1, dtype=torch.float64),
            "rois": torch.tensor([[0.0, 0, 0, 40, 40]]),
            "labels": torch.tensor([1]),
            "deltas": torch.zeros(1, 4),
            "dropout_seed": 0,
            "precision": "float32",
            "box_weight": 1.0,
            "model": {},
        },
    )
    assert found.layer == "trunk.convs.conv1_1"
