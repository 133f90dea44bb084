"""The command `fastrcnn train`."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.build.run_config import configure
from fastrcnn.build.sweep import FLAGS, sweep
from fastrcnn.cli import FLAGS_SAID, show_any_text, speak
from fastrcnn.config.schema import TrainConfig
from fastrcnn.parallel.signals import handle_signals

if TYPE_CHECKING:
    from fastrcnn.evaluation.evaluate import Evaluation

NONE_YET = -1.0  # the best mAP before the first evaluation
UNTRAINED = "nothing was trained yet"
EXAMPLES = [
    "fastrcnn train experiment=demo",
    "fastrcnn train recipe=transfer data=custom data.root=mydata        (CPU, pre-trained weights)",
    "fastrcnn train recipe=scratch data=custom data.root=mydata         (CPU, from scratch)",
    "fastrcnn train recipe=paper data=voc07 data.root=VOCdevkit",
    "fastrcnn train run=outputs/train/RUN resume=auto",
    "fastrcnn train -m experiment=demo solver.lr=0.02,0.05 runtime.seed=0,1      (a sweep over all combinations)",
    "fastrcnn train start=outputs/train/RUN data=custom data.root=mydata solver.lr=0.0001",
]


EVERYDAY = [
    "name",
    "start",
    "resume",
    "model.weights",
    "data.root",
    "data.train",
    "data.val",
    "data.test",
    "data.classes",
    "data.short_sides",
    "solver.iterations",
    "solver.images_per_batch",
    "solver.lr",
    "solver.patience",
    "runtime.max_hours",
]


def main(arguments: list[str]) -> int:
    """Train and evaluate a detector, or run a sweep. Print the paths of the report and the run."""
    if any(argument in FLAGS for argument in arguments):
        return sweep(arguments, run, speak_of)
    with handle_signals(UNTRAINED):
        run(configure(arguments))
    return 0


def speak_of(number: int) -> None:
    """Set up logging in a process that trains run `number` of a sweep. Each line begins with this number."""
    show_any_text()
    speak(os.environ.get(FLAGS_SAID, "").split(), f"{number}: ")


def run(config: TrainConfig) -> tuple[Path, Evaluation | None, float | None]:
    """Train and evaluate a detector.

    Returns the folder of the run, the last evaluation, and the mAP for choosing between runs. This is the best mAP on
    the validation splits if there are any, otherwise the mAP on `data.test`. The evaluation and the mAP are None if
    they were not computed. Raises Stopped after a signal or at the time limit, when the current step is saved.
    """
    with handle_signals(UNTRAINED) as stop:
        from fastrcnn.build import annotations
        from fastrcnn.build.run import open_run
        from fastrcnn.evaluation.evaluate import table
        from fastrcnn.parallel import distributed
        from fastrcnn.report.report import run_title, training_texts, write_evaluation
        from fastrcnn.training.tracking import environment

        if config.runtime.max_hours:
            stop.most_seconds = 3600 * config.runtime.max_hours
        if config.runtime.cache:
            keep_freed_memory()
        with open_run(config, stop) as training:
            folder, outcome = training.folder, training.run()
            if outcome is not None:
                print(table(outcome))
                split = annotations.split_name(config.data.test or config.data.val or [])
                title, about = run_title(folder, split), training_texts(folder)
                report = write_evaluation(outcome, folder / "eval" / split, split, title, about, environment())
                print(f"report: {report}")
            if distributed.leads():
                print(f"run: {folder}")
    choosing = training.best if config.data.val else outcome.ap.mean if outcome else None
    return folder, outcome, None if choosing == NONE_YET else choosing


def keep_freed_memory() -> None:
    """Make the process keep freed memory for later allocations instead of returning it to the system.

    glibc returns the memory of a large array immediately, and the system clears it again for the next allocation. A
    step that trains a head on cached feature maps frees and allocates hundreds of megabytes (gradients, weights in half
    precision), and clearing this memory takes nearly as long as the computation. If convolutions are trained, there is
    almost no gain, and the process uses a fifth more memory. With another C library, nothing changes.
    """
    no_mapping, no_trimming = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    with suppress(OSError, AttributeError, TypeError):  # another C library
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # other C libraries can have other constants
        library.mallopt(no_mapping, 0)
        library.mallopt(no_trimming, -1)
