"""fastrcnn svm"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from fastrcnn.build import derived
from fastrcnn.build.checkpoints import compose_for, open_trained
from fastrcnn.config.schema import SvmConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.model.fast_rcnn import FastRCNN
    from fastrcnn.training.svm import PictureFeatures

log = logging.getLogger("fastrcnn")
NORM_IMAGES = 100  # of the training images, in which the features' length is measured
EXAMPLES = [
    "fastrcnn svm checkpoint=RUN",
    "fastrcnn svm checkpoint=RUN detection=paper      (the mAP as the author measures it)",
    "fastrcnn svm checkpoint=RUN c=0.01 data.flip=false output=other.pt",
    "fastrcnn svm checkpoint=RUN data.test=[]         (without measuring the mAP)",
]


def main(arguments: list[str]) -> int:
    """Writes a checkpoint with SVMs in place of the softmax and says what the mAP is with both."""
    config = compose_for("svm", arguments)
    trained = open_trained(config, arguments)
    output, source = derived.output_file(config.output, trained.file, "svm/best.pt")
    if trained.config["model"].get("classifier") == "svm":
        raise UserError(f"{trained.file}: has SVMs already. Train others from the checkpoint that it was made from.")
    from fastrcnn.build import datasets, machine, training
    from fastrcnn.inference.network import TorchNetwork
    from fastrcnn.training.svm import linear_svc, put_into

    linear_svc()  # says before the work that scikit-learn is missing
    names, device = trained.classes, machine.device(config.runtime)
    dtype = machine.precision(config.runtime, device)
    machine.threads(config.runtime)
    settings = training.detection(config.detection)
    softmax = trained.model(device)
    changed = {
        "model": trained.config["model"] | {"classifier": "svm"},
        "detection": trained.config["detection"] | {"score_threshold": None},  # meant for probabilities
    }
    made = replace(trained, config=trained.config | changed)
    svm = made.model(device)
    test_set = datasets.test_set(config.data, names, config.split) if config.split or config.data.test else None
    put_into(svm.cls_score, *train(config, softmax, names, dtype))
    before = derived.mean_ap(config, TorchNetwork(softmax, dtype), test_set, names, settings)
    every = replace(settings, score_threshold=None)
    after = derived.mean_ap(config, TorchNetwork(svm, dtype), test_set, names, every)
    derived.write(replace(made, state=svm.state_dict()), after, output, source)
    unmeasured = "no class has truth there" if test_set else "data.test is empty"
    print(derived.ap_line(config, "softmax {}, SVM {}", before, after, unmeasured))
    if before is not None and settings.score_threshold:
        print(f"the softmax with scores from {settings.score_threshold:g} up, the SVMs with all")
    print(f"written to {output}")
    return 0


def train(config: SvmConfig, model: FastRCNN, names: list[str], dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, D) and biases (C,) of the SVMs, of the features that the network has of the training images."""
    import numpy as np

    from fastrcnn.build import datasets, machine, training
    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.progress import progress
    from fastrcnn.training.svm import gather_positives, mean_length, picture_features, train_svms

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
    length = mean_length(seen([some], "length of features"))
    if not 0 < length < math.inf:
        raise UserError(f"checkpoint={config.checkpoint}: the features of fc7 are {length} long; nothing to train on.")
    scale = config.feature_norm / length
    log.info("features of fc7 are %.3f long on average; scaled by %.4f", length, scale)
    positives = gather_positives(seen(views, "positives", proposals=False), len(names), model.head.out_features)
    return train_svms(names, positives, seen(views, "negatives"), scale, training.svm(config), config.runtime.seed)
