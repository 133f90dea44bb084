"""fastrcnn detect"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.cli.detect_files import Findings, claim, folder_for, targets, write_picture, write_timing
from fastrcnn.config.schema import DetectConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from fastrcnn.inference.detector import Detector
    from fastrcnn.structures import Detections, Sample

log = logging.getLogger("fastrcnn")
NOTHING_FOUND = 3
NAMED = 20  # of the files that cannot be read
EXAMPLES = [
    "fastrcnn detect checkpoint=RUN source=photo.jpg",
    "fastrcnn detect checkpoint=RUN source='photos/*.jpg' output=found draw_threshold=0.7 formats=[json,csv]",
    "fastrcnn detect checkpoint=RUN source=list.txt data.proposals=mine.proposals",
    "fastrcnn detect checkpoint=model.onnx source=street.mp4 every=5",
]


def main(arguments: list[str]) -> int:
    """Finds objects in pictures or a video; status 3 where there are none to be drawn."""
    from fastrcnn.build.trained import load

    config, network, names, run = load("detect", arguments)
    if config.source is None:
        raise UserError(
            "which pictures? source=PICTURE, source=FOLDER, source='FOLDER/*.jpg', source=LIST.txt or source=VIDEO."
        )
    from fastrcnn.build import datasets, training
    from fastrcnn.data import sources

    if not any(argument.startswith("data.proposals=") for argument in arguments):
        config.data.proposals = None  # the training's are of its own pictures
    training.check_threshold("draw_threshold", config.draw_threshold, network.classifier)
    detector = datasets.detector(config, network, names)
    folder = folder_for(config.output, run, config.source)
    if sources.is_video(config.source):
        from fastrcnn.cli.detect_video import detect_video

        findings = detect_video(config, detector, Path(config.source).expanduser(), folder)
    else:
        findings = detect_pictures(config, detector, sources.pictures(config.source), folder)
    drawn = findings.at_least(config.draw_threshold)
    what = ["video" if sources.is_video(config.source) else "pictures"]
    what += ["comp4 files" if name == "comp4" else f"detections.{name}" for name in config.formats]
    print(f"{drawn} object(s) found; {' and '.join(what)} in {folder}")
    if drawn:
        return 0
    best = findings.best
    why = f"the best score is {best:.3f}" if best is not None else "no score reaches detection.score_threshold"
    print(f"nothing is drawn: {why}, and draw_threshold={config.draw_threshold:g}")
    return NOTHING_FOUND


def detect_pictures(config: DetectConfig, detector: Detector, pictures: list[Path], folder: Path) -> Findings:
    """Writes each picture with boxes, the detections, and timing.json into `folder`.

    Pictures are rotated upright as their EXIF data ask, and boxes are in pixels of the upright picture. Pictures that
    cannot be read are named and left out. Raises UserError where none is left.
    """
    from fastrcnn.build import annotations, datasets
    from fastrcnn.data.sources import readable
    from fastrcnn.progress import progress
    from fastrcnn.visualize import draw_detections, enlarged

    samples, looks, faults = readable(pictures)
    for fault in faults[:NAMED]:
        log.warning("left out: %s", fault)
    if len(faults) > NAMED:
        log.warning("left out: %d more", len(faults) - NAMED)
    annotations.say_looks(looks)
    if not samples:
        raise UserError(faults[0] if len(faults) == 1 else f"none of the {len(faults)} files is a picture.")
    files = {sample.image_id: f"{sample.image_id.replace('/', '_')}.png" for sample in samples}
    claim(folder, config.source, [*files.values(), *targets(config.formats, detector.classes)], pictures)
    with detector.watch.stage("proposals"):
        samples, boxes = datasets.proposals(config.data, samples, "pictures")
    findings = Findings(detector.classes, ("file",))
    limited = lambda image_id: boxes(image_id)[: config.data.max_proposals]  # noqa: E731
    results = detected(detector, samples, limited, config.batch)
    for sample, image, found in progress(results, len(samples), "detect"):
        findings.add(sample.image_id, found, {"file": str(sample.path)})
        larger, shown = enlarged(image, found)
        drawn = draw_detections(larger, shown, detector.classes, config.draw_threshold)
        write_picture(folder / files[sample.image_id], drawn)
    findings.write(folder, config.formats)
    log.info(write_timing(detector, folder, config.source, len(samples), len(faults)))
    if faults:
        log.warning("%d of %d files could not be read and were left out", len(faults), len(pictures))
    return findings


def detected(
    detector: Detector, samples: Sequence[Sample], proposals: Callable[[str], np.ndarray], batch: int
) -> Iterator[tuple[Sample, np.ndarray, Detections]]:
    """Each picture with its pixels and what is found in it; `batch` of them are read and looked at together."""
    from fastrcnn.data.frames import read_sample

    for start in range(0, len(samples), batch):
        some = samples[start : start + batch]
        images = [read_sample(sample) for sample in some]
        found = detector.detect(images, [proposals(sample.image_id) for sample in some], batch)
        yield from zip(some, images, found, strict=True)
