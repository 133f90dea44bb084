"""`fastrcnn train start=CHECKPOINT`: a new run that begins with the weights of another one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastrcnn.build import checkpoints
from fastrcnn.build.checkpoints import Trained
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.config.schema import DataConfig, TrainConfig
    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.model.fast_rcnn import FastRCNN

log = logging.getLogger("fastrcnn")


def refuse_svm(config: TrainConfig) -> None:
    """Raises UserError where the class scores would be margins of SVMs, which the loss is not for."""
    if config.model.classifier == "svm":
        begin = f"start={config.start}: " if config.start else ""
        raise UserError(
            f"{begin}model.classifier=svm: training is by cross-entropy, which makes no SVMs; `fastrcnn svm` makes "
            "them of a trained run. Train with model.classifier=softmax: a checkpoint with SVMs then begins with their "
            "weights as those of the class layer."
        )


def say_margins(trained: Trained) -> None:
    """Says so where the class layer of the checkpoint is SVMs."""
    if trained.config["model"].get("classifier") == "svm":
        log.warning("its class layer is SVMs: their margins are the first logits of the softmax, background's are 0")


def read(config: TrainConfig) -> Trained:
    """The checkpoint, or .caffemodel, that `start` names. Raises UserError."""
    assert config.start is not None
    return checkpoints.read(config.start, config)


def take_classes(config: DataConfig, trained: Trained, where: str) -> None:
    """Makes the classes of the checkpoint those of the data. Raises UserError where other ones are asked for."""
    names = trained.classes
    if config.classes is not None and list(config.classes) != names:
        raise UserError(
            f"start={where}: was trained on the classes {', '.join(names)}, in this order; "
            f"data.classes is {', '.join(config.classes)}. The last layers fit no others."
        )
    config.classes = list(names)


def statistics(model: FastRCNN, train_set: DetectionDataset, config: TrainConfig) -> None:
    """Normalises a box layer that gives deltas as they are, such as a .caffemodel's, by the training set's statistics.

    What the model detects stays the same; but the loss would count unnormalised deltas, which are some tenths, a
    hundredth of what the recipe means it to. Other weights keep the statistics that they were trained for.
    """
    if model.delta_mean.any() or (model.delta_std != 1).any():
        return
    from fastrcnn.build import training
    from fastrcnn.model.fast_rcnn import normalise_box_layer

    log.info("its box layer is not normalised; computing the statistics of the regression targets to normalise it")
    normalise_box_layer(model, *training.delta_statistics_of(train_set, model.num_classes, config))


def put_weights(model: FastRCNN, trained: Trained, where: str) -> None:
    """Puts the checkpoint's weights, and the statistics of its regression targets, into the model.

    Raises UserError where the model is another one.
    """
    try:
        model.load_state_dict(trained.state)
    except RuntimeError as error:
        raise UserError(f"start={where}: the model is another one; leave out model.* and model=.\n{error}") from None
