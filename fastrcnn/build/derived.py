"""Derive a checkpoint from another one for `compress` and `svm`, and measure the mAP before and after."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from fastrcnn import files
from fastrcnn.build import datasets, machine, models
from fastrcnn.build.annotations import split_name, test_splits
from fastrcnn.build.checkpoints import Trained, run_of
from fastrcnn.build.evaluation import evaluate_on
from fastrcnn.config.schema import CompressConfig, SvmConfig
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import detection_loader
from fastrcnn.deploy.compression import ranks_that_keep, ranks_within, size_lines, time_line
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.head import LAYERS, Ranks, decompose, factored_state
from fastrcnn.progress import progress
from fastrcnn.settings import DetectionSettings, SvmSettings
from fastrcnn.training import checkpoint, svm
from fastrcnn.training.svm import PictureFeatures, mean_length, picture_features

log = logging.getLogger(__name__)
NORM_IMAGES = 100  # number of training images on which the mean feature norm is measured


def output_file(output: str | None, path: Path, default: str) -> tuple[Path, str]:
    """Return the path of the new checkpoint, and the SHA-256 digest of the original checkpoint `path`.

    The new path is `output`, or `default` in the folder of the run that `path` belongs to. `default` includes a
    subfolder, so that evaluations of the new checkpoint are written next to it. Raises UserError if the suffix is not
    .pt, if the file cannot be written or would be in the checkpoint folder of a run, or if it exists and was not
    created from the original checkpoint.
    """
    file = run_of(path) / default if output is None else Path(output).expanduser()
    if file.suffix != ".pt":
        raise UserError(f"output={file}: the file name must end in .pt.")
    if file.parent.name == "checkpoints":
        raise UserError(
            f"output={file}: a run writes and deletes its checkpoints in the folder {file.parent}. Choose another "
            "folder."
        )
    refuse_unusable(file.parent, f"output={file}")
    source = files.digest(path)
    files.refuse_existing(file, source)
    return file, source


def write(made: Trained, mean_ap: float | None, output: Path, source: str) -> None:
    """Write the checkpoint `made` to `output`. Raises UserError if the file cannot be written.

    mean_ap: the mAP of the checkpoint, 0 to 1, or None if unknown. source: digest of the original checkpoint's file.
    """
    best = -1.0 if mean_ap is None else mean_ap
    content = {"step": made.step, "best": best, "classes": made.classes, "config": made.config, "model": made.state}
    content["record"] = made.record
    whole = checkpoint.pack(content)
    with files.write_derived(output, source) as part:
        part.write_bytes(whole)


def mean_ap(
    config: CompressConfig | SvmConfig,
    network: TorchNetwork,
    test_set: DetectionDataset | None,
    names: list[str],
    settings: DetectionSettings | None = None,
) -> float | None:
    """Return the mAP (0 to 1), or None if there is no test set or no ground truth.

    settings: the detection settings. If None, the settings in `config` are used.
    """
    if test_set is None:
        return None
    result = evaluate_on(test_set, config, network, names, config.data.metric, settings)
    assert result is not None, "only processes other than the first get None"
    return result.ap.mean


def ap_line(
    config: CompressConfig | SvmConfig, form: str, before: float | None, after: float | None, unmeasured: str
) -> str:
    """Return a line with two mAP values (0 to 1) in the format `form`, or the reason `unmeasured` if one is None."""
    if before is None or after is None:
        return f"mAP: not measured, because {unmeasured}"
    split = split_name(test_splits(config.data, config.split))
    both = form.format(f"{100 * before:.2f}", f"{100 * after:.2f}")
    return f"mAP on {split}: {both} ({100 * (after - before):+.2f} points)"


def compress(config: CompressConfig, trained: Trained, output: Path, source: str, asked: bool) -> list[str]:
    """Compress the checkpoint, write `output`, and return the lines of a report.

    source: digest of the original file. asked: whether the user set data.root. If so, the folder must exist.
    """
    given: Ranks = {"fc6": config.fc6, "fc7": config.fc7}
    device, dtype = machine.set_up(config.runtime)
    before = TorchNetwork(trained.model(device), dtype)
    state = before.model.state_dict()
    for name in LAYERS:
        models.check_rank(name, given[name], *state[f"head.{name}.weight"].shape)
    test_set = measured_on(config, trained.classes, asked)

    wanted = [name for name in LAYERS if given[name] is not None] or list(LAYERS)
    log.info("Decomposing %s (this takes a few minutes for VGG16)", " and ".join(wanted))
    layers = progress(wanted, len(wanted), "decompose", "layer")
    found = {name: decompose(state[f"head.{name}.weight"]) for name in layers}

    def smaller(ranks: Ranks) -> tuple[Trained, TorchNetwork]:
        model = trained.config["model"] | {f"{name}_rank": rank for name, rank in ranks.items()}
        state_of = factored_state(state, found, ranks)
        made = replace(trained, config=trained.config | {"model": model}, state=state_of)
        return made, TorchNetwork(made.model(device), dtype)

    def measure(network: TorchNetwork) -> float | None:
        return mean_ap(config, network, test_set, trained.classes)

    ap_before = measure(before)
    tried: list[str] = []
    ap_after: float | None
    if config.budget is not None:
        ranks, ap_after, tried = ranks_within(config.budget, found, ap_before, lambda r: measure(smaller(r)[1]) or 0.0)
        made, after = smaller(ranks)
    else:
        ranks = given if config.keep is None else ranks_that_keep(config.keep, found)
        made, after = smaller(ranks)
        ap_after = measure(after)
    write(made, ap_after, output, source)
    unmeasured = "no class has ground truth" if test_set else "there is no test set"
    lines = [*tried, *size_lines(before.model, after.model, ranks), time_line(before, after)]
    lines += [ap_line(config, "{} before, {} after", ap_before, ap_after, unmeasured), f"Wrote {output}"]
    if after.classifier == "softmax":
        lines.append(f"to fine-tune it: fastrcnn train start={output} solver.lr=0.0001")
    return lines


def measured_on(config: CompressConfig, names: list[str], asked: bool) -> DetectionDataset | None:
    """Return the data set for the mAP, or None if it is missing and not needed. asked: whether data.root was set."""
    root, needed = config.data.root, config.budget is not None or config.split is not None
    there = root is not None and (asked or Path(root).expanduser().exists())
    if not needed and not (there and config.data.test):
        missing = "data.test is empty" if there else f"{root} does not exist" if root else "data.root is not set"
        log.warning("The mAP is not measured, because %s", missing)
        return None
    try:
        return datasets.test_set(config.data, names, config.split)
    except UserError as error:
        raise UserError(
            f"{error}\nTo compress without measuring the mAP, set data.root=null and remove budget and split."
        ) from None


def replace_softmax(config: SvmConfig, trained: Trained, output: Path, source: str) -> list[str]:
    """Train SVMs to replace the softmax of the checkpoint, write `output`, and return the lines of a report.

    source: digest of the original file. Raises UserError if scikit-learn is missing or the data cannot be used.
    """
    svm.linear_svc()  # raises an error now if scikit-learn is missing
    names = trained.classes
    device, dtype = machine.set_up(config.runtime)
    settings = models.detection(config.detection)
    softmax = trained.model(device)
    changed = {
        "model": trained.config["model"] | {"classifier": "svm"},
        "detection": trained.config["detection"] | {"score_threshold": None},  # the old threshold is a probability
    }
    record = {key: value for key, value in trained.record.items() if key != "draw_threshold"}  # a probability
    made = replace(trained, config=trained.config | changed, record=record)
    margins = made.model(device)
    test_set = datasets.test_set(config.data, names, config.split) if config.split or config.data.test else None
    svm.put_into(margins.cls_score, *train(config, softmax, names, dtype))
    before = mean_ap(config, TorchNetwork(softmax, dtype), test_set, names, settings)
    every = replace(settings, score_threshold=None)
    after = mean_ap(config, TorchNetwork(margins, dtype), test_set, names, every)
    write(replace(made, state=margins.state_dict()), after, output, source)
    unmeasured = "no class has ground truth" if test_set else "data.test is empty"
    lines = [ap_line(config, "softmax {}, SVM {}", before, after, unmeasured)]
    if before is not None and settings.score_threshold:
        lines.append(f"score threshold: {settings.score_threshold:g} for the softmax, none for the SVMs")
    return [*lines, f"Wrote {output}"]


def train(config: SvmConfig, model: FastRCNN, names: list[str], dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Train one SVM per class on fc7 features of the training images. Return weights (C, D) and biases (C,)."""

    def seen(datasets: list[DetectionDataset], what: str, proposals: bool = True) -> Iterator[PictureFeatures]:
        workers, chunk = machine.workers(config.runtime), config.detection.rois_per_chunk
        pyramids = chain.from_iterable(detection_loader(dataset, workers=workers) for dataset in datasets)
        return progress(picture_features(model, pyramids, proposals, chunk, dtype), sum(map(len, datasets)), what)

    views = datasets.plain_training_sets(config.data, names)
    plain = views[0]
    rng = np.random.default_rng(config.runtime.seed)
    chosen = np.sort(rng.choice(len(plain), min(NORM_IMAGES, len(plain)), replace=False))
    samples = [plain.samples[i] for i in chosen]
    some = DetectionDataset(samples, plain.proposals, plain.augmentation, max_proposals=plain.max_proposals)
    length = mean_length(seen([some], "feature norm"))
    if not 0 < length < math.inf:
        raise UserError(
            f"checkpoint={config.checkpoint}: the mean norm of the fc7 features is {length}, but SVMs need a "
            "positive, finite norm. Use another checkpoint."
        )
    scale = config.feature_norm / length
    log.info("Mean norm of the fc7 features: %.3f; scaling them by %.4f", length, scale)
    positives = svm.gather_positives(seen(views, "positives", proposals=False), len(names), model.head.out_features)
    return svm.train_svms(names, positives, seen(views, "negatives"), scale, svm_settings(config), config.runtime.seed)


def svm_settings(config: SvmConfig) -> SvmSettings:
    """Return the SVM settings in the configuration."""
    return SvmSettings(**{f.name: getattr(config, f.name) for f in fields(SvmSettings)})
