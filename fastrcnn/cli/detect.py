"""fastrcnn detect"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config import DetectConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.model.fast_rcnn import FastRCNN

log = logging.getLogger("fastrcnn")
NOTHING_FOUND = 3
EXAMPLES = [
    "fastrcnn detect checkpoint=RUN source=photo.jpg",
    "fastrcnn detect checkpoint=RUN source='photos/*.jpg' output=found draw_threshold=0.7",
]


def main(arguments: list[str]) -> int:
    """Finds objects in pictures; status 3 where there are none to be drawn."""
    from fastrcnn.cli.trained import load

    config, model, names, run = load("detect", arguments)
    if config.source is None:
        raise UserError("which pictures? source=PICTURE, source=FOLDER or source='FOLDER/*.jpg'.")
    folder = (
        Path(config.output).expanduser() if config.output else run / "detect" / Path(config.source.rstrip("*")).stem
    )
    from fastrcnn import build_sets

    drawn = detect_pictures(config, model, names, build_sets.pictures(config.source), folder)
    print(f"{drawn} object(s) found; pictures and detections.json in {folder}")
    return 0 if drawn else NOTHING_FOUND


def detect_pictures(config: DetectConfig, model: FastRCNN, names: list[str], pictures: list[Path], folder: Path) -> int:
    """Writes each picture with boxes, and detections.json, into `folder`.

    Returns how many detections reach the threshold for drawing.
    """
    import cv2

    from fastrcnn import build, build_sets
    from fastrcnn.data.images import read_image
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.inference import detect
    from fastrcnn.progress import progress
    from fastrcnn.visualize import draw_detections

    build.check_threshold("draw_threshold", config.draw_threshold, model.classifier)
    dataset = build_sets.picture_set(config.data, pictures)
    device = build.device(config.runtime)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    results = detect(
        model,
        detection_loader(dataset),
        build.detection(config.detection, model.classifier),
        build.precision(config.runtime, device),
    )
    entries, drawn = [], 0
    for sample, found in progress(results, len(dataset), "detect"):
        drawn += int((found.scores >= config.draw_threshold).sum())
        image = draw_detections(read_image(sample.path), found, names, config.draw_threshold)
        name = sample.image_id.replace("/", "_")
        ok, data = cv2.imencode(".png", image[:, :, ::-1])
        assert ok
        (folder / f"{name}.png").write_bytes(data.tobytes())
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
            x1, y1, x2, y2 = (round(v, 2) for v in box)
            entries.append(
                {
                    "image_id": sample.image_id,
                    "file": str(sample.path),
                    "category": names[label - 1],
                    "category_id": label,
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    "score": round(score, 5),
                }
            )
    (folder / "detections.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    log.info("%d picture(s) in %.1f s, proposals apart", len(dataset), time.monotonic() - start)
    return drawn
