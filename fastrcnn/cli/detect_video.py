"""What `fastrcnn detect` does with a video."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.cli.detect_files import Findings, claim, targets, write_timing
from fastrcnn.config.schema import DetectConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.data.video import Frame
    from fastrcnn.inference.detector import Detector
    from fastrcnn.structures import Detections

log = logging.getLogger("fastrcnn")
AT_ONCE = 8  # frames, at most, that proposals are made for on different cores


def detect_video(config: DetectConfig, detector: Detector, path: Path, folder: Path) -> Findings:
    """Writes the video with boxes, the detections of every frame that was looked at, and timing.json into `folder`.

    Raises UserError where the video cannot be read, or proposals are given: those of a frame are made as it comes.
    """
    from fastrcnn.data.video import WRITERS, Video, video_file
    from fastrcnn.progress import progress
    from fastrcnn.visualize import draw_detections, enlarged

    if config.data.proposals is not None:
        raise UserError(f"data.proposals={config.data.proposals}: is for pictures; those of a video's frames are made.")
    video = Video(path)
    named = [path.stem + suffix for _, suffix in WRITERS]
    claim(folder, config.source, [*named, *targets(config.formats, detector.classes)], [path])
    findings = Findings(detector.classes, ("frame", "time", "file"))
    frames = looked_at(detector, video.frames(), config.every, config.batch)
    file = None
    with ExitStack() as stack:
        for frame, found, new in progress(frames, video.length, "detect", "frame"):
            if new:
                about = {"frame": frame.number, "time": round(frame.time, 4), "file": str(path)}
                findings.add(f"{path.stem}-{frame.number:06}", found, about)
            image, shown = enlarged(frame.image, found)
            drawn = draw_detections(image, shown, detector.classes, config.draw_threshold)
            if file is None:
                height, width = drawn.shape[:2]
                file = stack.enter_context(video_file(folder / path.stem, video.rate, width, height))
            file.write(drawn)
    findings.write(folder, config.formats)
    log.info(write_timing(detector, folder, config.source, len(findings.found)))
    return findings


def looked_at(
    detector: Detector, frames: Iterator[Frame], every: int, batch: int
) -> Iterator[tuple[Frame, Detections, bool]]:
    """Each frame with the detections of the last frame that was looked at, and whether that is this one.

    Frames 0, `every`, 2 `every`, ... are looked at, as many together as proposals can be made for.
    """
    from fastrcnn.parallel.launch import cores

    together = max(batch, min(cores(), AT_ONCE))
    while chunk := list(islice(frames, every * together)):
        found = detector.detect([frame.image for frame in chunk[::every]], batch=batch)
        for i, frame in enumerate(chunk):
            yield frame, found[i // every], i % every == 0
