"""fastrcnn train"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.build.run_config import configure
from fastrcnn.build.sweep import FLAGS, sweep
from fastrcnn.cli import FLAGS_SAID, keep_freed_memory, show_any_text, speak
from fastrcnn.config.schema import TrainConfig
from fastrcnn.parallel.signals import handle_signals

if TYPE_CHECKING:
    from fastrcnn.evaluation.evaluate import Evaluation

UNTRAINED = "nothing was trained yet"
EXAMPLES = [
    "fastrcnn train experiment=demo",
    "fastrcnn train recipe=transfer data=custom data.root=mydata        (without a GPU, from ImageNet weights)",
    "fastrcnn train recipe=scratch data=custom data.root=mydata         (without a GPU and without weights)",
    "fastrcnn train recipe=paper data=voc07 data.root=VOCdevkit",
    "fastrcnn train run=outputs/train/... resume=auto",
    "fastrcnn train -m experiment=demo solver.lr=0.02,0.05 runtime.seed=0,1      (every combination)",
    "fastrcnn train start=outputs/train/... data=custom data.root=mydata solver.lr=0.0001",
]


def main(arguments: list[str]) -> int:
    """Trains, evaluates, and says where everything is."""
    if any(argument in FLAGS for argument in arguments):
        return sweep(arguments, run, speak_of)
    with handle_signals(UNTRAINED):
        run(configure(arguments))
    return 0


def speak_of(number: int) -> None:
    """Sets up what a process says that does a sweep's run of this number."""
    keep_freed_memory()
    show_any_text()
    speak(os.environ.get(FLAGS_SAID, "").split(), f"{number}: ")


def run(config: TrainConfig) -> tuple[Path, Evaluation | None]:
    """Trains as the configuration says; returns the run's folder and the last evaluation, None where `data.test` is
    empty.

    SIGTERM or SIGINT end it after a step, which is saved: Stopped.
    """
    with handle_signals(UNTRAINED) as stop:
        from fastrcnn.build import annotations
        from fastrcnn.build.run import open_run
        from fastrcnn.evaluation.evaluate import table
        from fastrcnn.parallel import distributed
        from fastrcnn.report.report import run_title, training_texts, write_evaluation
        from fastrcnn.training.tracking import environment

        with open_run(config, stop) as training:
            folder, outcome = training.folder, training.run()
            if outcome is not None:
                print(table(outcome))
                split = annotations.split_name(config.data.test)
                title, about = run_title(folder, split), training_texts(folder)
                report = write_evaluation(outcome, folder / "eval" / split, split, title, about, environment())
                print(f"report: {report}")
            if distributed.leads():
                print(f"run: {folder}")
    return folder, outcome
