"""fastrcnn detect"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.schema import DetectConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from fastrcnn.inference.detector import Detector
    from fastrcnn.inference.output import Output
    from fastrcnn.structures import Detections

log = logging.getLogger("fastrcnn")
NOTHING_FOUND = 3
NAMED = 20  # of the files that cannot be read
SPLIT = "detect"  # in the names of comp4 files
EXAMPLES = [
    "fastrcnn detect checkpoint=RUN source=photo.jpg",
    "fastrcnn detect checkpoint=RUN source='photos/*.jpg' output=found draw_threshold=0.7 formats=[json,csv]",
    "fastrcnn detect checkpoint=RUN source=list.txt data.proposals=mine.proposals",
    "fastrcnn detect checkpoint=model.onnx source=street.mp4 every=5",
]


def main(arguments: list[str]) -> int:
    """Finds objects in pictures or a video; status 3 where there are none to be drawn."""
    from fastrcnn.build.checkpoints import load

    config, network, names, run = load("detect", arguments)
    if config.source is None:
        raise UserError(
            "which pictures? source=PICTURE, source=FOLDER, source='FOLDER/*.jpg', source=LIST.txt or source=VIDEO."
        )
    from fastrcnn.build import datasets, training
    from fastrcnn.data import sources
    from fastrcnn.inference.output import folder_for

    if not any(argument.startswith("data.proposals=") for argument in arguments):
        config.data.proposals = None  # the training's are of its own images
    training.check_threshold("draw_threshold", config.draw_threshold, network.classifier)
    detector = datasets.detector(config, network, names)
    folder = folder_for(config.output, run, config.source)
    video = sources.is_video(config.source)
    if video:
        output = detect_video(config, detector, Path(config.source).expanduser(), folder)
    else:
        output = detect_pictures(config, detector, sources.pictures(config.source), folder)
    drawn = output.at_least(config.draw_threshold)
    what = ["video" if video else "pictures"]
    what += ["comp4 files" if name == "comp4" else f"detections.{name}" for name in config.formats]
    print(f"{drawn} object(s) found; {' and '.join(what)} in {folder}")
    if drawn:
        return 0
    best = output.best
    why = f"the best score is {best:.3f}" if best is not None else "no score reaches detection.score_threshold"
    print(f"nothing is drawn: {why}, and draw_threshold={config.draw_threshold:g}")
    return NOTHING_FOUND


def detect_pictures(config: DetectConfig, detector: Detector, paths: list[Path], folder: Path) -> Output:
    """Writes each image with boxes, the detections, and timing.json into `folder`.

    Images are rotated upright as their EXIF data ask, and boxes are in pixels of the upright image. Images that cannot
    be read are named and left out. Raises UserError where none is left.
    """
    from fastrcnn.build import annotations, datasets
    from fastrcnn.data.frames import Look, image_notes, look_at
    from fastrcnn.data.sources import decode_each, image_ids, samples_of
    from fastrcnn.inference.output import Output
    from fastrcnn.progress import progress

    files = dict(zip(image_ids(paths), paths, strict=True))
    names = {image_id: f"{image_id.replace('/', '_')}.png" for image_id in files}
    output = Output(folder, str(config.source), ("file",), [*names.values(), *targets(config, detector)], paths)
    proposals: Callable[[str], np.ndarray] | None = None
    if config.data.proposals is not None:
        samples = look_at(samples_of(paths))[0]
        used, boxes = datasets.proposals(config.data, samples, "pictures")
        lacking = {sample.image_id for sample in samples} - {sample.image_id for sample in used}
        files = {image_id: path for image_id, path in files.items() if image_id not in lacking}
        proposals = lambda image_id: boxes(image_id)[: config.data.max_proposals]  # noqa: E731
    looks: list[Look] = []
    faults: list[str] = []
    images = detector.detect_each(decode_each(files, looks, faults), proposals, config.batch)
    for image_id, image, found, _ in progress(images, len(files), "detect"):
        output.add(image_id, found, [str(files[image_id])])
        output.write_image(names[image_id], draw(config, image, found))
    for fault in faults[:NAMED]:
        log.warning("left out: %s", fault)
    if len(faults) > NAMED:
        log.warning("left out: %d more", len(faults) - NAMED)
    if not output.found:
        raise UserError(faults[0] if len(faults) == 1 else f"none of the {len(faults)} files is a picture.")
    annotations.say_notes(image_notes(looks))
    finish(config, detector, output, len(faults))
    if faults:
        log.warning("%d of %d files could not be read and were left out", len(faults), len(paths))
    return output


def detect_video(config: DetectConfig, detector: Detector, path: Path, folder: Path) -> Output:
    """Writes the video with boxes, the detections of every frame that was looked at, and timing.json into `folder`.

    Raises UserError where the video cannot be read, or proposals are given: those of a frame are made as it comes.
    """
    from fastrcnn.data.video import WRITERS, Video, VideoFile
    from fastrcnn.inference.output import Output
    from fastrcnn.progress import progress

    if config.data.proposals is not None:
        raise UserError(f"data.proposals={config.data.proposals}: is for pictures; those of a video's frames are made.")
    video = Video(path)
    names = [*(path.stem + suffix for _, suffix in WRITERS), *targets(config, detector)]
    output = Output(folder, str(config.source), ("frame", "time", "file"), names, [path])
    pairs = ((frame, frame.image) for frame in video.frames())
    frames = detector.detect_each(pairs, batch=config.batch, every=config.every)
    with ExitStack() as stack:
        file = None
        for frame, image, found, new in progress(frames, video.length, "detect", "frame"):
            if new:
                output.add(f"{path.stem}-{frame.number:06}", found, [frame.number, round(frame.time, 4), str(path)])
            drawn = draw(config, image, found)
            if file is None:
                height, width = drawn.shape[:2]
                file = stack.enter_context(closing(VideoFile(folder / path.stem, video.rate, width, height)))
            file.write(drawn)
    finish(config, detector, output)
    return output


def draw(config: DetectConfig, image: np.ndarray, found: Detections) -> np.ndarray:
    """The image (H, W, 3), enlarged if it is small, with what is found in it."""
    from fastrcnn.visualize import draw_detections, enlarged

    larger, shown = enlarged(image, found)
    return draw_detections(larger, shown, found.classes, config.draw_threshold)


def targets(config: DetectConfig, detector: Detector) -> list[str]:
    """Names of the files that hold the detections. Raises UserError for a class whose detections cannot have a
    comp4 file."""
    from fastrcnn.evaluation.result_files import check_comp4
    from fastrcnn.names import comp4_name

    names = [f"detections.{name}" for name in config.formats if name != "comp4"]
    if "comp4" in config.formats:
        check_comp4(SPLIT, detector.classes)
        names += [comp4_name(SPLIT, name) for name in detector.classes]
    return names


def finish(config: DetectConfig, detector: Detector, output: Output, left_out: int = 0) -> None:
    """Writes the detections in the formats asked for, and timing.json."""
    from fastrcnn.evaluation.result_files import write_comp4
    from fastrcnn.evaluation.voc_ap import detections_by_class

    if "json" in config.formats:
        output.write_json()
    if "csv" in config.formats:
        output.write_csv()
    if "comp4" in config.formats:
        write_comp4(output.folder, SPLIT, detections_by_class(output.found, detector.classes), output.image_ids)
    log.info(output.write_timing(detector, left_out))
