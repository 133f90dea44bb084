"""The result of `detect(image)`: detections that can be drawn on their image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from fastrcnn.errors import UserError
from fastrcnn.files import replace_file
from fastrcnn.structures import Detections
from fastrcnn.visualize import draw_detections, enlarge


@dataclass(frozen=True, repr=False)
class Found(Detections):
    """Detections in one image, sorted by score.

    pixels: a function that returns the upright image (H, W, 3) uint8 RGB. If the image is a file, it is read again.
    draw_threshold: minimum score of detections that are drawn. It is the score with the best F1 in the evaluation of
    the network, or 0.5 if the network was not evaluated.
    """

    pixels: Callable[[], np.ndarray] | None = field(default=None, compare=False)
    draw_threshold: float = 0.5

    def plot(self, threshold: float | None = None) -> np.ndarray:
        """Return the image (H, W, 3) uint8 RGB with the detections drawn. Small images are enlarged.

        threshold: minimum score of detections that are drawn. If it is None, `draw_threshold` is used. Raises UserError
        if the image file can no longer be read.
        """
        assert self.pixels is not None
        image, shown = enlarge(self.pixels(), self)
        return draw_detections(image, shown, self.classes, self.draw_threshold if threshold is None else threshold)

    def save(self, path: str | Path, threshold: float | None = None) -> Path:
        """Write the result of `plot` to an image file and return its path. The suffix of `path` selects the format.

        Raises UserError if the suffix is not that of an image format, if the file cannot be written, or if `plot` does.
        """
        path = Path(path).expanduser()
        try:
            done, data = cv2.imencode(path.suffix, self.plot(threshold)[:, :, ::-1])
        except cv2.error:
            done = False
        if not done:
            raise UserError(f"{path}: the file name must have the suffix of an image format, such as .png or .jpg.")
        replace_file(path, data.tobytes())
        return path

    def to_dict(self) -> dict[str, Tensor]:
        """Return a dictionary with torchvision's keys: `boxes` (D, 4), `labels` (D,) int64 and `scores` (D,)."""
        return {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
