"""fastrcnn detect"""

from __future__ import annotations

from pathlib import Path

from fastrcnn.errors import UserError
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
    """Finds objects in pictures or a video; status 3 where there are none to be drawn."""
    refuse_stream(next((a.removeprefix("source=") for a in arguments if a.startswith("source=")), None))
    from fastrcnn.build.checkpoints import load

    config, network, names, run = load("detect", arguments)
    if config.source is None:
        raise UserError(
            "which pictures? source=PICTURE, source=FOLDER, source='FOLDER/*.jpg', source=LIST.txt or source=VIDEO."
        )
    from fastrcnn.build import datasets, models
    from fastrcnn.build.detection import detect_pictures, detect_video
    from fastrcnn.data import sources
    from fastrcnn.inference.output import folder_for

    if not any(argument.startswith("data.proposals=") for argument in arguments):
        config.data.proposals = None  # the training's are of its own images
    models.check_threshold("draw_threshold", config.draw_threshold, network.classifier)
    detector = datasets.detector(config, network, names)
    folder = folder_for(config.output, run, config.source)
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
    print(f"{output.drawn} drawn of {len(scores)} detections: those with a score of {threshold:.2f} or more")
    if nested := above - output.drawn:
        print(f"{nested} more lie within a better one of their class, and are not drawn")
    print(f"{' and '.join(what)} in {folder}")
    if output.drawn:
        return 0
    why = f"the best score is {scores[0]:.3f}" if len(scores) else "no score reaches detection.score_threshold"
    print(f"nothing is drawn: {why}, and draw_threshold={threshold:g}")
    return NOTHING_FOUND
