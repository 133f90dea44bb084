"""The public Python API: `fastrcnn.load`."""

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
    """Load a trained detector. Its method `detect(image)` returns the objects in an image.

    source: the folder of a run, a .pt checkpoint, a .caffemodel, or a .safetensors or .onnx file from
        `fastrcnn export`. If it is a folder of several runs, the newest run is loaded.
    classes: class names in training order; only needed for a .caffemodel, which does not contain them.
    device: auto, cpu, cuda or cuda:N; auto uses a GPU if one is available.
    precision: auto, float32 or bfloat16; auto uses bfloat16 if the device supports it natively.
    detection: detection settings that override those of the training configuration. They are score_threshold (None
        for no threshold), nms_iou, max_per_class, max_per_image, box_regression and rois_per_chunk.

    Raises UserError if the file is missing, damaged or of another type, if a value is invalid, or if the device is not
    available. Raises TypeError for an unknown keyword argument.
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
