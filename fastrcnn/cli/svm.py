"""fastrcnn svm"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn import files
from fastrcnn.build.checkpoints import opened, require
from fastrcnn.build.derived import evaluated, network, output_file
from fastrcnn.cli.compress_report import change, points
from fastrcnn.config.compose import compose
from fastrcnn.config.schema import SvmConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.model.fast_rcnn import FastRCNN
    from fastrcnn.training.svm import PictureFeatures

log = logging.getLogger("fastrcnn")
EXAMPLES = [
    "fastrcnn svm checkpoint=RUN",
    "fastrcnn svm checkpoint=RUN detection=paper      (the mAP as the author measures it)",
    "fastrcnn svm checkpoint=RUN c=0.01 data.flip=false output=other.pt",
    "fastrcnn svm checkpoint=RUN data.test=[]         (without measuring the mAP)",
]
NORM_IMAGES = 100  # of the training pictures, in which the features' length is measured


def main(arguments: list[str]) -> int:
    """Writes a checkpoint with SVMs in place of the softmax and says what the mAP is with both."""
    require("svm", arguments)
    config, path, content = opened("svm", compose("svm", arguments), arguments)
    output, source = output_file(config.output, path, "svm/best.pt")
    if content["config"]["model"].get("classifier") == "svm":
        raise UserError(f"{path}: has SVMs already. Train others from the checkpoint that it was made from.")
    train(config, path, content, output, source)
    return 0


def train(config: SvmConfig, path: Path, content: dict[str, Any], output: Path, source: str) -> None:
    """Trains SVMs on the features of the checkpoint's `content`, writes `output` and prints the outcome. source: see
    outputs.py."""
    from fastrcnn.build import annotations, datasets, machine, training
    from fastrcnn.training import checkpoint
    from fastrcnn.training.svm import linear_svc, put_into

    linear_svc()  # says before the work that scikit-learn is missing
    names = content["classes"]
    device = machine.device(config.runtime)
    dtype = machine.precision(config.runtime, device)
    machine.threads(config.runtime)
    settings = training.detection(config.detection)
    annotations.metric(config.data)
    softmax = network(path, content["config"], names, content["model"], device)
    changed = with_margins(content["config"])
    svm = network(path, changed, names, content["model"], device)
    test_set = datasets.test_set(config.data, names, config.split) if config.split or config.data.test else None
    views = datasets.plain_training_sets(config.data, names)

    weights, biases = trained(config, softmax, views, names, dtype)
    put_into(svm.cls_score, weights, biases)
    before = after = None
    if test_set is not None:
        before = evaluated(config, softmax, test_set, names, settings, dtype)
        after = evaluated(config, svm, test_set, names, replace(settings, score_threshold=None), dtype)
    whole = checkpoint.packed(
        {
            "step": content["step"],
            "best": -1.0 if after is None else after,
            "classes": names,
            "config": changed,
            "model": svm.state_dict(),
        },
    )
    with files.written(output, source) as part:
        part.write_bytes(whole)
    if before is not None and after is not None:
        split = annotations.split_name(annotations.test_splits(config.data, config.split))
        print(f"mAP on {split}: softmax {points(before)}, SVM {points(after)} ({change(before, after)})")
        if settings.score_threshold:
            print(f"the softmax with scores from {settings.score_threshold:g} up, the SVMs with all")
    else:
        print(f"mAP: not measured, {'as no class has truth there' if test_set else 'as data.test is empty'}")
    print(f"written to {output}")


def with_margins(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration, its classifier SVMs; a threshold for probabilities means nothing to them."""
    return config | {
        "model": config["model"] | {"classifier": "svm"},
        "detection": config["detection"] | {"score_threshold": None},
    }


def trained(
    config: SvmConfig, model: FastRCNN, views: list[DetectionDataset], names: list[str], dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, D) and biases (C,) of the SVMs. views: the training pictures, and those mirrored, if any."""
    import numpy as np

    from fastrcnn.build import machine, training
    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.progress import progress
    from fastrcnn.training.svm import gather_positives, mean_length, picture_features, train_svms

    def seen(datasets: list[DetectionDataset], what: str, proposals: bool = True) -> Iterator[PictureFeatures]:
        workers, chunk = machine.workers(config.runtime), config.detection.rois_per_chunk
        pyramids = chain.from_iterable(detection_loader(dataset, workers=workers) for dataset in datasets)
        return progress(picture_features(model, pyramids, proposals, chunk, dtype), sum(map(len, datasets)), what)

    plain = views[0]
    rng = np.random.default_rng(config.runtime.seed)
    chosen = np.sort(rng.choice(len(plain), min(NORM_IMAGES, len(plain)), replace=False))
    some = DetectionDataset(
        [plain.samples[i] for i in chosen], plain.proposals, plain.augmentation, max_proposals=plain.max_proposals
    )
    length = mean_length(seen([some], "length of features"))
    if not 0 < length < math.inf:
        raise UserError(f"checkpoint={config.checkpoint}: the features of fc7 are {length} long; nothing to train on.")
    scale = config.feature_norm / length
    log.info("features of fc7 are %.3f long on average; scaled by %.4f", length, scale)
    positives = gather_positives(seen(views, "positives", proposals=False), len(names), model.head.out_features)
    return train_svms(names, positives, seen(views, "negatives"), scale, training.svm(config))
