"""What a run leaves in its folder for people: metrics.csv, TensorBoard events, its log and its description."""

from __future__ import annotations

import csv
import json
import logging
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.evaluation.voc_ap import ClassAP
from fastrcnn.files import lock, replace_file, write_atomically

log = logging.getLogger("fastrcnn")
EVALUATED = "eval/mAP"  # the last row of an evaluation


class Tracker:
    """Records numbers and images of a run in its folder.

    A row of metrics.csv is (step, name, value). When a run resumes at `start`, later rows of an earlier attempt are
    removed, and TensorBoard drops what it had from that step on. evaluated: whether the evaluation after `start` steps
    is on record.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.csv_path = folder / "metrics.csv"
        kept = []
        if start and self.csv_path.is_file():
            with self.csv_path.open(newline="", encoding="utf-8", errors="replace") as file:
                # the last row may be cut short, where the machine stopped
                kept = [r for r in csv.reader(file) if len(r) == 3 and r[0].isdigit() and int(r[0]) <= start]
        self.evaluated = any(r[:2] == [str(start), EVALUATED] for r in kept)  # else what there is of it is in doubt
        if not self.evaluated:
            kept = [r for r in kept if int(r[0]) < start or not r[1].startswith("eval/")]
        self._there = {(int(step), name) for step, name, _ in kept if int(step) == start}
        with write_atomically(self.csv_path) as part, part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", "name", "value"], *kept])
        self._file = self.csv_path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Records numbers after `step` steps, with names such as `train/loss`. None, for a number that does not exist,
        is `nan` in metrics.csv and absent from TensorBoard. A number that the resumed run has already is left out."""
        for name, value in values.items():
            if (step, name) in self._there:
                continue
            self._csv.writerow([step, name, "nan" if value is None else f"{value:.6g}"])
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._file.flush()

    def precision_recall(self, step: int, name: str, found: ClassAP) -> None:
        """The curve of a class, at the thresholds 0, 1/126, 2/126, ..., 1 of the score."""
        counts = curve_counts(found, np.linspace(0.0, 1.0, 127))
        self._board.add_pr_curve_raw(name, *counts, step, 127)  # type: ignore[call-arg]

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, (H, W, 3) uint8 RGB."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._board.close()


class Silent(Tracker):
    """Records nothing: of the processes of a run the first one does."""

    def __init__(self) -> None:
        self.evaluated = False

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None: ...

    def precision_recall(self, step: int, name: str, found: ClassAP) -> None: ...

    def picture(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None: ...


def curve_counts(found: ClassAP, thresholds: np.ndarray) -> tuple[np.ndarray, ...]:
    """Right and wrong detections, wrong and right rejections, precision and recall (T,) of a class where detections
    that score less than a threshold (T,) are rejected.

    Precision is 1 where nothing is left. Of wrong boxes that were never detected there is no number: the right
    rejections are those of detections.
    """
    correct = np.diff(np.round(found.recall * found.positives), prepend=0.0)  # by falling score
    left = np.searchsorted(-found.scores, -thresholds, side="right")  # detections that score as much or more
    right = np.append(0.0, np.cumsum(correct))[left]
    wrong = left - right
    precision = np.divide(right, left, out=np.ones(len(thresholds)), where=left > 0)
    rejected = len(correct) - correct.sum() - wrong
    return right, wrong, found.positives - right, rejected, precision, right / max(found.positives, 1)


def refuse_used(folder: Path) -> None:
    """Raises UserError where there is a run in the folder already."""
    if (folder / "checkpoints").is_dir() or (folder / "config.yaml").exists():
        raise UserError(
            f"run={folder}: there is a run in this folder already. Go on with it by resume=auto, or name a new one."
        )


def claim(folder: Path) -> AbstractContextManager[None]:
    """Makes a run's folder, and holds it for this process alone until the body ends, however it ends.

    Raises UserError where another process is writing there, or the folder cannot be made.
    """
    busy = "another process is training in this folder"
    return lock(folder / ".lock", f"run={folder}", busy, "choose another with run=PATH")


class LogFile(logging.FileHandler):
    """A file that does without what a full disk does not take: a checkpoint that it does not take is an error."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Where logging would print a traceback."""


@contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Messages go to train.log in the folder as well."""
    file = LogFile(folder / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)
    try:
        yield
    finally:
        log.removeHandler(file)
        file.close()


def environment() -> dict[str, Any]:
    """Versions and hardware, for environment.json."""
    import cv2
    import torch
    import torchvision

    from fastrcnn import __version__

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "fastrcnn": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def describe_run(folder: Path, config_yaml: str) -> None:
    """Writes config.yaml, command.txt and environment.json into a run's folder."""
    replace_file(folder / "config.yaml", config_yaml.encode())  # cut short, it would keep the run from being resumed
    # a path on the command line need not be text
    with (folder / "command.txt").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {' '.join(sys.argv)}\n")
    replace_file(folder / "environment.json", (json.dumps(environment(), indent=2) + "\n").encode())
