"""The command `fastrcnn detect`."""

from __future__ import annotations

from pathlib import Path

from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable
from fastrcnn.names import refuse_stream

NOTHING_FOUND = 3
EXAMPLES = [
    "fastrcnn detect checkpoint=RUN source=photo.jpg",
    "fastrcnn detect checkpoint=RUN source='photos/*.jpg' output=found draw_threshold=0.7 formats=[json,csv]",
    "fastrcnn detect checkpoint=RUN source=list.txt data.proposals=mine.proposals",
    "fastrcnn detect checkpoint=model.onnx source=street.mp4 every=5",
]
EVERYDAY = [
    "checkpoint",
    "source",
    "output",
    "formats",
    "batch",
    "every",
    "draw_threshold",
    "data.proposals",
    "data.test_short_sides",
    "detection.score_threshold",
    "detection.nms_iou",
    "detection.max_per_image",
    "runtime.device",
]


def main(arguments: list[str]) -> int:
    """Detect objects in images or a video, and write the results. Returns 3 if no detection is drawn, else 0."""
    refuse_stream(next((a.removeprefix("source=") for a in arguments if a.startswith("source=")), None))
    from fastrcnn.build.checkpoints import load

    config, network, names, run = load("detect", arguments)
    if config.source is None:
        raise UserError(
            "Choose images or a video: source=IMAGE, source=FOLDER, source='FOLDER/*.jpg', source=LIST.txt or "
            "source=VIDEO."
        )
    from fastrcnn.build import datasets, models
    from fastrcnn.build.detection import detect_pictures, detect_video
    from fastrcnn.data import sources
    from fastrcnn.inference.output import folder_for
    from fastrcnn.visualize import NESTED

    if not any(argument.startswith("data.proposals=") for argument in arguments):
        config.data.proposals = None  # the proposals in the checkpoint's configuration are for other images
    models.check_threshold("draw_threshold", config.draw_threshold, network.classifier)
    detector = datasets.detector(config, network, names)
    folder = folder_for(config.output, run, config.source)
    refuse_unusable(folder, f"output={folder}")
    video = sources.is_video(config.source)
    if video:
        output = detect_video(config, detector, Path(config.source).expanduser(), folder)
    else:
        output = detect_pictures(config, detector, sources.pictures(config.source), folder)
    scores, threshold = output.best_scores(), detector.draw_threshold
    above = int((scores >= threshold).sum())
    what = ["video" if video else "images"]
    files = {"json": "detections.json", "csv": "detections.csv", "comp4": "comp4 files"}
    what += [files.get(name, f"labels_{name}") for name in config.formats]
    print(f"{output.drawn} of {len(scores)} detections drawn (score of at least {threshold:.2f})")
    if nested := above - output.drawn:
        print(
            f"{nested} of {len(scores)} detections not drawn, because more than {100 * NESTED:.0f} % of the box is "
            "inside a detection of the same class with a higher score"
        )
    print(f"Wrote {', '.join(what)} to {folder}")
    if output.drawn:
        return 0
    why = f"the best score is {scores[0]:.3f}" if len(scores) else "no score reaches detection.score_threshold"
    print(f"no detection is drawn: {why} (draw_threshold={threshold:g})")
    return NOTHING_FOUND
