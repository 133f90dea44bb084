"""What a model card says of a training: sentences, each written by hand for a configuration."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from fastrcnn.config.compose import compose
from fastrcnn.deploy.recipe import training_record


def record(arguments: list[str], step: int = 0, counts: dict[str, Any] | None = None) -> dict[str, Any]:
    return training_record(asdict(compose("train", arguments)), step, counts or {})


def test_the_demo() -> None:
    counts = {"images": 350, "objects": {"circle": 300, "star": 1200}}
    found = record(["experiment=demo", "data.root=/home/someone/shapes"], 1200, counts)
    assert found == {
        **counts,
        "data": [
            "Data set `demo`, split `trainval`: 350 images with 1,500 objects.",
            "Proposals: up to 2,000 of an image, by selective search (`mode=fast`, longer side 224 pixels).",
        ],
        "recipe": [
            "Initial weights: random, nothing pre-trained.",
            "Layers: all trained.",
            # 1200 * 4 / 350 = 13.71
            "1,200 of 1,500 steps of 4 images, 64 RoIs an image, up to 50 % of them objects; "
            "13.7 passes over the images.",
            "Learning rate 0.05, falling along a cosine, after a warm-up of 100 steps; `sgd`, momentum 0.9, "
            "weight decay 0.0005, dropout 0.",
            "Images scaled to a short side of 160 pixels, the long side at most 320; half of them mirrored.",
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=vgg16"], "Initial weights: torchvision's VGG16, trained on ImageNet."),
        (["recipe=paper"], "Initial weights: `VGG16.v2.caffemodel`."),
        (["recipe=paper"], "up to 2,000 of an image, by selective search"),  # so many it makes; 10,000 may be used
        (["recipe=paper"], "Layers: those before conv3_1 kept as they were."),
        (["recipe=paper"], "Learning rate 0.001, times 0.1 after 30,000 steps; `caffe_sgd`"),
        (["model.weights=/home/someone/vgg.pth"], "Initial weights: `vgg.pth`."),
        (["model.weights=/home/someone/vgg.pth", "start=/home/someone/RUN"], "Initial weights: the checkpoint `RUN`."),
        (["solver.box_weight=0"], ", the box regression not trained."),
        (["model.fc6_rank=5"], "fc6 and fc7 factored: fc6 of rank 5."),
        (["data.flip=false"], "no augmentation."),
        (["data.proposals=/home/someone/mcg.proposals"], "Proposals: up to 2,000 of an image, from `mcg.proposals`."),
        (["data.max_images=1"], "Of each split only the first 1 image."),
        (["data.use_difficult=false"], "Objects marked difficult were left out."),
        (["data.other_classes=leave_out"], "Objects of classes other than those above were left out."),
        (["data=voc0712"], "Data set `voc0712`, splits `VOC2007/trainval`, `VOC2012/trainval`."),
    ],
)
def test_a_sentence(arguments: list[str], said: str) -> None:
    found = record([*arguments, "data.root=/home/someone/set"])
    text = "\n".join([*found["data"], *found["recipe"]])
    assert found.get("proposals") == ("mcg.proposals" if "mcg" in arguments[0] else None)
    assert said in text
    assert "someone" not in text, "a place on the machine it was trained on"
