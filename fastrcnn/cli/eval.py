"""fastrcnn eval"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.compose import to_yaml
from fastrcnn.config.schema import EvalConfig

if TYPE_CHECKING:
    from fastrcnn.inference.detect import AnyNetwork

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
    from fastrcnn.build import datasets, machine
    from fastrcnn.parallel import distributed

    datasets.rounded(model, config.runtime)
    with distributed.joined(machine.device(config.runtime)):
        if config.competition:
            return compete(config, model, names, run)
        return evaluate_run(config, model, names, run, arguments)


def evaluate_run(config: EvalConfig, model: AnyNetwork, names: list[str], run: Path, arguments: list[str]) -> int:
    """Evaluates the model on its test set and writes the files of the evaluation."""
    from fastrcnn.build import annotations, datasets, machine, training
    from fastrcnn.build.run_folder import refuse_unusable
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.evaluation.evaluate import table
    from fastrcnn.evaluation.result_files import check_comp4
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
    settings = training.detection(config.detection, model.classifier)
    dtype = machine.precision(config.runtime, machine.device(config.runtime))
    result = evaluate(model, batches, len(test_set), names, metric, settings, dtype)
    if result is None:  # the first process has it
        return 0
    print(table(result))
    about = [("Command", shlex.join(["fastrcnn", "eval", *arguments])), ("Configuration", to_yaml(config))]
    about += training_texts(run)
    report = write_evaluation(result, folder, split, run_title(run, split), about, environment())
    print(f"written to {folder}; open {report.name} there first")
    return 0


def compete(config: EvalConfig, model: AnyNetwork, names: list[str], run: Path) -> int:
    """Detects on one split list, without its truth, and writes what its evaluation server takes."""
    from fastrcnn.build import datasets, machine, training
    from fastrcnn.build.competition import submission
    from fastrcnn.data.loader import detection_loader
    from fastrcnn.inference.evaluate import detect_all
    from fastrcnn.parallel import distributed

    target = submission(config, names, run)
    test_set = datasets.test_set(config.data, names, config.split, truth=False)
    batches = detection_loader(test_set, workers=machine.workers(config.runtime))
    settings = training.detection(config.detection, model.classifier)
    dtype = machine.precision(config.runtime, machine.device(config.runtime))
    samples, found = detect_all(model, batches, len(test_set), names, settings, dtype)
    if not distributed.leads():
        return 0
    path, written, advice = target.write(found, samples)
    total = f"{sum(len(d) for d in found.values())} detections of {len(names)} classes in {len(samples)} images"
    print(f"{total}; no AP, since the truth was not looked at")
    print(f"written to {written}")
    print(f"{advice}, or where you have the truth: fastrcnn reval detections={path} split={target.split} data.root=...")
    return 0
