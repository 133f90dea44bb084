"""Settings that are both configuration keys and arguments of functions outside build/, cli/ and config/.

Each setting is declared only here, with its type, default, bounds and help text. config/schema.py adds the classes to
the schemas of the commands. This module imports neither torch nor Hydra, so an invalid key is reported immediately.
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
    """Return a dataclass field with a help text and bounds. For a list, the bounds apply to each element.

    above: exclusive lower bound. least, most: inclusive lower and upper bound. some: whether a list must not be empty.
    in_path: whether the value is used in the name of a file or folder.
    """
    metadata = {"help": help, "above": above, "least": least, "most": most, "some": some, "in_path": in_path}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelSettings:
    """The architecture and the initial weights of the network."""

    network: NetworkName = key(
        "vgg16", "architecture; vgg16, vgg_cnn_m_1024 and caffenet are the paper's models L, M and S"
    )
    width: float = key(
        1.0,
        "multiplier for the number of channels of each layer; 1: the paper's network, 0.25: a slim network",
        above=0,
        most=100,
    )
    batch_norm: bool = key(False, "use batch normalisation; recommended when training from scratch")
    weights: str | None = key(
        None,
        "initial weights: 'imagenet', a file (.pth, .safetensors, .caffemodel) that contains at least the "
        "convolutions, or a run or checkpoint; null: train from scratch",
    )
    pixels: Pixels = key("auto", "pixel normalisation that the weights expect; auto: derive it from the weights")
    finetune_from: str = key(
        "conv1_1",
        "first layer to train (a convolution, fc6, fc7 or bbox_pred); earlier layers are frozen; the paper uses "
        "conv3_1 for VGG16",
    )
    roi_op: RoiOp = key("fast_rcnn", "RoI pooling operator; fast_rcnn: the operator of the author's code")
    scale_maps: bool | None = key(
        None,
        "multiply the feature maps by a constant, so that their magnitude suits a newly initialised fc6; the constant "
        "is measured when training starts; null: do this only if model.weights is set and contains no fc6 of the right "
        "shape",
    )
    roi_size: int = key(7, "height and width of a pooled RoI, in bins", least=1, most=1000)
    roi_features: list[str] = key(["conv5_3"], "convolutions from whose feature maps RoIs are pooled", some=True)
    head: list[int] | None = key(
        None,
        "numbers of output features of fc6 and fc7, e.g. [1024,1024]; null: the paper's numbers multiplied by `width`",
        least=1,
        most=1_000_000,
    )
    dropout: float = key(0.5, "dropout probability after fc6 and fc7", least=0, most=1)
    class_agnostic: bool = key(False, "predict one box per RoI for all classes instead of one box per class")
    classifier: Classifier = key(
        "softmax", "softmax: class scores are probabilities; svm: class scores are SVM margins (see `fastrcnn svm`)"
    )
    fc6_rank: int | None = key(
        None, "rank of fc6 if it is factored into two layers (see `fastrcnn compress`); null: not factored", least=1
    )
    fc7_rank: int | None = key(None, "rank of fc7 if it is factored into two layers; null: not factored", least=1)


@dataclass
class SelectiveSearchSettings:
    """Selective search, which generates proposals if data.proposals is null."""

    mode: SearchMode = key(
        "fast",
        "fast: two colour spaces; quality: five colour spaces; iccv2011: four colour spaces and the rules of the ICCV "
        "2011 code that generated the paper's proposals",
    )
    side: int = key(
        320,
        "length in pixels to which the longer side of the image is resized before the search; 0: no resizing",
        **SIDE | {"least": 0},
    )
    k: list[float] = key(
        [25.0, 50.0, 100.0, 200.0],
        "scale parameters of the initial segmentation; a larger k gives larger segments",
        above=0,
        some=True,
    )
    sigma: float = key(
        0.8, "standard deviation of the Gaussian blur before segmentation, in pixels of the resized image", above=0
    )
    min_size: int = key(
        50, "minimum segment area, in pixels of the resized image; 0: the value of k of each segmentation", least=0
    )
    min_side: float = key(0.0, "drop boxes whose shorter side is less than this, in pixels of the original image")
    near: float = key(
        0.9,
        "drop a box if a better box that is kept has an IoU of at least this value with it; the first 1,500 boxes are "
        "chosen with a lower threshold (5/6 of this value), so that they overlap less; boxes that are dropped only "
        "because of the lower threshold are placed after the first 1,500",
        above=0,
    )
    max_boxes: int = key(2000, "maximum number of boxes per image", least=1)


@dataclass
class SolverSettings:
    """Settings of the mini-batch, the loss and the optimiser. The defaults are the values in the paper."""

    iterations: int = key(40000, "number of training steps", least=1)
    patience: int = key(
        0, "stop after this number of evaluations on data.val without a better mAP; 0: never stop early", least=0
    )
    images_per_batch: int = key(2, "number of images per batch, in total over all processes", least=1)
    group_aspects: bool = key(False, "put landscape images and other images into separate batches, to reduce padding")
    accumulate: int = key(
        1,
        "number of batches whose gradients are averaged in each step; has the effect of a larger batch, but needs less "
        "memory",
        least=1,
    )
    rois_per_image: int = key(64, "number of RoIs sampled per image", least=1)
    fg_fraction: float = key(0.25, "maximum number of foreground RoIs as a fraction of rois_per_image", least=0, most=1)
    fg_iou: float = key(0.5, "minimum IoU with a ground-truth box for a foreground RoI", above=0, most=1)
    bg_iou: list[float] = key(
        [0.1, 0.5],
        "RoIs whose largest IoU with a ground-truth box is in [low, high) are background",
        least=0,
        most=1,
    )
    box_weight: float = key(1.0, "weight of the box regression loss; 0: do not train the box regression", least=0)
    optimizer: OptimizerName = key(
        "caffe_sgd",
        "caffe_sgd: SGD as in Caffe, where a new learning rate affects only new gradients; sgd: PyTorch's SGD; "
        "fused_sgd: a faster implementation of sgd; adamw: AdamW, which needs a learning rate near 0.0001",
    )
    lr: float = key(0.001, "learning rate", above=0)
    schedule: ScheduleName = key(
        "step",
        "learning rate schedule; step: multiply by lr_gamma at lr_steps; cosine: decay to 0 along half a cosine wave",
    )
    lr_steps: list[int] = key([30000], "steps at which the learning rate is multiplied by lr_gamma", least=1)
    lr_gamma: float = key(0.1, "factor by which the learning rate is multiplied at each of lr_steps", above=0)
    warmup: int = key(0, "number of steps over which the learning rate rises linearly from 0; 0: no warm-up", least=0)
    momentum: float = key(0.9, "momentum of SGD, or beta1 of AdamW", least=0, most=1)
    weight_decay: float = key(0.0005, "weight decay; not applied to biases and normalisation layers", least=0)
    bias_lr_factor: float = key(2.0, "factor by which the learning rate of biases is multiplied", least=0)
    clip_gradients: float | None = key(
        None, "maximum norm of the gradient; larger gradients are scaled down to this norm; null: no limit", above=0
    )


@dataclass
class DetectionSettings:
    """Postprocessing, which converts scores and boxes to detections; see model/postprocess.py."""

    score_threshold: float | None = key(
        0.05, "drop detections whose score (probability or SVM margin) is below this value; null: no threshold"
    )
    box_regression: bool = key(
        True, "apply the predicted box regression; false: the boxes of detections are the unchanged RoIs"
    )
    nms_iou: float = key(
        0.3,
        "IoU threshold of non-maximum suppression: drop a box if a better box of its class that is kept has an IoU "
        "of at least this value with it",
        least=0,
        most=1,
    )
    max_per_class: int | None = key(
        None, "maximum number of boxes per class and image before non-maximum suppression; null: no limit", least=1
    )
    max_per_image: int | None = key(100, "maximum number of detections per image; null: no limit", least=1)
    average_per_class: int | None = key(
        None,
        "evaluation only: limit on the average number of boxes per image for each class, before non-maximum "
        "suppression; null: no limit",
        least=1,
    )
    rois_per_chunk: int = key(
        500,
        "maximum number of RoIs that are pooled and go through fc6 and fc7 at a time; a smaller number needs less "
        "memory",
        least=1,
    )


@dataclass
class SvmSettings:
    """Training of SVMs on fc7 features. The defaults are the values in the author's code."""

    c: float = key(0.001, "weight of the hinge loss relative to the regularisation term ||w||^2 / 2", above=0)
    bias_scaling: float = key(
        10.0, "value of the constant feature whose weight is the bias (scikit-learn's intercept_scaling)", above=0
    )
    positive_weight: float = key(2.0, "factor by which the loss of positive examples is multiplied", above=0)
    negative_iou: float = key(
        0.3,
        "an RoI can be a negative example of a class if its IoU with every object of the class is less than this value",
        above=0,
        most=1,
    )
    retrain_after: int = key(
        2000, "retrain the SVM of a class after more than this number of new hard negatives", least=1
    )
    feature_norm: float = key(20.0, "mean norm to which fc7 features are scaled", above=0)
