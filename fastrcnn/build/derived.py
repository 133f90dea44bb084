"""A checkpoint's network, and what compress and svm share: a checkpoint that is made from another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn import files
from fastrcnn.build.checkpoints import run_of
from fastrcnn.config.schema import CompressConfig, SvmConfig
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.inference.detect import DetectionSettings
    from fastrcnn.model.fast_rcnn import FastRCNN


def output_file(output: str | None, path: Path, default: str) -> tuple[Path, str]:
    """The file to write, `output` or `default` below the folder of the run that `path` is the checkpoint of, in a
    folder of its own, so that what is evaluated from it lies beside it; and `source` for outputs.written.

    Raises UserError where it is there already and was not made of this checkpoint, where it cannot be written, or where
    training would take it for one of its own.
    """
    file = run_of(path) / default if output is None else Path(output).expanduser()
    if file.suffix != ".pt":
        raise UserError(f"output={file}: should be the name of a file that ends in .pt.")
    if file.parent.name == "checkpoints":
        raise UserError(f"output={file}: a run keeps and removes its own checkpoints there; choose another folder.")
    refuse_unusable(file.parent, f"output={file}")
    source = files.digest(path)
    files.refuse_existing(file, source)
    return file, source


def network(
    path: Path, config: dict[str, Any], names: list[str], state: dict[str, Tensor], device: torch.device
) -> FastRCNN:
    """The network of a run's configuration with a state dict, for detection. path: its file, for messages."""
    import torch

    from fastrcnn.build import models

    model = models.trained_model(config, len(names))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit the model they were saved with: {error}") from None
    return model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def evaluated(
    config: CompressConfig | SvmConfig,
    model: FastRCNN,
    test_set: DetectionDataset,
    names: list[str],
    settings: DetectionSettings,
    dtype: torch.dtype,
) -> float | None:
    """mAP, 0 to 1; None where no class has truth."""
    from fastrcnn.build import annotations, machine
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.evaluation.evaluate import evaluate

    batches = detection_loader(test_set, workers=machine.workers(config.runtime))
    result = evaluate(model, batches, len(test_set), names, annotations.metric(config.data), settings, dtype)
    assert result is not None, "in the first process, which this one is"
    return result.ap.mean
