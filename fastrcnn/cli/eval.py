"""fastrcnn eval"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.compose import to_yaml
from fastrcnn.config.schema import EvalConfig

if TYPE_CHECKING:
    from fastrcnn.inference.network import Network

EXAMPLES = [
    "fastrcnn eval checkpoint=outputs/voc07/...",
    "fastrcnn eval checkpoint=RUN split=val metric=voc10",
    "fastrcnn eval checkpoint=RUN data=voc07 data.root=VOCdevkit detection=paper",
    "fastrcnn eval checkpoint=RUN data=voc12 data.root=VOCdevkit split=VOC2012/test competition=true",
]


def main(arguments: list[str]) -> int:
    """Evaluates a checkpoint and writes metrics.json, the detections and a report, or detections alone for a
    competition."""
    from fastrcnn.build.checkpoints import load

    config, network, names, run = load("eval", arguments)
    return evaluate_network(config, network, names, run, arguments)


def evaluate_network(config: EvalConfig, network: Network, names: list[str], run: Path, arguments: list[str]) -> int:
    """The same of a network that is loaded. run: the folder of its run."""
    from fastrcnn.build import machine
    from fastrcnn.parallel import distributed

    with distributed.join_processes(machine.device(config.runtime)):
        if config.competition:
            return compete(config, network, names, run)
        return evaluate_run(config, network, names, run, arguments)


def evaluate_run(config: EvalConfig, network: Network, names: list[str], run: Path, arguments: list[str]) -> int:
    """Evaluates the network on its test set and writes the files of the evaluation."""
    from fastrcnn.build import annotations, datasets, machine, training
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.evaluation.evaluate import table
    from fastrcnn.evaluation.result_files import check_comp4
    from fastrcnn.files import refuse_unusable
    from fastrcnn.inference.evaluate import evaluate
    from fastrcnn.report.report import run_title, training_texts, write_evaluation
    from fastrcnn.training.tracking import environment

    metric = config.metric or config.data.metric
    split = annotations.split_name(annotations.test_splits(config.data, config.split))
    folder = Path(config.output).expanduser() if config.output else run / "eval" / split
    check_comp4(split, names)
    refuse_unusable(folder, f"output={folder}")
    test_set = datasets.test_set(config.data, names, config.split)
    batches = detection_loader(test_set, workers=machine.workers(config.runtime))
    settings = training.detection(config.detection, network.classifier)
    result = evaluate(network, batches, len(test_set), names, metric, settings)
    if result is None:  # the first process has it
        return 0
    print(table(result))
    about = [("Command", shlex.join(["fastrcnn", "eval", *arguments])), ("Configuration", to_yaml(config))]
    about += training_texts(run)
    report = write_evaluation(result, folder, split, run_title(run, split), about, environment())
    print(f"written to {folder}; open {report.name} there first")
    return 0


def compete(config: EvalConfig, network: Network, names: list[str], run: Path) -> int:
    """Detects on one split list, without its truth, and writes what its evaluation server takes."""
    from fastrcnn.build import datasets, machine, training
    from fastrcnn.build.competition import submission
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.inference.evaluate import detect_all
    from fastrcnn.parallel import distributed

    target = submission(config, names, run)
    test_set = datasets.test_set(config.data, names, config.split, truth=False)
    batches = detection_loader(test_set, workers=machine.workers(config.runtime))
    settings = training.detection(config.detection, network.classifier)
    samples, found = detect_all(network, batches, len(test_set), names, settings)
    if not distributed.leads():
        return 0
    path, written, advice = target.write(found, samples)
    total = f"{sum(len(d) for d in found.values())} detections of {len(names)} classes in {len(samples)} images"
    print(f"{total}; no AP, since the truth was not looked at")
    print(f"written to {written}")
    print(f"{advice}, or where you have the truth: fastrcnn reval detections={path} split={target.split} data.root=...")
    return 0
