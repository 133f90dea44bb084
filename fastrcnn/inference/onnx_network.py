"""Run a detector in an .onnx file with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.errors import UserError
from fastrcnn.inference.description import Description, read_metadata
from fastrcnn.inference.network import Outputs, at_levels
from fastrcnn.memory import ran_out
from fastrcnn.settings import Classifier
from fastrcnn.structures import Batch

# Inputs and outputs of exported networks; see fastrcnn/deploy/__init__.py.
INPUTS = ("image", "proposals", "scale", "size")
OUTPUTS = ("scores", "boxes")
PACKAGES = "requires the packages onnx and onnxruntime. Install them with: pip install 'fastrcnn[export]'"


class OnnxNetwork:
    """A Network for an .onnx file that `fastrcnn export` wrote. description: the metadata in the file."""

    device = torch.device("cpu")  # ONNX Runtime returns its outputs on the CPU

    def __init__(self, path: Path, device: torch.device | None = None, threads: int | None = None) -> None:
        """device: if None, a GPU is used if ONNX Runtime supports one. threads: number of CPU threads, or None for the
        default of ONNX Runtime.

        Raises UserError if onnxruntime is missing or cannot use the device, or if the file is missing, damaged or not
        written by `fastrcnn export`.
        """
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path}: running an .onnx file {PACKAGES}") from None
        able = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if device is not None and device.type == "cuda" and not able:
            raise UserError(
                f"{path}: the installed ONNX Runtime cannot use a GPU. Replace it with onnxruntime-gpu, or set "
                "runtime.device=cpu (in Python: fastrcnn.load(..., device='cpu'))."
            )
        if not path.is_file():
            raise UserError(f"{path}: file not found.")
        providers: list[Any] = ["CPUExecutionProvider"]
        if able and (device is None or device.type == "cuda"):
            number = device.index or 0 if device else 0
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": number, "use_tf32": 0}))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exception classes differ between versions
            raise _failed(path, "open", error) from None
        self.path = path
        ends = (*self.session.get_inputs(), *self.session.get_outputs())
        if (given := {value.name for value in ends}) != {*INPUTS, *OUTPUTS}:
            raise UserError(
                f"{path}: the inputs and outputs are {', '.join(sorted(given))[:200]}. They must be "
                f"{', '.join((*INPUTS, *OUTPUTS))}. Use a file that `fastrcnn export` wrote."
            )
        self.runs_on = "cuda" if "CUDAExecutionProvider" in self.session.get_providers() else "cpu"
        self.description: Description = read_metadata(self.session.get_modelmeta().custom_metadata_map, str(path))
        self.classifier: Classifier = (
            "svm" if self.description.config["model"].get("classifier") == "svm" else "softmax"
        )

    def outputs(
        self, pyramid: Sequence[Batch], rois_per_chunk: int = 500, box_regression: bool = True
    ) -> list[Outputs]:
        """See Network.outputs. rois_per_chunk is ignored: all RoIs of an image are processed together."""
        results = []
        for i, sample in enumerate(pyramid[0].samples):
            rois = pyramid[0].proposals[i]

            def at(level: int, some: Tensor, i: int = i) -> Outputs:
                batch = pyramid[level]
                height, width = batch.sizes[i].tolist()
                image = batch.images[i, :, :height, :width].permute(1, 2, 0)
                size = (batch.samples[i].height, batch.samples[i].width)
                return self(image, some[:, 1:], float(batch.scales[i]), size)

            scores, boxes = at_levels(rois, torch.stack([level.scales[i] for level in pyramid]), at)
            if not box_regression:
                boxes = box_ops.clip(box_ops.decode(rois, torch.zeros_like(boxes)), sample.height, sample.width)
            results.append((scores, boxes))
        return results

    def __call__(self, image: Tensor, proposals: Tensor, scale: float, size: tuple[int, int]) -> Outputs:
        """Return scores (P, classes + 1) and boxes (P, classes + 1, 4) for the proposals (P, 4) of an image.

        The arguments are the inputs of the exported network, see deploy/__init__.py.
        """
        shape = (len(proposals), len(self.description.classes) + 1)
        if len(proposals) == 0:
            none = torch.zeros(*shape, 4, dtype=torch.float32, device="cpu")
            return none[:, :, 0], none
        inputs = {
            "image": np.ascontiguousarray(image.numpy()),
            "proposals": np.ascontiguousarray(proposals.float().numpy()),
            "scale": np.array(scale, np.float64),
            "size": np.array(size, np.int64),
        }
        try:
            scores, boxes = self.session.run(list(OUTPUTS), inputs)
        except Exception as error:  # see __init__
            if ran_out(error):
                raise
            raise _failed(self.path, "run", error) from None
        if scores.shape != shape or boxes.shape != (*shape, 4):
            raise UserError(
                f"{self.path}: the network returned scores of shape {scores.shape} and boxes of shape {boxes.shape} "
                f"for {len(proposals)} proposals and {shape[1] - 1} classes. Export the detector again."
            )
        return torch.from_numpy(scores), torch.from_numpy(boxes)


def describe(path: Path) -> Description:
    """Return the description of the network in a file, and check its weights, without opening it in ONNX Runtime.

    Raises UserError if the package onnx is missing, if the file is missing, damaged or not written by
    `fastrcnn export`, or if weights are not finite or are stored in other files.
    """
    try:
        import onnx
    except ImportError:
        raise UserError(f"{path}: running an .onnx file {PACKAGES}") from None
    if not path.is_file():
        raise UserError(f"{path}: file not found.")
    try:
        whole = onnx.load(path, load_external_data=False)
        weights = whole.graph.initializer
        unusable = [f"{w.name} is stored in another file" for w in weights if w.external_data] or [
            f"{w.name} contains values that are not finite"
            for w in weights
            if not np.isfinite(onnx.numpy_helper.to_array(w)).all()
        ]
    except Exception as error:  # a damaged file can cause any exception
        raise _failed(path, "open", error) from None
    if unusable:
        more = f" (and {len(unusable) - 3} more)" if len(unusable) > 3 else ""
        raise UserError(
            f"{path}: the weights cannot be used: {', '.join(unusable[:3])}{more}. Export the detector again."
        )
    return read_metadata({entry.key: entry.value for entry in whole.metadata_props}, str(path))


def _failed(path: Path, verb: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path}: ONNX Runtime cannot {verb} this network ({reason[:300]}). Export the detector again.")
