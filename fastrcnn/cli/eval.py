"""fastrcnn eval"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.schema import EvalConfig

if TYPE_CHECKING:
    from fastrcnn.inference.detect import AnyNetwork

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
    from fastrcnn.build.trained import load

    config, model, names, run = load("eval", arguments)
    return evaluate_network(config, model, names, run, arguments)


def evaluate_network(config: EvalConfig, model: AnyNetwork, names: list[str], run: Path, arguments: list[str]) -> int:
    """The same of a network that is loaded. run: the folder of its run."""
    from fastrcnn.build import datasets, machine
    from fastrcnn.parallel import distributed

    datasets.rounded(model, config.runtime)
    with distributed.join_processes(machine.device(config.runtime)):
        if config.competition:
            from fastrcnn.cli.competition import compete

            return compete(config, model, names, run)
        return evaluate_run(config, model, names, run, arguments)


def evaluate_run(config: EvalConfig, model: AnyNetwork, names: list[str], run: Path, arguments: list[str]) -> int:
    """See main."""
    from fastrcnn.build import annotations, datasets, machine, training
    from fastrcnn.cli import evaluated
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.evaluation.evaluate import evaluate, table

    metric = annotations.metric(config.data, config.metric)
    device = machine.device(config.runtime)
    split = annotations.split_name(annotations.test_splits(config.data, config.split))
    folder = Path(config.output).expanduser() if config.output else run / "eval" / split
    evaluated.check_place(folder, split, names)
    test_set = datasets.test_set(config.data, names, config.split)
    result = evaluate(
        model,
        detection_loader(test_set, workers=machine.workers(config.runtime)),
        len(test_set),
        names,
        metric,
        training.detection(config.detection, model.classifier),
        machine.precision(config.runtime, device),
    )
    if result is None:  # the first process has it
        return 0
    about = [*evaluated.command("eval", arguments, config), *evaluated.training(run)]
    print(table(result))
    report = evaluated.write(result, folder, split, evaluated.title(run, split), about)
    print(f"written to {folder}; open {report.name} there first")
    return 0
