"""Slim networks of every kind, with outputs that differ from RoI to RoI, and inputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrcnn.config.schema import DataConfig
from fastrcnn.inference.description import Description, describe
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.settings import DetectionSettings, ModelSettings

CLASSES = ("cat", "dog", "owl é")
SMALL = {"roi_features": ["conv5"], "roi_size": 6}
KINDS: dict[str, dict[str, Any]] = {
    "vgg16": {},
    "batch norm": {"batch_norm": True},
    "roi align": {"roi_op": "roi_align"},
    "class-agnostic": {"class_agnostic": True},
    "svm": {"classifier": "svm"},
    "svd": {"fc6_rank": 10, "fc7_rank": 9},
    "three maps": {"roi_features": ["conv3_3", "conv4_3", "conv5_3"]},
    "scaled, a head of its own": {"scale_maps": True, "head": [20, 12]},
    "scaled, two maps": {"scale_maps": True, "roi_features": ["conv4_3", "conv5_3"]},
    "scaled, svd": {"scale_maps": True, "fc6_rank": 10},
    "M": {"network": "vgg_cnn_m_1024", **SMALL},
    "S": {"network": "caffenet", **SMALL},
}


def slim(width: float = 0.06, **keys: Any) -> FastRCNN:
    torch.manual_seed(0)
    model = FastRCNN(len(CLASSES), width=width, **keys).eval()
    with torch.no_grad():
        model.cls_score.weight.normal_(std=0.3)
        model.bbox_pred.weight.normal_(std=0.05)
        model.delta_std.uniform_(0.05, 0.2)
        model.delta_mean.normal_(std=0.1)
        if model.map_scale is not None:
            model.map_scale.copy_(torch.tensor([0.5, 2.0])[: len(model.map_scale)])
        for norm in model.trunk.norms.values():
            assert isinstance(norm, torch.nn.BatchNorm2d)
            norm.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def described(model: FastRCNN, width: float = 0.06, **keys: Any) -> Description:
    """keys: of the model; `detection` and `data` groups as they are by default, but for small pictures."""
    data = vars(DataConfig(test_short_sides=[96], long_side=160, root="somewhere"))
    data["selective_search"] = vars(data["selective_search"]) | {"side": 64, "k": [50.0]}
    whole = {"model": vars(ModelSettings(width=width, **keys)), "data": data, "detection": vars(DetectionSettings())}
    metrics = {"test": {"mAP": 0.5, "metric": "voc07", "images": 3}}
    return describe(model, CLASSES, 7, whole, metrics, {"data": ["Nine images."], "recipe": ["Seven steps."]})


def boxes(n: int, height: int, width: int) -> Tensor:
    """Proposals (n, 4) float32, also at the border."""
    generator = torch.Generator().manual_seed(n)
    size = torch.tensor([width, height, width, height])
    corner = torch.rand(n, 2, generator=generator) * size[:2] * 0.8
    other = corner + 4 + torch.rand(n, 2, generator=generator) * size[:2]
    return torch.minimum(torch.cat((corner, other), dim=1), size).float()


def picture(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8, smooth as pictures are."""
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])
