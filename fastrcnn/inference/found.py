"""What `detect(image)` returns: detections that know their image, so that they can be drawn."""

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
    """Objects found in one image, best first.

    pixels: gives the image (H, W, 3) uint8 RGB, upright; a file is read again. draw_threshold: the score from which on
    they are drawn, the best in the evaluation of the network or else .5.
    """

    pixels: Callable[[], np.ndarray] | None = field(default=None, compare=False)
    draw_threshold: float = 0.5

    def plot(self, threshold: float | None = None) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB, enlarged if it is small, with the objects whose score is `threshold` or more;
        None for `draw_threshold`. Raises UserError where the file cannot be read any more."""
        assert self.pixels is not None
        image, shown = enlarge(self.pixels(), self)
        return draw_detections(image, shown, self.classes, self.draw_threshold if threshold is None else threshold)

    def save(self, path: str | Path, threshold: float | None = None) -> Path:
        """Writes what `plot` draws; the suffix of the path says in which format, as .png or .jpg. Returns the path.

        Raises UserError for a suffix that is none of an image, and OSError where the file cannot be written.
        """
        path = Path(path).expanduser()
        try:
            done, data = cv2.imencode(path.suffix, self.plot(threshold)[:, :, ::-1])
        except cv2.error:
            done = False
        if not done:
            raise UserError(f"{path}: should end in the suffix of an image, such as .png or .jpg.")
        replace_file(path, data.tobytes())
        return path

    def to_dict(self) -> dict[str, Tensor]:
        """The tensors as torchvision's detectors return them: `boxes` (D, 4), `labels` (D,) and `scores` (D,)."""
        return {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
