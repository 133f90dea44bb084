"""Export a network as a torch.export program. Running the program requires torch and `fastrcnn.ops`."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from fastrcnn import boxes
from fastrcnn.files import write_derived
from fastrcnn.inference.description import Description
from fastrcnn.model.fast_rcnn import FastRCNN

LEAST_SIDE = 64  # pixels; keeps every feature map larger than one cell, because torch.export specialises size 1


class WholeNetwork(nn.Module):
    """A network with the inputs and outputs of deploy/__init__.py. box_regression: see Network.outputs."""

    def __init__(self, model: FastRCNN, box_regression: bool = True) -> None:
        super().__init__()
        self.model = model.eval()
        self.box_regression = box_regression

    def forward(self, image: Tensor, proposals: Tensor, scale: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        rois = torch.cat((proposals.new_zeros(proposals.shape[0], 1), proposals), dim=1)
        logits, deltas = self.model(image.permute(2, 0, 1)[None], rois, scales=scale[None])
        scores = logits if self.model.classifier == "svm" else logits.softmax(dim=1)
        deltas = deltas * self.model.delta_std + self.model.delta_mean
        if not self.box_regression:
            deltas = torch.zeros_like(deltas)
        return scores, boxes.clip(boxes.decode(proposals, deltas), size[0], size[1])


def write_program(
    model: FastRCNN, description: Description, box_regression: bool, output: Path, source: str | None = None
) -> None:
    """Write a program that runs on the CPU and accepts image sides from LEAST_SIDE pixels and at least one proposal.

    The description's metadata is stored as `extra_files`. source: see write_derived. Raises UserError if the file
    cannot be written.
    """
    example = {
        "image": torch.zeros(97, 121, 3, dtype=torch.uint8),
        "proposals": torch.tensor([[0.0, 0, 30, 40], [5, 5, 60, 50], [9, 1, 20, 22]]),
        "scale": torch.tensor(1.0, dtype=torch.float64),
        "size": torch.tensor([90, 120]),
    }
    shapes = {
        "image": {i: torch.export.Dim(side, min=LEAST_SIDE) for i, side in enumerate(("height", "width"))},
        "proposals": {0: torch.export.Dim("proposals", min=1)},
        "scale": None,
        "size": None,
    }
    # The file format cannot represent channels_last weights, which detection uses.
    plain = model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network = WholeNetwork(plain, box_regression).requires_grad_(False)
    with torch.no_grad():
        program = torch.export.export(
            network,
            (),
            example,
            dynamic_shapes=shapes,
            strict=False,
            # torch cannot prove that pooling windows that are rounded up stay within the map, although they always do.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    content = io.BytesIO()  # on a full disk, torch's writer ends the process
    torch.export.save(program, content, extra_files=description.metadata())
    with write_derived(output, source) as path:
        path.write_bytes(content.getbuffer())
