"""Read and write videos with OpenCV."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.files import temporary, write_atomically

USUAL_RATE = 25.0  # frames per second; used if the file has no valid rate
WRITERS = (("mp4v", ".mp4"), ("MJPG", ".avi"))  # codec and suffix; every OpenCV build supports the second pair


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    number: index of the frame, from 0. time: seconds from the start of the video. image: (H, W, 3) uint8 RGB.
    """

    number: int
    time: float
    image: np.ndarray


class Video:
    """A video file that is read once, from its start. Frames are rotated upright according to the file's metadata.

    rate: frames per second. length: number of frames according to the metadata, which can be wrong; 0 if unknown.
    Raises UserError if OpenCV cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        if not self._capture.isOpened():
            raise UserError(f"{path}: OpenCV cannot read this video. Convert it to .mp4 (H.264) or .avi.")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else USUAL_RATE
        self.length = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order. Raises UserError if no frame can be decoded."""
        for number in itertools.count():
            there, image = self._capture.read()
            if not there:
                break
            yield Frame(number, number / self.rate, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        self._capture.release()
        if number == 0:
            raise UserError(f"{self.path}: no frame can be decoded. The video is empty, truncated or damaged.")


class VideoFile:
    """A video file that is written frame by frame in a `with` block. It gets its name when the block succeeds.

    All frames have the same size. Raises UserError at the end of the block if the file could not be written completely.
    """

    def __init__(self, stem: Path, rate: float, width: int, height: int) -> None:
        """Create a temporary file. Raises UserError if OpenCV cannot create it.

        stem: the path without suffix; the suffix depends on the codecs of the OpenCV build. rate: frames per second.
        width, height: size of the frames in pixels.
        """
        for code, suffix in WRITERS:
            self.path = stem.with_name(stem.name + suffix)
            fourcc = cv2.VideoWriter.fourcc(*code)
            self._part = temporary(stem, f"part{suffix}")  # OpenCV needs the suffix
            self._frames = 0
            self._writer = cv2.VideoWriter(str(self._part), fourcc, rate, (width, height))
            if self._writer.isOpened():
                return
            self._part.unlink(missing_ok=True)
        raise UserError(
            f"{stem}: OpenCV cannot create this video as {' or '.join(s for _, s in WRITERS)}. "
            "Check that the folder exists and is writable, and that the disk is not full."
        )

    def write(self, image: np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8 RGB."""
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self._frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.release()
        try:
            if kind is None:
                self._refuse_incomplete()
                with write_atomically(self.path) as part:
                    self._part.replace(part)
        finally:
            self._part.unlink(missing_ok=True)

    def _refuse_incomplete(self) -> None:
        """Raise UserError if frames are missing from the file, because OpenCV ignores write errors."""
        capture = cv2.VideoCapture(str(self._part))
        readable = sum(1 for _ in iter(capture.grab, False))
        capture.release()
        if readable < self._frames:
            raise UserError(
                f"{self.path}: cannot be written (only {readable} of {self._frames} frames were saved, most likely "
                "because the disk is full). Free some disk space or choose another folder."
            )
