"""The library's face in Python: `fastrcnn.load`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastrcnn.errors import nearest
from fastrcnn.inference.detector import Detector


def load(
    source: str | Path,
    *,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    **detection: Any,
) -> Detector:
    """A trained detector, ready for `detect(image)`.

    source: a run's folder, a .pt file, a .caffemodel, or a .safetensors or .onnx file that `fastrcnn export` wrote.
    classes: names in the order of training, for a .caffemodel, which does not name them.
    device: auto, cpu, cuda, cuda:1 ...; auto is a GPU if available.
    precision: auto, float32 or bfloat16; auto is bfloat16 where the device is fast at it.
    detection: what is to differ from training, under the names of the configuration: score_threshold (None: keep all),
        nms_iou, max_per_class, max_per_image, box_regression, rois_per_chunk.

    Raises UserError for a file that is missing, damaged or none of these, and for values out of bounds; TypeError for
    another keyword.
    """
    from fastrcnn.build import datasets
    from fastrcnn.build.checkpoints import open_network
    from fastrcnn.config.compose import compose
    from fastrcnn.config.schema import DetectConfig
    from fastrcnn.config.values import fill

    config = compose("detect", [])
    config.checkpoint, config.runtime.device, config.runtime.precision = str(source), device, precision
    config.data.classes = None if classes is None else list(classes)
    for key, value in detection.items():
        if not hasattr(config.detection, key):
            raise TypeError(f"load() got an unexpected keyword argument '{key}'.{nearest(key, vars(config.detection))}")
        setattr(config.detection, key, value)
    config = fill(DetectConfig, asdict(config))  # checks the values
    given = ["runtime.device", "runtime.precision", *(f"detection.{key}" for key in detection)]
    network, names, _ = open_network(config, given)
    return datasets.detector(config, network, names)
