"""The configuration of each verb: its keys and groups of keys.

The groups are filled from the YAML files in configs/; build/ alone turns them into objects. This module imports
neither torch nor Hydra, so that a mistyped key is answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from fastrcnn.settings import (
    SIDE,
    DetectionFormat,
    DetectionSettings,
    ExportFormat,
    ExportPrecision,
    Metric,
    ModelSettings,
    OtherData,
    Precision,
    SelectiveSearchSettings,
    SolverSettings,
    SvmSettings,
    key,
)


@dataclass
class DataConfig:
    """The data set, its proposals, and how images are prepared."""

    name: str = key("custom", "names the folder of the run and of generated proposals", in_path=True)
    root: str | None = key(None, "folder of the data set (for VOC: VOCdevkit), or its only file of annotations")
    train: list[str] = key(["trainval"], "splits to train on: SPLIT or FOLDER/SPLIT below root, or a file there")
    val: list[str] | None = key([], "splits to choose the best weights on; null: val, if neither train nor test has it")
    test: list[str] = key(["test"], "splits to evaluate on at the end; [] trains without")
    classes: list[str] | None = key(None, "names of the classes; null: all that the annotations of `train` have")
    other_classes: OtherData = key("refuse", "what happens to objects of classes not in `classes`")
    first_pixel: int = key(1, "coordinate of the first pixel in XML files; 0 in zero-based sets", least=0, most=1)
    max_images: int | None = key(None, "use only the first so many images of each split list; null: all", least=1)
    use_difficult: bool = key(True, "train on objects marked difficult, as the author's code does")
    skip_bad: bool = key(False, "leave out broken files and objects and say how many, instead of stopping")
    metric: Metric = key("voc07", "AP at 11 points, as the area under the curve, or as the mean over IoU .5 to .95")
    proposals: str | None = key(None, "a proposal store; null: selective search makes them and keeps them")
    missing_proposals: OtherData = key("refuse", "what happens to images that `proposals` lacks")
    proposal_cache: str = key("data/proposals", "folder where generated proposals are kept")
    max_proposals: int = key(2000, "proposals used of an image, the best first", least=1)
    short_sides: list[int] = key([600], "short sides in training; one is drawn for each image", **SIDE, some=True)
    long_side: int = key(1000, "the long side is at most this", **SIDE)
    test_short_sides: list[int] = key(
        [600], "short sides in detection; each RoI takes the one where its area is nearest 224 x 224", **SIDE, some=True
    )
    flip: bool = key(True, "mirror half of the training images")
    flip_vertical: bool = key(False, "turn half of the training images upside down")
    transpose: bool = key(False, "swap x and y in half of the training images")
    colour: float = key(0.0, "vary contrast and brightness of each channel by up to this share", least=0, most=1)
    crop: float = key(0.0, "share of training images of which a part is shown, which cuts no object", least=0, most=1)
    selective_search: SelectiveSearchSettings = field(default_factory=SelectiveSearchSettings)


@dataclass
class RuntimeConfig:
    """The machine, and how often things are written. None of it changes what is learned, but for the seed and
    the precision."""

    device: str = key("auto", "auto | cpu | cuda | cuda:1 ...")
    precision: Precision = key("auto", "auto: bfloat16 where the device is fast at it")
    threads: int | None = key(None, "threads of the processor that torch uses; null: its own choice", least=1)
    workers: int | None = key(None, "processes that load images; null: by the number of cores", least=0)
    seed: int = key(0, "decides everything random", least=0)
    compile: bool = key(False, "train with trunk, fc6 and fc7 compiled by torch.compile; needs a C++ compiler")
    cache: float = key(
        0.0, "bytes for maps of frozen layers, kept in the run's folder while it trains; 0: computed each time", least=0
    )
    checkpoint_activations: bool = key(False, "train in less memory: most maps of the trunk are computed twice")
    profile: bool = key(False, "record steps 10 to 19 of a training, as a trace for Perfetto and TensorBoard")
    log_every: int = key(20, "steps between two rows in metrics.csv and TensorBoard", least=1)
    pictures_every: int = key(500, "steps between two pictures in TensorBoard; 0: none", least=0)
    checkpoint_every: int = key(1000, "steps between two checkpoints", least=1)
    keep_checkpoints: int = key(2, "the newest so many are kept, and the best", least=1)
    evaluate_every: int | None = key(
        None,
        "steps between evaluations on data.val, else data.test; 0: at the end; null: a tenth with data.val",
        least=0,
    )
    max_hours: float = key(0.0, "hours after which training saves and ends, to be resumed; 0: no limit", least=0)


@dataclass
class TrainConfig:
    name: str = key("train", "names the experiment: outputs/<name>/<time>-<id>", in_path=True)
    run: str | None = key(None, "folder of the run; null: a new one under outputs/")
    resume: Literal["auto"] | None = key(None, "resume in the folder `run`, or in the newest run of this name")
    start: str | None = key(
        None, "a checkpoint, or a detector's .safetensors or .caffemodel: weights, model and classes to begin with"
    )
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverSettings = field(default_factory=SolverSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class ReproduceConfig(TrainConfig):
    """Beside its own keys those of train, for every experiment."""

    table: int | None = key(None, "number of the table in the paper", least=1, most=8)
    seeds: list[int] = key([0], "each experiment is run once for each of them", least=0)
    output: str | None = key(None, "folder for table-N.md and table-N.json; null: outputs/reproduce/<data.name>")


@dataclass
class Detecting:
    """What verbs have that run a detector."""

    checkpoint: str | None = key(
        None, "a run's folder, a .pt or exported .safetensors or .onnx file, or a detector's .caffemodel"
    )
    data: DataConfig = field(default_factory=DataConfig)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class EvalConfig(Detecting):
    split: str | None = key(None, "split list to evaluate on in place of data.test's, such as val")
    metric: Metric | None = key(None, "null: data.metric")
    competition: bool = key(False, "for a test set without public truth: no AP, but files for its evaluation server")
    output: str | None = key(None, "folder for the results; null: eval/<split> in the run's folder")


@dataclass
class RevalConfig:
    detections: str | None = key(None, "folder of comp4_det_<split>_<class>.txt files, or a COCO results JSON")
    split: str | None = key(None, "split list to evaluate on in place of data.test's")
    metric: Metric | None = key(None, "null: data.metric")
    output: str | None = key(None, "folder for metrics.json and the report; null: none is written")
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class CompareConfig:
    runs: list[str] = key([], "two to five runs, or folders of evaluations; `fastrcnn compare RUN RUN` says the same")
    split: str | None = key(None, "which evaluation of runs that have several: the name of its folder in RUN/eval")
    output: str = key("outputs/compare", "folder for compare.html")
    resamples: int = key(1000, "of the bootstrap over images, which the intervals come from", least=100)
    seed: int = key(0, "of the resamples", least=0)


@dataclass
class DetectConfig(Detecting):
    source: str | None = key(
        None,
        "an image, a folder, a pattern such as 'photos/*.jpg', a .txt file with a path a line, or a video; images are "
        "rotated upright as their EXIF data ask, and boxes are in pixels of the upright image",
    )
    output: str | None = key(None, "folder for images and detections; null: detect/<source> in the run's folder")
    formats: list[DetectionFormat] = key(
        ["json"],
        "json: COCO results; csv; comp4: the devkit's; voc, yolo, coco, labelstudio: labels of what is drawn",
    )
    batch: int = key(1, "images that go through the network together; more is faster on a GPU", least=1)
    every: int = key(1, "of a video, frames from one that is looked at to the next; boxes stay in between", least=1)
    draw_threshold: float | None = key(
        None, "detections with a lower score are not drawn; null: the score of the best F1 in the evaluation, else .5"
    )


@dataclass
class ProposeConfig:
    source: str | None = key(None, "folder or pattern of images, upright as their EXIF data ask, instead of a data set")
    convert: list[str] = key([], "proposals in any format to write in another one: files, or folders of files")
    convention: str | None = key(None, "of the boxes in `convert`, such as yxyx-1-inclusive; null: its format's own")
    ids: str | None = key(None, "text file with the image ids of `convert`, in its order, where it names none")
    output: str | None = key(None, "the store to write (or NAME.mat, NAME.json); null: where training looks for it")
    workers: int | None = key(None, "processes; null: one a core", least=1)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class CheckConfig:
    proposals: str | None = key(None, "a proposal store; null: data.proposals, or those made earlier, if any")
    output: str | None = key(None, "folder for the report; null: outputs/check/<data.name>-<root>-<letters>")
    workers: int | None = key(None, "processes; null: one a core", least=1)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverSettings = field(default_factory=SolverSettings)


@dataclass
class ProposalsCheckConfig:
    proposals: str | None = key(None, "proposals in any format: a file, a folder of files, or a store")
    ids: str | None = key(None, "text file with the image ids of the proposals, in their order, where they name none")
    split: str | None = key(None, "split list to compare with; null: data.train and data.test")
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class FromRun:
    """What verbs have that make something else of a checkpoint."""

    checkpoint: str | None = key(
        None, "a run's folder, a .pt or exported .safetensors file, or a detector's .caffemodel"
    )
    data: DataConfig = field(default_factory=DataConfig)
    detection: DetectionSettings = field(default_factory=DetectionSettings)


@dataclass
class CompressConfig(FromRun):
    fc6: int | None = key(None, "rank of fc6; the paper's is 1024. With fc6 or fc7 alone the other stays", least=1)
    fc7: int | None = key(None, "rank of fc7; the paper's is 256", least=1)
    keep: float | None = key(None, "share of each layer's squared singular values that is kept", above=0, most=1)
    budget: float | None = key(None, "mAP points of 100 that may be lost; the ranks are searched on `split`", least=0)
    split: str | None = key(None, "split list to evaluate on in place of data.test's, such as val")
    output: str | None = key(None, "file to write (NAME.pt); null: compressed/<ranks>/best.pt in the run's folder")
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class SvmConfig(SvmSettings, FromRun):
    split: str | None = key(None, "split list to evaluate on in place of data.test's, such as val")
    output: str | None = key(None, "file to write (NAME.pt); null: svm/best.pt in the run's folder")
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class ExportConfig(FromRun):
    format: ExportFormat | None = key(None, "onnx and pt2 run by themselves; torchvision: a VGG16's state dict")
    precision: ExportPrecision = key("float32", "of the weights; float16: half the size, for format=safetensors only")
    output: str | None = key(None, "file to write; null: export/<network>.<suffix> in the run's folder")


@dataclass
class ReplayConfig:
    file: str | None = key(None, "failed-step-N.pt in a run's folder; `fastrcnn replay FILE` says the same")
    device: str = key("auto", "auto | cpu | cuda | cuda:1 ...")


@dataclass
class ExplainRoiConfig:
    example: Literal["8x8", "16x16"] | None = key(None, "a worked example; null: 8x8, or what else is asked for")
    grid: str | None = key(None, "HEIGHTxWIDTH, a map of cells numbered row by row, or a text file of numbers")
    image: str | None = key(None, "an image, whose brightness stands in for a feature map")
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


def leaves(schema: type, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Every key of a schema, dotted, with its type and its explanation; those of groups follow its own."""
    hints, inner = get_type_hints(schema), groups(schema)
    own = {prefix + f.name: (hints[f.name], f.metadata["help"]) for f in fields(schema) if f.name not in inner}
    for name, group in inner.items():
        own |= leaves(group, f"{prefix}{name}.")
    return own


def groups(schema: type) -> dict[str, type]:
    """The groups of a schema (model, data, ...), with their own schemas."""
    return {n: h for n, h in get_type_hints(schema).items() if is_dataclass(h)}  # type: ignore[misc]
