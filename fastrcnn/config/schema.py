"""The schema of the configuration: every key, its type, its default and what it means.

The groups are filled from the YAML files in configs/; build.py alone turns them into objects. This module imports
neither torch nor Hydra, so that a mistyped key is answered at once.
"""

from __future__ import annotations

import math
import operator
import re
import types
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from fastrcnn.errors import UserError, nearest

MOST_PIXELS = 32_767  # along a side; an image of 32,767 x 32,767 takes 3 GB
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
LONGEST_NAME = 150  # bytes; a file system takes 255, of which times, numbers and suffixes need some
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
BOUNDS = (("above", operator.gt, "more than"), ("least", operator.ge, "at least"), ("most", operator.le, "at most"))


def key(
    default: Any,
    help: str,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    in_path: bool = False,
) -> Any:
    """A field with its explanation and the bounds of its value, or of each of them. in_path: whether the value becomes
    the name of a file or folder, or a part of it."""
    metadata = {"help": help, "above": above, "least": least, "most": most, "in_path": in_path}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """The network."""

    network: str = key("vgg16", "vgg16 | vgg_cnn_m_1024 | caffenet: the paper's L, M and S")
    width: float = key(
        1.0, "factor on the channels of the network; 1 is the paper's, 0.25 a slim one", above=0, most=100
    )
    batch_norm: bool = key(False, "batch normalisation, for training from scratch")
    weights: str | None = key(
        None, "'imagenet', a file of the network's weights (.pth, .safetensors, .caffemodel), or null: from scratch"
    )
    pixels: str = key("auto", "what `weights` expects: auto | imagenet_rgb | caffe_bgr | caffe_rgb; auto: as known")
    finetune_from: str = key(
        "conv1_1", "first layer that is trained: a convolution, fc6, fc7 or bbox_pred; the paper's VGG16: conv3_1"
    )
    roi_op: str = key("fast_rcnn", "fast_rcnn | partition | truncate | roi_align | roi_warp")
    roi_size: int = key(7, "cells along each side of a pooled RoI", least=1, most=1000)
    roi_features: list[str] = key(["conv5_3"], "layers that RoIs are pooled from")
    dropout: float = key(0.5, "after fc6 and fc7", least=0, most=1)
    class_agnostic: bool = key(False, "one box regression for all classes, in place of one for each")
    classifier: str = key("softmax", "softmax | svm: class scores are margins of SVMs, as `fastrcnn svm` makes them")
    fc6_rank: int | None = key(None, "fc6 as two layers of this rank, as `compress` makes them; null: one", least=1)
    fc7_rank: int | None = key(None, "the same of fc7", least=1)


@dataclass
class SelectiveSearchConfig:
    """How proposals are made where none are given."""

    mode: str = key("fast", "fast | quality: two or five colour spaces")
    side: int = key(320, "longer side of the picture that is searched, in pixels", least=1, most=MOST_PIXELS)
    k: list[float] = key([25.0, 50.0, 100.0, 200.0], "coarseness of the segmentations; larger finds larger things")
    sigma: float = key(0.8, "blur before segmentation, in pixels of the searched picture")
    min_size: int = key(50, "area of the smallest segment, in pixels of the searched picture")
    min_side: float = key(0.0, "boxes with a shorter side are dropped, in pixels of the original")
    near: float = key(0.9, "of boxes that overlap by this much only one is kept")
    max_boxes: int = key(2000, "boxes kept of a picture")


@dataclass
class DataConfig:
    """The data set, its proposals, and how pictures are prepared."""

    name: str = key("custom", "names the folder of the run and of generated proposals", in_path=True)
    root: str | None = key(None, "folder of the data set (for VOC: VOCdevkit), or a COCO annotation file")
    train: list[str] = key(["trainval"], "splits to train on: SPLIT or FOLDER/SPLIT below root, or a COCO FILE.json")
    test: list[str] = key(["test"], "splits to evaluate on; [] trains without an evaluation")
    classes: list[str] | None = key(None, "names of the classes; null: all that the annotations of `train` have")
    other_classes: str = key("refuse", "refuse | leave_out: what happens to objects of classes not in `classes`")
    first_pixel: int = key(
        1, "coordinate of the first pixel in XML files: 1 in VOC, 0 in zero-based sets", least=0, most=1
    )
    max_images: int | None = key(None, "use only the first so many pictures of each split list; null: all", least=1)
    use_difficult: bool = key(True, "train on objects marked difficult, as the author's code does")
    skip_bad: bool = key(False, "leave out broken files and objects and say how many, instead of stopping")
    metric: str = key("voc07", "AP: voc07: at 11 points; voc10: area under the curve; coco: mean over IoU .5 to .95")
    proposals: str | None = key(None, "a proposal store; null: selective search makes them and keeps them")
    missing_proposals: str = key("refuse", "refuse | leave_out: what happens to images that `proposals` lacks")
    proposal_cache: str = key("data/proposals", "folder where generated proposals are kept")
    max_proposals: int = key(2000, "proposals used of a picture, the best first", least=1)
    short_sides: list[int] = key(
        [600], "short side of training pictures; one of them is drawn for each", least=1, most=MOST_PIXELS
    )
    long_side: int = key(1000, "the long side is at most this", least=1, most=MOST_PIXELS)
    test_short_sides: list[int] = key(
        [600],
        "short sides in evaluation and detection; each RoI takes the one where its area is nearest 224 x 224",
        least=1,
        most=MOST_PIXELS,
    )
    flip: bool = key(True, "mirror half of the training pictures")
    flip_vertical: bool = key(False, "turn half of the training pictures upside down")
    transpose: bool = key(False, "swap x and y in half of the training pictures")
    colour: float = key(0.0, "vary contrast and brightness of each channel by up to this share", least=0, most=1)
    selective_search: SelectiveSearchConfig = field(default_factory=SelectiveSearchConfig)


@dataclass
class SolverConfig:
    """The mini-batch, the loss and the optimiser; the defaults are the paper's."""

    iterations: int = key(40000, "training steps", least=1)
    images_per_batch: int = key(2, "pictures in a batch, of all processes together", least=1)
    group_aspects: bool = key(False, "batches of pictures all wider than high, or none: less padding")
    accumulate: int = key(1, "batches in a step, whose gradients are averaged: as larger ones, in less memory", least=1)
    rois_per_image: int = key(64, "RoIs drawn from each", least=1)
    fg_fraction: float = key(0.25, "largest share of foreground among them", least=0, most=1)
    fg_iou: float = key(0.5, "least overlap with the truth that makes a RoI foreground", above=0, most=1)
    bg_iou: list[float] = key([0.1, 0.5], "background: best overlap in [first, second)", least=0, most=1)
    box_weight: float = key(1.0, "weight of the box loss; 0: classes alone are trained", least=0)
    optimizer: str = key(
        "caffe_sgd", "caffe_sgd: the rate inside the velocity, as in Caffe | sgd: torch's | fused_sgd: the same, faster"
    )
    lr: float = key(0.001, "learning rate", above=0)
    schedule: str = key("step", "step | cosine")
    lr_steps: list[int] = key([30000], "steps at which the rate is multiplied by lr_gamma", least=1)
    lr_gamma: float = key(0.1, "see lr_steps", above=0)
    warmup: int = key(0, "steps over which the rate rises from 0", least=0)
    momentum: float = key(0.9, "of stochastic gradient descent", least=0, most=1)
    weight_decay: float = key(0.0005, "of weights; biases and normalisation do not decay", least=0)
    bias_lr_factor: float = key(2.0, "factor on the rate of biases", least=0)


@dataclass
class DetectionConfig:
    """From scores and boxes to detections."""

    score_threshold: float | None = key(
        0.05, "detections with a lower score are dropped, a probability or a margin of SVMs; null: none are"
    )
    box_regression: bool = key(True, "move boxes as the network says; false: RoIs are detections as they are")
    nms_iou: float = key(0.3, "a box overlapping a better one of its class by this much is dropped", least=0, most=1)
    max_per_class: int | None = key(None, "best boxes of a class that enter the suppression; null: all", least=1)
    max_per_image: int | None = key(100, "detections kept of a picture; null: all", least=1)
    average_per_class: int | None = key(
        None, "evaluation: best boxes of a class before suppression, kept per picture on average; null: all", least=1
    )
    rois_per_chunk: int = key(500, "RoIs that go through fc6 and fc7 at a time; less needs less memory", least=1)


@dataclass
class RuntimeConfig:
    """The machine, and how often things are written. None of it changes what is learned, but for the seed and
    the precision."""

    device: str = key("auto", "auto | cpu | cuda | cuda:1 ...")
    precision: str = key("auto", "auto | float32 | bfloat16; auto: bfloat16 where the device is fast at it")
    threads: int | None = key(None, "threads of the processor that torch uses; null: its own choice", least=1)
    workers: int | None = key(None, "processes that load pictures; null: by the number of cores", least=0)
    seed: int = key(0, "decides everything random", least=0)
    compile: bool = key(False, "train with trunk, fc6 and fc7 compiled by torch.compile; needs a C++ compiler")
    checkpoint_activations: bool = key(
        False, "train in less memory: most maps of the trunk are computed again on the way back instead of kept"
    )
    profile: bool = key(False, "record steps 10 to 19 of a training, as a trace for Perfetto and TensorBoard")
    log_every: int = key(20, "steps between two rows in metrics.csv and TensorBoard", least=1)
    pictures_every: int = key(500, "steps between two pictures in TensorBoard; 0: none", least=0)
    checkpoint_every: int = key(1000, "steps between two checkpoints", least=1)
    keep_checkpoints: int = key(2, "the newest so many are kept, and the best", least=1)
    evaluate_every: int = key(0, "steps between two evaluations; 0: at the end only", least=0)


@dataclass
class TrainConfig:
    """fastrcnn train"""

    name: str = key("train", "names the experiment: outputs/<name>/<time>-<id>", in_path=True)
    run: str | None = key(None, "folder of the run; null: a new one under outputs/")
    resume: str | None = key(None, "'auto': go on in the folder `run` (or in the newest of this name)")
    start: str | None = key(
        None, "checkpoint or detector's .caffemodel whose weights training begins with; model and classes are as there"
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class ReproduceConfig(TrainConfig):
    """fastrcnn reproduce; beside its own keys those of train, for every experiment"""

    table: int | None = key(None, "number of the table in the paper", least=1, most=8)
    seeds: list[int] = key([0], "each experiment is run once for each of them", least=0)
    output: str | None = key(None, "folder for table-N.md and table-N.json; null: outputs/reproduce/<data.name>")


@dataclass
class EvalConfig:
    """fastrcnn eval"""

    checkpoint: str | None = key(None, "a run's folder, a .pt or exported .onnx file, or a detector's .caffemodel")
    split: str | None = key(None, "split list to evaluate on in place of data.test's, such as val")
    metric: str | None = key(None, "voc07 | voc10 | coco; null: data.metric")
    competition: bool = key(False, "for a test set without public truth: no AP, but files for its evaluation server")
    output: str | None = key(None, "folder for the results; null: eval/<split> in the run's folder")
    data: DataConfig = field(default_factory=DataConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class RevalConfig:
    """fastrcnn reval"""

    detections: str | None = key(None, "folder of comp4_det_<split>_<class>.txt files, or a COCO results JSON")
    split: str | None = key(None, "split list to evaluate on in place of data.test's")
    metric: str | None = key(None, "voc07 | voc10 | coco; null: data.metric")
    output: str | None = key(None, "folder for metrics.json and the report; null: none is written")
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class CompareConfig:
    """fastrcnn compare"""

    runs: list[str] = key([], "two to five runs, or folders of evaluations; `fastrcnn compare RUN RUN` says the same")
    split: str | None = key(None, "which evaluation of runs that have several: the name of its folder in RUN/eval")
    output: str = key("outputs/compare", "folder for compare.html")
    resamples: int = key(1000, "of the bootstrap over images, which the intervals come from", least=100)
    seed: int = key(0, "of the resamples", least=0)


@dataclass
class DetectConfig:
    """fastrcnn detect"""

    checkpoint: str | None = key(None, "a run's folder, a .pt or exported .onnx file, or a detector's .caffemodel")
    source: str | None = key(
        None,
        "a picture, a folder, a pattern such as 'photos/*.jpg', a .txt file with a path a line, or a video; images are "
        "rotated upright as their EXIF data ask, and boxes are in pixels of the upright image",
    )
    output: str | None = key(None, "folder for pictures and detections; null: detect/<source> in the run's folder")
    formats: list[str] = key(["json"], "of the detections: json: COCO's results | csv | comp4: the VOC devkit's")
    batch: int = key(1, "pictures that go through the network together; more is faster on a GPU", least=1)
    every: int = key(1, "of a video, frames from one that is looked at to the next; boxes stay in between", least=1)
    draw_threshold: float = key(0.5, "detections with a lower score, a probability or a margin, are not drawn")
    data: DataConfig = field(default_factory=DataConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class ProposeConfig:
    """fastrcnn propose"""

    source: str | None = key(
        None, "a folder or pattern of pictures, in place of a data set; rotated upright as their EXIF data ask"
    )
    convert: list[str] = key([], "proposals in any format to write in another one: files, or folders of files")
    convention: str | None = key(None, "of the boxes in `convert`, such as yxyx-1-inclusive; null: its format's own")
    ids: str | None = key(None, "text file with the image ids of `convert`, in its order, where it names none")
    output: str | None = key(None, "the store to write (or NAME.mat, NAME.json); null: where training looks for it")
    workers: int | None = key(None, "processes; null: one a core", least=1)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class CheckConfig:
    """fastrcnn check"""

    proposals: str | None = key(None, "a proposal store; null: data.proposals, or those made earlier, if any")
    output: str | None = key(
        None, "folder for report.html and report.json; null: outputs/check/<data.name>-<root>-<letters>"
    )
    workers: int | None = key(None, "processes; null: one a core", least=1)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)


@dataclass
class ProposalsCheckConfig:
    """fastrcnn proposals-check"""

    proposals: str | None = key(None, "proposals in any format: a file, a folder of files, or a store")
    ids: str | None = key(None, "text file with the image ids of the proposals, in their order, where they name none")
    split: str | None = key(None, "split list to compare with; null: data.train and data.test")
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class CompressConfig:
    """fastrcnn compress"""

    checkpoint: str | None = key(None, "a run's folder, a .pt file, or a detector's .caffemodel")
    fc6: int | None = key(None, "rank of fc6; the paper's is 1024. With fc6 or fc7 alone the other stays", least=1)
    fc7: int | None = key(None, "rank of fc7; the paper's is 256", least=1)
    keep: float | None = key(
        None, "share of each layer's energy, its squared singular values, that is kept", above=0, most=1
    )
    budget: float | None = key(None, "mAP points of 100 that may be lost; the ranks are searched on `split`", least=0)
    split: str | None = key(None, "split list to evaluate on in place of data.test's, such as val")
    output: str | None = key(None, "file to write (NAME.pt); null: compressed/<ranks>/best.pt in the run's folder")
    data: DataConfig = field(default_factory=DataConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class SvmConfig:
    """fastrcnn svm"""

    checkpoint: str | None = key(None, "a run's folder, a .pt file, or a detector's .caffemodel")
    c: float = key(0.001, "weight of the hinge losses against half the squared length of the weights", above=0)
    bias_scaling: float = key(10.0, "the bias is a weight on a feature of this constant value", above=0)
    positive_weight: float = key(2.0, "factor on the loss of positives", above=0)
    negative_iou: float = key(0.3, "boxes that overlap every object of a class by less are negatives", above=0, most=1)
    retrain_after: int = key(2000, "a class is trained again once more than so many negatives came to it", least=1)
    feature_norm: float = key(20.0, "mean length that the features of fc7 are scaled to", above=0)
    split: str | None = key(None, "split list to evaluate on in place of data.test's, such as val")
    output: str | None = key(None, "file to write (NAME.pt); null: svm/best.pt in the run's folder")
    data: DataConfig = field(default_factory=DataConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class ExportConfig:
    """fastrcnn export"""

    checkpoint: str | None = key(None, "a run's folder, a .pt file, or a detector's .caffemodel")
    format: str | None = key(
        None,
        "onnx | pt2: torch.export's, both run by themselves | caffemodel: the author's layout | safetensors | "
        "torchvision: a VGG16's state dict",
    )
    output: str | None = key(None, "file to write; null: export/<network>.<suffix> in the run's folder")
    data: DataConfig = field(default_factory=DataConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)


@dataclass
class ReplayConfig:
    """fastrcnn replay"""

    file: str | None = key(None, "failed-step-N.pt in a run's folder; `fastrcnn replay FILE` says the same")
    device: str = key("auto", "auto | cpu | cuda | cuda:1 ...")


@dataclass
class ExplainRoiConfig:
    """fastrcnn explain-roi"""

    example: str | None = key(None, "8x8 or 16x16, the worked examples; 8x8 where nothing else is asked for")
    grid: str | None = key(None, "HEIGHTxWIDTH, a map of cells numbered row by row, or a text file of numbers")
    image: str | None = key(None, "a picture, whose brightness stands in for a feature map")
    roi: list[float] = key([], "x1, y1, x2, y2 in pixels of the image")
    stride: int = key(16, "pixels of the image per cell of the map")
    output_size: list[int] = key([7, 7], "rows and columns of bins")
    output: str = key("outputs/explain-roi", "folder for the PNG and the SVG")


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "reproduce": ReproduceConfig,
    "eval": EvalConfig,
    "reval": RevalConfig,
    "compare": CompareConfig,
    "detect": DetectConfig,
    "compress": CompressConfig,
    "svm": SvmConfig,
    "export": ExportConfig,
    "propose": ProposeConfig,
    "check": CheckConfig,
    "proposals-check": ProposalsCheckConfig,
    "replay": ReplayConfig,
    "explain-roi": ExplainRoiConfig,
}


def check_bounds(config: Any, prefix: str = "") -> None:
    """Raises UserError for a value of a configuration that is out of the bounds its key has."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            check_bounds(value, f"{prefix}{f.name}.")
            continue
        numbers = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
        if not all(math.isfinite(n) for n in numbers if isinstance(n, float)):
            raise UserError(f"{prefix}{f.name}={value}: should be a finite number.")
        if f.metadata.get("in_path"):
            check_name(prefix + f.name, value)
        for bound, holds, words in BOUNDS:
            limit = f.metadata.get(bound)
            if limit is not None and not all(holds(n, limit) for n in numbers):
                raise UserError(f"{prefix}{f.name}={value}: should be {words} {limit}.")


def check_name(key: str, value: str) -> None:
    """Raises UserError for a value that cannot be the name of a file or folder, or a part of it."""
    if value in ("", ".", "..") or any(letter in "/\\" or not letter.isprintable() for letter in value):
        raise UserError(
            f"{key}={value!r}: becomes the name of a folder, so it should have neither / nor \\ nor control characters."
        )
    if len(value.encode(errors="surrogateescape")) > LONGEST_NAME:
        raise UserError(
            f"{key}={value[:20]}...: becomes the name of a folder; at most {LONGEST_NAME} bytes are allowed."
        )


def filled(schema: type, values: Any, prefix: str = "") -> Any:
    """An instance of a schema with values from a file: plain data, of which no `${...}` is resolved.

    Keys that are not there keep their defaults. Raises UserError for an unknown key, and for a value of another type or
    out of bounds.
    """
    config = _filled(schema, values, prefix)
    check_bounds(config, prefix)
    return config


def _filled(schema: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(
            f"{prefix.removesuffix('.') or 'configuration'}: should be keys with values, is {_shown(values)}."
        )
    hints = get_type_hints(schema)
    taken = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"unknown key '{prefix}{str(name)[:60]}'.{nearest(str(name)[:60], hints)}")
        hint = hints[name]
        nested = is_dataclass(hint)
        taken[name] = _filled(hint, value, f"{prefix}{name}.") if nested else typed(prefix + name, value, hint)  # type: ignore[arg-type]
    return schema(**taken)


def typed(key: str, value: Any, hint: Any) -> Any:
    """A value from a file as the type of its key: `str | None`, `list[int]`, ... Raises UserError for another type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise UserError(f"{key}: should be a list, is {_shown(value)}.")
        return [typed(key, element, get_args(kind)[0]) for element in value]
    if kind is float and isinstance(value, str) and NUMBER.fullmatch(value):  # 1e-3 without a point is text to YAML
        return float(value)
    if kind is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if kind is str and type(value) is int and abs(value) < 2**63:
        return str(value)
    if type(value) is not kind or (kind is int and abs(value) >= 2**63):
        raise UserError(f"{key}: should be {WORDS[kind]}, is {_shown(value)}.")
    return value


def _shown(value: Any) -> str:
    """A value of a file in a message; of a container its type alone, since it may be of any size."""
    return type(value).__name__ if isinstance(value, (list, dict, tuple)) else f"{str(value)[:60]!r}"


def leaves(schema: type, prefix: str = "") -> dict[str, tuple[Any, Any, str]]:
    """Every key of a schema, dotted, with its type, its default and its explanation."""
    hints = get_type_hints(schema)
    instance = schema()
    found: dict[str, tuple[Any, Any, str]] = {}
    for f in fields(schema):
        hint = hints[f.name]
        if is_dataclass(hint):
            found |= leaves(hint, f"{prefix}{f.name}.")  # type: ignore[arg-type]
        else:
            found[prefix + f.name] = (hint, getattr(instance, f.name), f.metadata.get("help", ""))
    return found


def groups(schema: type) -> dict[str, type]:
    """The groups of a schema (model, data, ...), with their own schemas."""
    return {n: h for n, h in get_type_hints(schema).items() if is_dataclass(h)}  # type: ignore[misc]
