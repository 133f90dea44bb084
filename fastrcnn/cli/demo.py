"""The command `fastrcnn demo`."""

from __future__ import annotations

import logging
from pathlib import Path

from fastrcnn.config.compose import compose
from fastrcnn.errors import UserError

log = logging.getLogger("fastrcnn")
EXAMPLES = ["fastrcnn demo", "fastrcnn demo solver.iterations=300 model.roi_op=roi_align"]
EVERYDAY = ["name", "solver.iterations", "solver.images_per_batch", "solver.lr", "data.short_sides", "runtime.device"]
SHOWN = 6  # number of images on which detections are drawn


def main(arguments: list[str]) -> int:
    """Generate images and proposals, train, evaluate, detect objects, and print the paths of the results."""
    config = compose("train", ["experiment=demo", *arguments])
    if not config.data.test:
        raise UserError("data.test=[]: the demo needs a test split. Remove this key, or use `fastrcnn train`.")
    log.info("1/4  Generating the data set in %s", config.data.root)
    from fastrcnn.data.demo import write_demo

    root = write_demo(Path(config.data.root))
    log.info("2/4  Generating proposals and training")
    from fastrcnn.cli import train

    folder, outcome, _ = train.run(config)
    log.info("3/4  Detecting objects in %d test images", SHOWN)
    from fastrcnn.build import annotations, datasets
    from fastrcnn.build.checkpoints import load
    from fastrcnn.build.detection import detect_pictures
    from fastrcnn.data.annotations.formats.voc_layout import read_split

    detection, network, names, run = load("detect", [f"checkpoint={folder}"])
    pictures = [root / "JPEGImages" / f"{image_id}.jpg" for image_id in read_split(root, "test")[:SHOWN]]
    detect_pictures(detection, datasets.detector(detection, network, names), pictures, run / "detect")
    assert outcome is not None  # the demo has a test set
    shown = annotations.NO_TRUTH if outcome.ap.mean is None else f"mAP {outcome.ap.mean:.3f}"
    print(f"4/4  {shown} on {len(outcome.samples)} test images")
    print(f"     run:      {folder}")
    print(f"     report:   {folder / 'eval' / annotations.split_name(config.data.test) / 'report.html'}")
    print(f"     images:   {run / 'detect'}")
    print(f"     curves:   tensorboard --logdir {folder / 'tensorboard'}")
    return 0
