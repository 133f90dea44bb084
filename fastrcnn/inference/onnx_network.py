"""A detector in an .onnx file, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrcnn.errors import UserError
from fastrcnn.inference.description import INPUTS, OUTPUTS, Description, read_metadata
from fastrcnn.memory import ran_out

PACKAGES = "needs the packages onnx and onnxruntime: pip install 'fastrcnn[export]'."


class OnnxNetwork:
    """The network alone, as deploy/__init__.py describes its inputs and outputs.

    classifier: "softmax" or "svm", what the scores are. description: what the file says of itself. runs_on: its device,
    in words.
    """

    def __init__(self, path: Path, device: torch.device | None = None, threads: int | None = None) -> None:
        """device: None for a GPU where ONNX Runtime can use one. threads: None for its own choice.

        Raises UserError where the package or a fitting build of it is missing, and for a file that is none of ours.
        """
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path}: running it {PACKAGES}") from None
        able = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if device is not None and device.type == "cuda" and not able:
            raise UserError(
                f"{path}: this ONNX Runtime cannot use a GPU. Install onnxruntime-gpu in its place, or say device=cpu."
            )
        providers: list[Any] = ["CPUExecutionProvider"]
        if able and (device is None or device.type == "cuda"):
            number = device.index or 0 if device else 0
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": number, "use_tf32": 0}))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its classes are its own, and differ between versions
            if not path.is_file():
                raise UserError(f"{path}: there is no such file.") from None
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path}: ONNX Runtime cannot open it ({reason}). Export it again.") from None
        self.path = path
        given = (
            {value.name for value in self.session.get_inputs()},
            {value.name for value in self.session.get_outputs()},
        )
        if given != (set(INPUTS), set(OUTPUTS)):
            raise UserError(
                f"{path}: its inputs and outputs are {', '.join(sorted(given[0] | given[1]))[:200]}, but should be "
                f"{', '.join((*INPUTS, *OUTPUTS))}. Export it again."
            )
        self.runs_on = "cuda" if "CUDAExecutionProvider" in self.session.get_providers() else "cpu"
        self.description: Description = read_metadata(self.session.get_modelmeta().custom_metadata_map, str(path))
        self.classifier = str(self.description.config["model"].get("classifier", "softmax"))
        self.num_classes = len(self.description.classes)

    def __call__(self, image: Tensor, proposals: Tensor, scale: float, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Scores (P, classes + 1) and boxes (P, classes + 1, 4) of a picture's proposals (P, 4)."""
        if len(proposals) == 0:
            none = torch.zeros(0, self.num_classes + 1, 4, dtype=torch.float32, device="cpu")
            return none[:, :, 0], none
        inputs = {
            "image": np.ascontiguousarray(image.numpy()),
            "proposals": np.ascontiguousarray(proposals.float().numpy()),
            "scale": np.array(scale, np.float64),
            "size": np.array(size, np.int64),
        }
        try:
            scores, boxes = self.session.run(list(OUTPUTS), inputs)
        except Exception as error:  # see above
            if ran_out(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.path}: ONNX Runtime cannot run it ({reason[:300]}). Export it again.") from None
        shape = (len(proposals), self.num_classes + 1)
        if scores.shape != shape or boxes.shape != (*shape, 4):
            raise UserError(
                f"{self.path}: gives scores {scores.shape} and boxes {boxes.shape} for {len(proposals)} proposals of "
                f"{self.num_classes} classes. Export it again."
            )
        return torch.from_numpy(scores), torch.from_numpy(boxes)
