"""Run a detector on images or a video for `fastrcnn detect`, and write images with boxes and detections to a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from fastrcnn.build import datasets
from fastrcnn.build.annotations import say_notes
from fastrcnn.config.schema import DetectConfig
from fastrcnn.data.frames import Look, image_notes, look_at
from fastrcnn.data.sources import decode_each, image_ids, samples_of
from fastrcnn.data.video import WRITERS, Video, VideoFile
from fastrcnn.errors import UserError
from fastrcnn.inference.detector import Detector
from fastrcnn.inference.labels import FORMATS
from fastrcnn.inference.output import Output
from fastrcnn.progress import progress
from fastrcnn.structures import Detections
from fastrcnn.visualize import draw_detections, enlarge, worth_drawing

log = logging.getLogger(__name__)
NAMED = 20  # maximum number of unreadable files that the log lists


def detect_pictures(config: DetectConfig, detector: Detector, paths: list[Path], folder: Path) -> Output:
    """Detect objects in images, and write the images with boxes, the detections and timing.json to `folder`.

    Images are rotated according to their EXIF orientation, and boxes are in pixels of the rotated image. Unreadable
    images are logged and skipped. Returns the Output object, which contains the detections. Raises UserError if no
    image can be read, or if data.proposals cannot be used.
    """
    files, threshold = dict(zip(image_ids(paths), paths, strict=True)), detector.draw_threshold
    names = {image_id: f"{image_id.replace('/', '_')}.png" for image_id in files}
    output = Output(folder, str(config.source), ("file",), config.formats, detector, [*names.values()], paths)
    proposals: Callable[[str], np.ndarray] | None = None
    if config.data.proposals is not None:
        samples = look_at(samples_of(paths))[0]
        used, boxes = datasets.proposals(config.data, samples, "pictures")
        lacking = {sample.image_id for sample in samples} - {sample.image_id for sample in used}
        files = {image_id: path for image_id, path in files.items() if image_id not in lacking}
        proposals = lambda image_id: boxes(image_id)[: config.data.max_proposals]  # noqa: E731
    looks: list[Look] = []
    faults: list[str] = []
    with (
        closing(decode_each(files, looks, faults)) as decoded,
        closing(detector.detect_each(decoded, proposals, config.batch)) as images,
    ):
        for image_id, image, found, _ in progress(images, len(files), "detect"):
            output.add(image_id, found, [str(files[image_id])])
            chosen = worth_drawing(found, threshold)
            output.count_drawn(image_id, files[image_id], image.shape[1::-1], found, chosen)
            output.write_image(names[image_id], draw(image, found, threshold))
    for fault in faults[:NAMED]:
        log.warning("Skipped: %s", fault)
    if len(faults) > NAMED:
        log.warning("Skipped %d more file(s)", len(faults) - NAMED)
    if not output.found:
        raise UserError(faults[0] if len(faults) == 1 else f"None of the {len(faults)} files is a readable image.")
    say_notes(image_notes(looks))
    output.write_detections()
    output.write_timing(len(faults))
    if faults:
        log.warning("Skipped %d of %d files because they could not be read", len(faults), len(paths))
    return output


def detect_video(config: DetectConfig, detector: Detector, path: Path, folder: Path) -> Output:
    """Detect objects in a video, and write the video with boxes, the detections and timing.json to `folder`.

    Raises UserError if the video cannot be read, or if data.proposals or label formats are set, which need images.
    """
    if config.data.proposals is not None:
        raise UserError(f"data.proposals={config.data.proposals}: not supported for videos. Remove data.proposals.")
    if labels := [name for name in config.formats if name in FORMATS]:
        raise UserError(f"formats=[{','.join(labels)}]: not supported for videos. Use only json, csv or comp4.")
    video, columns, threshold = Video(path), ("frame", "time", "file"), detector.draw_threshold
    names = [path.stem + suffix for _, suffix in WRITERS]
    output = Output(folder, str(config.source), columns, config.formats, detector, names, [path])
    pairs = ((frame, frame.image) for frame in video.frames())
    with ExitStack() as stack:
        frames = stack.enter_context(closing(detector.detect_each(pairs, batch=config.batch, every=config.every)))
        file = None
        for frame, image, found, new in progress(frames, video.length, "detect", "frame"):
            if new:
                output.add(f"{path.stem}-{frame.number:06}", found, [frame.number, round(frame.time, 4), str(path)])
                output.drawn += len(worth_drawing(found, threshold))
            drawn = draw(image, found, threshold)
            if file is None:
                height, width = drawn.shape[:2]
                file = stack.enter_context(VideoFile(folder / path.stem, video.rate, width, height))
            file.write(drawn)
    output.write_detections()
    output.write_timing(left_out=0)
    return output


def draw(image: np.ndarray, found: Detections, threshold: float) -> np.ndarray:
    """Return the image (H, W, 3), enlarged if it is small, with its detections drawn."""
    larger, shown = enlarge(image, found)
    return draw_detections(larger, shown, found.classes, threshold)
