"""Frames of a video, in and out, by OpenCV."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fastrcnn.errors import UserError

USUAL_RATE = 25.0  # frames a second, where a file does not say
WRITERS = (("mp4v", ".mp4"), ("MJPG", ".avi"))  # what is tried; OpenCV has the second everywhere


@dataclass(frozen=True)
class Frame:
    """number: counted from 0. time: seconds from the beginning. image: (H, W, 3) uint8 RGB."""

    number: int
    time: float
    image: np.ndarray


class Video:
    """A video file that is read once, from its beginning; frames are upright, as the file's rotation asks.

    rate: frames a second. length: number of frames as the file says it, which may be wrong.
    Raises UserError for what OpenCV cannot read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        if not self._capture.isOpened():
            raise UserError(f"{path}: not a video that OpenCV can read; convert it to .mp4 (H.264) or .avi.")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else USUAL_RATE
        self.length = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def frames(self) -> Iterator[Frame]:
        """Raises UserError where there is not one."""
        for number in itertools.count():
            there, image = self._capture.read()
            if not there:
                break
            yield Frame(number, number / self.rate, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        self._capture.release()
        if number == 0:
            raise UserError(f"{self.path}: no frame of the video can be decoded; it is empty, cut short or damaged.")


class VideoFile:
    """A video file that grows by a frame at a time, all of one size; whole when it is closed."""

    def __init__(self, stem: Path, rate: float, width: int, height: int) -> None:
        """stem: the file without its suffix, which depends on what OpenCV can write here. Raises UserError."""
        for code, suffix in WRITERS:
            self.path = stem.with_name(stem.name + suffix)
            fourcc = cv2.VideoWriter.fourcc(*code)
            self._writer = cv2.VideoWriter(str(self.path), fourcc, rate, (width, height))
            if self._writer.isOpened():
                return
            self.path.unlink(missing_ok=True)
        raise UserError(f"{stem}: OpenCV can write no video there ({', '.join(s for _, s in WRITERS)}).")

    def write(self, image: np.ndarray) -> None:
        """image: (H, W, 3) uint8 RGB."""
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()
