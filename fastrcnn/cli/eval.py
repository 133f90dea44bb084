"""fastrcnn eval"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger("fastrcnn")
EXAMPLES = [
    "fastrcnn eval checkpoint=outputs/voc07/...",
    "fastrcnn eval checkpoint=RUN split=val data.metric=voc10",
    "fastrcnn eval checkpoint=RUN data=voc07 data.root=VOCdevkit detection=paper",
]


def main(arguments: list[str]) -> int:
    """Evaluates a checkpoint and writes metrics.json and the detections."""
    from fastrcnn.cli.trained import load

    config, model, names, run = load("eval", arguments)
    from fastrcnn import build, build_data
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.evaluation.evaluate import evaluate, table, write_results

    device = build.device(config.runtime)
    test_set = build_data.test_set(config.data, names, config.split)
    result = evaluate(
        model,
        detection_loader(test_set, workers=build.workers(config.runtime)),
        len(test_set),
        names,
        build_data.metric(config.data),
        build.detection(config.detection, model.classifier),
        build.precision(config.runtime, device),
    )
    split = build_data.split_name(build_data.test_splits(config.data, config.split))
    folder = Path(config.output).expanduser() if config.output else run / "eval" / split
    write_results(result, folder, split)
    print(table(result))
    print(f"written to {folder}")
    return 0
