"""The schema of each command's configuration: its keys and groups of keys.

The YAML files in configs/ set the values of the groups, and only build/ creates objects from a configuration. This
module imports neither torch nor Hydra, so an invalid key is reported immediately.
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
    """The data set, its proposals and the image preprocessing."""

    name: str = key(
        "custom", "name of the data set, used in the names of output folders and proposal stores", in_path=True
    )
    root: str | None = key(None, "folder of the data set (for VOC: VOCdevkit), or its annotation file")
    train: list[str] = key(
        ["trainval"], "splits to train on: SPLIT, FOLDER/SPLIT or an annotation file, relative to data.root"
    )
    val: list[str] | None = key(
        [],
        "splits to select the best checkpoint on; []: none; null: `val` if this split exists and shares no image with "
        "`train` or `test`",
    )
    test: list[str] = key(["test"], "splits to evaluate on after training; []: no evaluation")
    classes: list[str] | None = key(None, "class names; null: all classes in the annotations")
    other_classes: OtherData = key(
        "refuse",
        "what to do with objects whose class is not in `classes`; refuse: stop with an error, leave_out: exclude them",
    )
    first_pixel: int = key(
        1, "coordinate of the first pixel in VOC XML files: 1, or 0 if the coordinates are zero-based", least=0, most=1
    )
    max_images: int | None = key(None, "use only the first N images of each split; null: all images", least=1)
    use_difficult: bool = key(True, "train on objects that are marked difficult, as the author's code does")
    skip_bad: bool = key(False, "skip and count invalid files and objects, instead of stopping with an error")
    metric: Metric = key(
        "voc07",
        "voc07: AP over 11 recall levels; voc10: area under the precision-recall curve; coco: mean AP at IoU 0.5 to "
        "0.95",
    )
    proposals: str | None = key(
        None, "proposal store; null: generate proposals by selective search and keep them in `proposal_cache`"
    )
    missing_proposals: OtherData = key(
        "refuse",
        "what to do with images that are missing from `proposals`; refuse: stop with an error, leave_out: skip them",
    )
    proposal_cache: str = key("data/proposals", "folder in which generated proposals are stored")
    max_proposals: int = key(
        2000,
        "maximum number of proposals per image; the first ones are used (generated proposals are sorted, best first); "
        "the paper uses all proposals, so recipe=paper sets 10000",
        least=1,
    )
    short_sides: list[int] = key(
        [600],
        "short sides of training images in pixels; one of them is chosen at random for each image",
        **SIDE,
        some=True,
    )
    long_side: int = key(1000, "maximum long side of training and test images, in pixels", **SIDE)
    test_short_sides: list[int] = key(
        [600],
        "short sides of test images in pixels; each RoI uses the scale at which its area is closest to 224 x 224",
        **SIDE,
        some=True,
    )
    flip: bool = key(True, "flip training images horizontally with probability 0.5")
    flip_vertical: bool = key(False, "flip training images vertically with probability 0.5")
    transpose: bool = key(False, "transpose training images (swap x and y) with probability 0.5")
    colour: float = key(
        0.0,
        "maximum random change of contrast and brightness of each channel of training images, as a fraction",
        least=0,
        most=1,
    )
    crop: float = key(
        0.0, "probability of cropping a training image at random; a crop never cuts an object", least=0, most=1
    )
    mosaics: float = key(
        0.0,
        "number of mosaics to add per training image; each consists of four training images, scaled to fit its "
        "corners; none are added with data.proposals",
        least=0,
        most=10,
    )
    selective_search: SelectiveSearchSettings = field(default_factory=SelectiveSearchSettings)
    # Not a key: the folder for new stores if proposal_cache is from a checkpoint or a run, because paths in such files
    # are only read. If it is empty, new stores are written to proposal_cache.
    own_cache = ""


@dataclass
class RuntimeConfig:
    """The hardware and the output intervals. Only seed, precision and device change a training step beyond rounding."""

    device: str = key("auto", "cpu, cuda or cuda:N; auto: a GPU if available")
    precision: Precision = key(
        "auto", "precision of computations; auto: bfloat16 if the device supports it natively, otherwise float32"
    )
    threads: int | None = key(
        None, "number of CPU threads for torch; null: torch's default, but at most one per available core", least=1
    )
    workers: int | None = key(
        None, "number of worker processes that load images; null: one per two cores, at most 4", least=0
    )
    seed: int = key(0, "random seed", least=0)
    compile: bool = key(
        False, "compile the convolutions, fc6 and fc7 with torch.compile; on a CPU, this needs a C++ compiler"
    )
    cache: float = key(
        0.0,
        "maximum size in bytes of the feature maps of frozen layers that are cached in the run's folder during "
        "training; 0: no feature maps are cached",
        least=0,
    )
    checkpoint_activations: bool = key(
        False, "recompute most feature maps in the backward pass, which reduces memory use in training but takes time"
    )
    profile: bool = key(False, "profile training steps 10 to 19 and write a trace for Perfetto and TensorBoard")
    log_every: int = key(20, "number of steps between rows of metrics.csv and points in TensorBoard", least=1)
    images_every: int = key(500, "number of steps between images in TensorBoard; 0: no images", least=0)
    checkpoint_every: int = key(1000, "number of steps between checkpoints", least=1)
    keep_checkpoints: int = key(2, "number of newest checkpoints to keep, in addition to the best", least=1)
    evaluate_every: int | None = key(
        None,
        "number of steps between evaluations on data.val, or on data.test if data.val is empty; 0: evaluate only at "
        "the end; null: a tenth of the iterations, or 0 if data.val is empty",
        least=0,
    )
    max_hours: float = key(
        0.0, "hours after which training saves a checkpoint and stops; the run can be resumed; 0: no limit", least=0
    )


@dataclass
class TrainConfig:
    name: str = key("train", "name of the run; a new run is written to outputs/<name>/<time>-<id>", in_path=True)
    run: str | None = key(None, "folder of the run; null: a new folder in outputs/<name>")
    resume: Literal["auto"] | None = key(
        None,
        "auto: resume the run in the folder `run`, or the newest run of `name` if `run` is null; null: start a new run",
    )
    start: str | None = key(
        None,
        "run, checkpoint or detector file (.safetensors, .caffemodel) with initial weights, model.* keys and classes",
    )
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverSettings = field(default_factory=SolverSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


SET_BY_REPRODUCE = "not available; `reproduce` sets this key for each experiment"


@dataclass
class ReproduceConfig(TrainConfig):
    """The keys of `train`, which apply to every experiment, and the keys of `reproduce` itself."""

    name: str = key("train", SET_BY_REPRODUCE, in_path=True)
    run: str | None = key(None, SET_BY_REPRODUCE)
    resume: Literal["auto"] | None = key(None, SET_BY_REPRODUCE)
    start: str | None = key(None, SET_BY_REPRODUCE)
    table: int | None = key(None, "required: number of the table in the paper", least=1, most=8)
    seeds: list[int] = key([0], "random seeds; each experiment is run once for each seed", least=0)
    output: str | None = key(
        None, "folder to which table-N.md and table-N.json are written; null: outputs/reproduce/<data.name>"
    )


@dataclass
class Detecting:
    """The keys of commands that run a detector."""

    checkpoint: str | None = key(
        None,
        "required: the folder of a run, outputs/NAME for the newest run of that name, a .pt file, an exported "
        ".safetensors or .onnx file, or a .caffemodel of a detector",
    )
    data: DataConfig = field(default_factory=DataConfig)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class EvalConfig(Detecting):
    split: str | None = key(None, "split to evaluate on instead of data.test, e.g. val")
    metric: Metric | None = key(None, "AP metric; null: data.metric")
    competition: bool = key(
        False,
        "for a test set without public ground truth: write the files for its evaluation server, and do not compute AP",
    )
    output: str | None = key(None, "output folder; null: the folder eval/<split> of the run")


@dataclass
class RevalConfig:
    detections: str | None = key(
        None, "required: a folder with comp4_det_<split>_<class>.txt files, or a COCO results file (JSON)"
    )
    split: str | None = key(None, "split to evaluate on instead of data.test")
    metric: Metric | None = key(None, "AP metric; null: data.metric")
    output: str | None = key(None, "folder to which metrics.json and the report are written; null: write no files")
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class CompareConfig:
    runs: list[str] = key(
        [],
        "required: two to five folders of runs or evaluations; `fastrcnn compare RUN OTHER_RUN` is short for "
        "`fastrcnn compare runs=[RUN,OTHER_RUN]`",
    )
    split: str | None = key(None, "name of the folder in RUN/eval to use if a run has several evaluations")
    output: str = key("outputs/compare", "folder to which compare.html is written")
    resamples: int = key(1000, "number of bootstrap resamples for the confidence intervals", least=100)
    seed: int = key(0, "random seed of the bootstrap", least=0)


@dataclass
class DetectConfig(Detecting):
    source: str | None = key(
        None,
        "required: an image, a folder, a glob pattern such as 'photos/*.jpg', a .txt file with one path per line, "
        "or a video; images are rotated according to their EXIF orientation, and boxes are in pixels of the rotated "
        "image",
    )
    output: str | None = key(None, "output folder; null: the folder detect/<source> of the run")
    formats: list[DetectionFormat] = key(
        ["json"],
        "files to write; json: COCO results; csv: a table; comp4: detection files of the VOC devkit; voc, yolo, coco, "
        "labelstudio: annotation files with the detections that are drawn",
    )
    batch: int = key(1, "number of images per forward pass; larger batches are faster on a GPU", least=1)
    every: int = key(
        1,
        "for a video: run the detector only on every Nth frame; the following frames show the same boxes",
        least=1,
    )
    draw_threshold: float | None = key(
        None,
        "do not draw detections whose score is below this value; null: the threshold with the best F1 in the "
        "evaluation of the checkpoint, or 0.5 if it was not evaluated",
    )


@dataclass
class ProposeConfig:
    source: str | None = key(
        None,
        "to use images instead of a data set: an image, a folder, a glob pattern such as 'photos/*.jpg', or a .txt "
        "file with one path per line; images are rotated according to their EXIF orientation",
    )
    convert: list[str] = key([], "files or folders of proposals, in any supported format, to convert")
    convention: str | None = key(
        None, "box convention of the files in `convert`, e.g. yxyx-1-inclusive; null: the default of their format"
    )
    ids: str | None = key(
        None,
        "text file with the image ids of the files in `convert`, one per line, in the order of their proposals; needed "
        "if the files contain no ids",
    )
    output: str | None = key(
        None,
        "store to write, or with `convert` also NAME.mat or NAME.json; required with `source` unless `convert` is set; "
        "null: a store in data.proposal_cache; training uses generated proposals there automatically, but converted "
        "proposals only if data.proposals is set",
    )
    workers: int | None = key(None, "number of processes; null: one per core", least=1)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class CheckConfig:
    proposals: str | None = key(
        None, "proposal store to check; null: data.proposals, or generated proposals if they exist"
    )
    output: str | None = key(
        None,
        "output folder of the report; null: outputs/check/<data.name>-<root>-<hash>, where the hash depends on "
        "data.root and the splits",
    )
    workers: int | None = key(None, "number of processes; null: one per core", least=1)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverSettings = field(default_factory=SolverSettings)


@dataclass
class ProposalsCheckConfig:
    proposals: str | None = key(
        None, "required: a file, a folder of files or a store with proposals in any supported format"
    )
    ids: str | None = key(
        None,
        "text file with the image ids of the proposals, one per line, in the order of the proposal file; needed if the "
        "proposal file contains no ids",
    )
    split: str | None = key(
        None, "split whose ground truth is compared with the proposals; null: data.train and data.test"
    )
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class FromRun:
    """The keys of commands that convert a checkpoint."""

    checkpoint: str | None = key(
        None,
        "required: the folder of a run, outputs/NAME for the newest run of that name, a .pt file, an exported "
        ".safetensors file, or a .caffemodel of a detector",
    )
    data: DataConfig = field(default_factory=DataConfig)
    detection: DetectionSettings = field(default_factory=DetectionSettings)


@dataclass
class CompressConfig(FromRun):
    fc6: int | None = key(
        None,
        "rank of fc6 (the paper uses 1024); required unless `fc7`, `keep` or `budget` is set; if only `fc7` is set, "
        "fc6 is not compressed",
        least=1,
    )
    fc7: int | None = key(
        None,
        "rank of fc7 (the paper uses 256); required unless `fc6`, `keep` or `budget` is set; if only `fc6` is set, fc7 "
        "is not compressed",
        least=1,
    )
    keep: float | None = key(
        None,
        "instead of `fc6` and `fc7`: choose the ranks that keep this fraction of the sum of squared singular values of "
        "each layer",
        above=0,
        most=1,
    )
    budget: float | None = key(
        None,
        "instead of `fc6`, `fc7` and `keep`: choose the smallest ranks that reduce the mAP on `split` by at most this "
        "many percentage points",
        least=0,
    )
    split: str | None = key(None, "split to evaluate on instead of data.test, e.g. val")
    output: str | None = key(None, "output file NAME.pt; null: compressed/<ranks>/best.pt in the folder of the run")
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class SvmConfig(SvmSettings, FromRun):
    split: str | None = key(None, "split to evaluate on instead of data.test, e.g. val")
    output: str | None = key(None, "output file NAME.pt; null: svm/best.pt in the folder of the run")
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class ExportConfig(FromRun):
    format: ExportFormat | None = key(
        None,
        "required; onnx: for ONNX Runtime; pt2: for torch.export.load, if fastrcnn is installed; safetensors: for "
        "fastrcnn.load and all commands that accept a checkpoint; caffemodel: for the author's Caffe code; "
        "torchvision: state dict of a VGG16",
    )
    precision: ExportPrecision = key(
        "float32", "precision of the weights; float16 halves the size and needs format=safetensors"
    )
    output: str | None = key(None, "output file; null: export/<network>.<suffix> in the folder of the run")


@dataclass
class ReplayConfig:
    file: str | None = key(
        None,
        "required: a file failed-step-N.pt in the folder of a run; `fastrcnn replay FILE` is short for "
        "`fastrcnn replay file=FILE`",
    )
    device: str = key("auto", "cpu, cuda or cuda:N; auto: a GPU if available")


@dataclass
class ExplainRoiConfig:
    example: Literal["8x8", "16x16"] | None = key(
        None, "a worked example of docs/roi_pooling.md; null: use `grid` or `image`, or 8x8 if neither is set"
    )
    grid: str | None = key(
        None,
        "feature map: a size HEIGHTxWIDTH (the values of the cells are then 0, 1, 2, ... row by row), or a text "
        "file with the values",
    )
    image: str | None = key(None, "image whose brightness is used as the feature map")
    roi: list[float] = key(
        [],
        "required with `grid` or `image`: the RoI as [x1,y1,x2,y2], in pixels; a cell of the map has `stride` x "
        "`stride` pixels",
    )
    stride: int = key(16, "stride of the feature map, in pixels per cell")
    output_size: list[int] = key([7, 7], "number of rows and number of columns of bins")
    output: str = key("outputs/explain-roi", "folder to which the PNG and SVG files are written")


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
    """Return a dict from the dotted name of each key of a schema to its type and help text. Keys of groups are last."""
    hints, inner = get_type_hints(schema), groups(schema)
    own = {prefix + f.name: (hints[f.name], f.metadata["help"]) for f in fields(schema) if f.name not in inner}
    for name, group in inner.items():
        own |= leaves(group, f"{prefix}{name}.")
    return own


def groups(schema: type) -> dict[str, type]:
    """Return a dict from the name of each group (model, data, ...) of a schema to the schema of the group."""
    return {n: h for n, h in get_type_hints(schema).items() if is_dataclass(h)}  # type: ignore[misc]
