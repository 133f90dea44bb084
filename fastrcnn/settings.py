"""Settings that the library takes and the command line has keys for: each key's type, default, bounds and meaning.

They are declared here once. config/schema.py includes them as groups of keys; this module imports neither torch nor
Hydra, so that a mistyped key is answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SIDE: Any = {"least": 1, "most": 32_767}  # bounds in pixels; an image of 32,767 x 32,767 takes 3 GB

NetworkName = Literal["vgg16", "vgg_cnn_m_1024", "caffenet"]
Pixels = Literal["auto", "imagenet_rgb", "caffe_bgr", "caffe_rgb"]
RoiOp = Literal["fast_rcnn", "partition", "truncate", "roi_align", "roi_warp"]
Classifier = Literal["softmax", "svm"]
SearchMode = Literal["fast", "quality", "iccv2011"]
Metric = Literal["voc07", "voc10", "coco"]
OtherData = Literal["refuse", "leave_out"]
OptimizerName = Literal["caffe_sgd", "sgd", "fused_sgd", "adamw"]
ScheduleName = Literal["step", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]
DetectionFormat = Literal["json", "csv", "comp4", "voc", "yolo", "coco", "labelstudio"]
ExportPrecision = Literal["float32", "float16"]
ExportFormat = Literal["onnx", "pt2", "caffemodel", "safetensors", "torchvision"]


def key(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    some: bool = False,
    in_path: bool = False,
) -> Any:
    """A field with its explanation and the bounds of its value, or of each of them.

    some: a list must not be empty. in_path: the value becomes the name of a file or folder, or a part of it.
    """
    metadata = {"help": help, "above": above, "least": least, "most": most, "some": some, "in_path": in_path}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelSettings:
    """The network."""

    network: NetworkName = key("vgg16", "the paper's L, M and S")
    width: float = key(1.0, "factor on the channels; 1 is the paper's, 0.25 a slim network", above=0, most=100)
    batch_norm: bool = key(False, "batch normalisation, for training from scratch")
    weights: str | None = key(
        None,
        "'imagenet', a file (.pth, .safetensors, .caffemodel) of the trunk or more, a run, or null: from scratch",
    )
    pixels: Pixels = key("auto", "what `weights` expects; auto: as known")
    finetune_from: str = key(
        "conv1_1", "first layer that is trained: a convolution, fc6, fc7 or bbox_pred; the paper's VGG16: conv3_1"
    )
    roi_op: RoiOp = key("fast_rcnn", "how RoIs are pooled; fast_rcnn is the paper's")
    scale_maps: bool | None = key(
        None, "divide maps by their size, measured as training begins; null: where fc6 begins anew over `weights`"
    )
    roi_size: int = key(7, "cells along each side of a pooled RoI", least=1, most=1000)
    roi_features: list[str] = key(["conv5_3"], "layers that RoIs are pooled from", some=True)
    head: list[int] | None = key(
        None, "features of fc6 and fc7, as [1024,1024]; null: the paper's times `width`", least=1, most=1_000_000
    )
    dropout: float = key(0.5, "after fc6 and fc7", least=0, most=1)
    class_agnostic: bool = key(False, "one box regression for all classes, in place of one for each")
    classifier: Classifier = key("softmax", "svm: class scores are margins of SVMs, as `fastrcnn svm` makes them")
    fc6_rank: int | None = key(None, "fc6 as two layers of this rank, as `compress` makes them; null: one", least=1)
    fc7_rank: int | None = key(None, "the same of fc7", least=1)


@dataclass
class SelectiveSearchSettings:
    """How proposals are made where none are given."""

    mode: SearchMode = key(
        "fast", "two or five colour spaces; iccv2011: four, with the rules of the first paper's code"
    )
    side: int = key(
        320, "longer side of the image that is searched, in pixels; 0: it is not resized", **SIDE | {"least": 0}
    )
    k: list[float] = key([25.0, 50.0, 100.0, 200.0], "coarseness; larger finds larger things", above=0, some=True)
    sigma: float = key(0.8, "blur before segmentation, in pixels of the searched image", above=0)
    min_size: int = key(50, "area of the smallest segment, in pixels of the searched image; 0: k", least=0)
    min_side: float = key(0.0, "boxes with a shorter side are dropped, in pixels of the original")
    near: float = key(
        0.9, "of boxes that overlap by this much only the best is kept; of the first 1,500, by 5/6 of it", above=0
    )
    max_boxes: int = key(2000, "boxes kept of an image", least=1)


@dataclass
class SolverSettings:
    """The mini-batch, the loss and the optimiser; the defaults are the paper's."""

    iterations: int = key(40000, "training steps", least=1)
    patience: int = key(0, "evaluations on data.val without a better mAP after which training ends; 0: never", least=0)
    images_per_batch: int = key(2, "images in a batch, of all processes together", least=1)
    group_aspects: bool = key(False, "batches of images all wider than high, or none: less padding")
    accumulate: int = key(1, "batches in a step, whose gradients are averaged: as larger ones, in less memory", least=1)
    rois_per_image: int = key(64, "RoIs drawn from each", least=1)
    fg_fraction: float = key(0.25, "largest share of foreground among them", least=0, most=1)
    fg_iou: float = key(0.5, "least overlap with the truth that makes a RoI foreground", above=0, most=1)
    bg_iou: list[float] = key([0.1, 0.5], "background: best overlap in [first, second)", least=0, most=1)
    box_weight: float = key(1.0, "weight of the box loss; 0: classes alone are trained", least=0)
    optimizer: OptimizerName = key(
        "caffe_sgd", "caffe_sgd: rate inside the velocity; fused_sgd: a faster sgd; adamw: needs an lr near .0001"
    )
    lr: float = key(0.001, "learning rate", above=0)
    schedule: ScheduleName = key("step", "how the rate falls: at lr_steps, or along half a wave")
    lr_steps: list[int] = key([30000], "steps at which the rate is multiplied by lr_gamma", least=1)
    lr_gamma: float = key(0.1, "see lr_steps", above=0)
    warmup: int = key(0, "steps over which the rate rises from 0", least=0)
    momentum: float = key(0.9, "of stochastic gradient descent; of adamw the first beta", least=0, most=1)
    weight_decay: float = key(0.0005, "of weights; biases and normalisation do not decay", least=0)
    bias_lr_factor: float = key(2.0, "factor on the rate of biases", least=0)
    clip_gradients: float | None = key(
        None, "largest norm of a step's gradient; a larger one is scaled down to it; null: no limit", above=0
    )


@dataclass
class DetectionSettings:
    """From scores and boxes to detections; see model/postprocess.py."""

    score_threshold: float | None = key(0.05, "detections with a lower score, or margin, are dropped; null: none are")
    box_regression: bool = key(True, "move boxes as the network says; false: RoIs are detections as they are")
    nms_iou: float = key(0.3, "a box overlapping a better one of its class by this much is dropped", least=0, most=1)
    max_per_class: int | None = key(None, "best boxes of a class that enter the suppression; null: all", least=1)
    max_per_image: int | None = key(100, "detections kept of an image; null: all", least=1)
    average_per_class: int | None = key(
        None, "evaluation: best boxes of a class before suppression, kept per image on average; null: all", least=1
    )
    rois_per_chunk: int = key(500, "RoIs that go through fc6 and fc7 at a time; less needs less memory", least=1)


@dataclass
class SvmSettings:
    """How SVMs are trained on the features of fc7; the defaults are the author's."""

    c: float = key(0.001, "weight of the hinge losses against half the squared length of the weights", above=0)
    bias_scaling: float = key(10.0, "the bias is a weight on a feature of this constant value", above=0)
    positive_weight: float = key(2.0, "factor on the loss of positives", above=0)
    negative_iou: float = key(0.3, "boxes that overlap every object of a class by less are negatives", above=0, most=1)
    retrain_after: int = key(2000, "a class is trained again once more than so many negatives came to it", least=1)
    feature_norm: float = key(20.0, "mean length that the features of fc7 are scaled to", above=0)
