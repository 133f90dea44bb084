"""fastrcnn eval"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger("fastrcnn")
EXAMPLES = [
    "fastrcnn eval checkpoint=outputs/voc07/...",
    "fastrcnn eval checkpoint=RUN split=val metric=voc10",
    "fastrcnn eval checkpoint=RUN data=voc07 data.root=VOCdevkit detection=paper",
    "fastrcnn eval checkpoint=RUN data=voc12 data.root=VOCdevkit split=VOC2012/test competition=true",
]


def main(arguments: list[str]) -> int:
    """Evaluates a checkpoint and writes metrics.json, the detections and a report, or detections alone for a
    competition."""
    from fastrcnn.cli.trained import load

    config, model, names, run = load("eval", arguments)
    if config.competition:
        from fastrcnn.cli.competition import compete

        return compete(config, model, names, run)
    from fastrcnn import build, build_data, build_sets
    from fastrcnn.cli import evaluated
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.evaluation.evaluate import evaluate, table

    metric = build_data.metric(config.data, config.metric)
    device = build.device(config.runtime)
    test_set = build_sets.test_set(config.data, names, config.split)
    result = evaluate(
        model,
        detection_loader(test_set, workers=build.workers(config.runtime)),
        len(test_set),
        names,
        metric,
        build.detection(config.detection, model.classifier),
        build.precision(config.runtime, device),
    )
    split = build_data.split_name(build_data.test_splits(config.data, config.split))
    folder = Path(config.output).expanduser() if config.output else run / "eval" / split
    about = [*evaluated.command("eval", arguments, config), *evaluated.training(run)]
    report = evaluated.write(result, folder, split, evaluated.title(run, split), about)
    print(table(result))
    print(f"written to {folder}; open {report.name} there first")
    return 0
