"""Evaluate a network on a data set, or write its detections for a competition, as the configuration specifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastrcnn.build import datasets, machine
from fastrcnn.build.annotations import category_ids, root, split_name, test_splits
from fastrcnn.build.models import detection
from fastrcnn.config.schema import EvalConfig
from fastrcnn.data.annotations.formats.coco_file import read_coco_file
from fastrcnn.data.annotations.layouts import is_coco
from fastrcnn.data.annotations.splits import find_split
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import detection_loader
from fastrcnn.errors import UserError
from fastrcnn.evaluation.evaluate import Evaluation
from fastrcnn.evaluation.result_files import Submission, check_comp4, check_voc_submission
from fastrcnn.files import refuse_unusable
from fastrcnn.inference.evaluate import detect_all, evaluate
from fastrcnn.inference.network import Network
from fastrcnn.parallel import distributed
from fastrcnn.settings import DetectionSettings, Metric


def evaluate_on(
    test_set: DetectionDataset,
    config: Any,
    network: Network,
    names: list[str],
    metric: Metric,
    settings: DetectionSettings | None = None,
) -> Evaluation | None:
    """Evaluate a network on a test set. In distributed jobs, the first process returns the evaluation of all images.

    config: the configuration of the command. settings: detection settings. If they are None, those in `config` are
    used. In distributed jobs, all processes except the first return None.
    """
    settings = settings or detection(config.detection, network.classifier)
    batches = detection_loader(test_set, workers=machine.workers(config.runtime))
    return evaluate(network, batches, len(test_set), names, metric, settings)


def result_folder(config: EvalConfig, run: Path) -> tuple[Path, str]:
    """Return an evaluation's output folder and split name. Raises UserError if the folder cannot be written to."""
    split = split_name(test_splits(config.data, config.split))
    folder = Path(config.output).expanduser() if config.output else run / "eval" / split
    refuse_unusable(folder, f"output={folder}")
    return folder, split


def evaluate_run(config: EvalConfig, network: Network, names: list[str], split: str) -> Evaluation | None:
    """Run the evaluation of `fastrcnn eval`. In distributed jobs, all processes except the first return None.

    split: the name of the split in file names. Raises UserError if the data set or a class name cannot be used.
    """
    check_comp4(split, names)
    test_set = datasets.test_set(config.data, names, config.split)
    return evaluate_on(test_set, config, network, names, config.metric or config.data.metric)


def compete(config: EvalConfig, network: Network, names: list[str], run: Path) -> list[str]:
    """Detect objects in one split without using its ground truth, and write the files for its evaluation server.

    Returns the lines of a report. In distributed jobs, all processes except the first return an empty list. Raises
    UserError if the configuration does not allow a submission.
    """
    target = submission(config, names, run)
    test_set = datasets.test_set(config.data, names, config.split, truth=False)
    batches = detection_loader(test_set, workers=machine.workers(config.runtime))
    settings = detection(config.detection, network.classifier)
    samples, found = detect_all(network, batches, len(test_set), names, settings)
    if not distributed.leads():
        return []
    path, written, advice = target.write(found, samples)
    total = f"{sum(len(d) for d in found.values())} detections of {len(names)} classes in {len(samples)} images"
    reval = f"fastrcnn reval detections={path} split={target.split} data.root=..."
    return [
        f"{total}; no AP, because ground truth is not used",
        f"Wrote {written}",
        f"{advice}. If you have the ground truth, run: {reval}",
    ]


def submission(config: EvalConfig, names: list[str], run: Path) -> Submission:
    """Return the object that writes detections for an evaluation server. Raises UserError if this is not possible."""
    if config.metric is not None:
        raise UserError(
            f"metric={config.metric}: this key cannot be combined with competition=true, because no AP is computed "
            "then. Remove one of the two keys."
        )
    splits = test_splits(config.data, config.split)
    if len(splits) != 1:
        raise UserError(
            f"competition=true needs exactly one split. Given: {', '.join(splits) or 'none'}. Set one, for example "
            "split=VOC2012/test."
        )
    source, listed, made = find_split(root(config.data), splits[0])
    if made:
        raise UserError(
            f"{source}: '{splits[0]}' is not a predefined split of this data set. It is generated from the images of "
            "the data set. For competition=true, set split to the name of a list in ImageSets/Main, or to an "
            "annotation file in data.root (split=FILE.json)."
        )
    numbers = category_ids(config.data, splits, names)
    if strangers := [name for name in names if name not in numbers]:
        raise UserError(
            f"{source}: the file has no category for these classes of the model: {', '.join(strangers)}. Available: "
            f"{', '.join(read_coco_file(source).categories.values())}."
        )
    folder, _ = result_folder(config, run)
    year, _, split = splits[0].rpartition("/")  # VOC2012/test, or test if data.root is VOC2012
    if is_coco(source):  # annotations/image_info_test-dev2017.json: test-dev2017
        short = Path(split).stem.rpartition("_")[2] if split.lower().endswith(".json") else split
        return Submission(folder, splits[0], short, "", numbers)
    check_voc_submission(split, names, listed)
    home = source if source.is_dir() else root(config.data)
    return Submission(folder, splits[0], split, year.rpartition("/")[2] or home.resolve().stem, None)
