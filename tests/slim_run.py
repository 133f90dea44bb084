"""The folder of a run with a slim VGG16 that was never trained, its outputs large enough to differ from RoI to RoI."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from fastrcnn.build import models
from fastrcnn.config.compose import compose
from fastrcnn.training import checkpoint

CLASSES = ["cat", "dog"]
WIDTH = 1 / 64


def save(root: Path, run: Path, **model_keys: object) -> Path:
    """root: of the data set that it says it was trained on. model_keys: of the model, beside its width."""
    config = compose("train", ["data=custom", f"data.root={root}", "model=vgg16", f"model.width={WIDTH}"])
    config.model.weights = "somewhere/vgg16.pth"
    for key, value in model_keys.items():
        setattr(config.model, key, value)
    config.data.classes = CLASSES
    torch.manual_seed(0)
    model = models.model(config.model, 2, load=False)
    with torch.no_grad():
        model.cls_score.weight.mul_(30)
        model.bbox_pred.weight.mul_(300)
        model.pixel_mean.copy_(torch.tensor([122.7717, 115.9465, 102.9801]).view(3, 1, 1))
        model.delta_mean.copy_(torch.randn(3, 4) * 0.01)
        model.delta_std.copy_(torch.rand(3, 4) * 0.1 + 0.1)
    content = {"step": 9, "best": 0.5, "classes": CLASSES, "config": asdict(config)}
    checkpoint.save(run / "checkpoints" / "best.pt", content | {"model": model.state_dict()})
    return run
