"""The command `fastrcnn eval`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.schema import EvalConfig
from fastrcnn.config.values import as_yaml

if TYPE_CHECKING:
    from fastrcnn.inference.network import Network

EXAMPLES = [
    "fastrcnn eval checkpoint=outputs/train/RUN",
    "fastrcnn eval checkpoint=RUN split=val metric=voc10",
    "fastrcnn eval checkpoint=RUN data=voc07 data.root=VOCdevkit detection=paper",
    "fastrcnn eval checkpoint=RUN data=voc12 data.root=VOCdevkit split=VOC2012/test competition=true",
]
EVERYDAY = [
    "checkpoint",
    "split",
    "metric",
    "competition",
    "output",
    "data.root",
    "data.test",
    "data.test_short_sides",
    "data.proposals",
    "detection.score_threshold",
    "detection.nms_iou",
    "runtime.device",
]


def main(arguments: list[str]) -> int:
    """Evaluate a checkpoint. Write metrics.json, detections and a report, or only files for an evaluation server."""
    from fastrcnn.build.checkpoints import load

    config, network, names, run = load("eval", arguments)
    return evaluate_network(config, network, names, run, arguments)


def evaluate_network(config: EvalConfig, network: Network, names: list[str], run: Path, arguments: list[str]) -> int:
    """Evaluate a loaded network and write the results. run: the folder of its run. arguments: the command line."""
    from fastrcnn.build import evaluation, machine
    from fastrcnn.evaluation.evaluate import table
    from fastrcnn.parallel import distributed
    from fastrcnn.report.report import run_title, training_texts, write_evaluation
    from fastrcnn.training.tracking import environment

    with distributed.join_processes(machine.device(config.runtime)):
        if config.competition:
            for line in evaluation.compete(config, network, names, run):
                print(line)
            return 0
        folder, split = evaluation.result_folder(config, run)
        result = evaluation.evaluate_run(config, network, names, split)
        if result is None:  # only the first process has the result
            return 0
        print(table(result))
        about = [("Command", shlex.join(["fastrcnn", "eval", *arguments])), ("Configuration", as_yaml(asdict(config)))]
        about += training_texts(run)
        report = write_evaluation(result, folder, split, run_title(run, split), about, environment())
        print(f"Wrote the results to {folder}\nreport: {report}")
    return 0
