"""The records of a run in its folder: metrics.csv, TensorBoard events, the log and the run's description."""

from __future__ import annotations

import csv
import json
import logging
import platform
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.evaluation.voc_ap import ClassAP
from fastrcnn.files import ADVICE, lock, replace_file, write_atomically

log = logging.getLogger("fastrcnn")
MOST_THREADS = 1024  # a larger number in environment.json is not that of a run
EVALUATED = "eval/mAP"  # name of the last row of an evaluation in metrics.csv


class Tracker:
    """Records the metrics and images of a run in its folder, in metrics.csv and for TensorBoard.

    A row of metrics.csv is (step, name, value). If a run resumes after `start` steps, the rows of later steps are
    removed, and TensorBoard hides the events of those steps. evaluated: whether metrics.csv contains the complete
    evaluation after `start` steps.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.csv_path = folder / "metrics.csv"
        kept = []
        if start and self.csv_path.is_file():
            with self.csv_path.open(newline="", encoding="utf-8", errors="replace") as file:
                # the last row can be incomplete after a crash
                kept = [r for r in csv.reader(file) if len(r) == 3 and r[0].isdigit() and int(r[0]) <= start]
        self.evaluated = any(r[:2] == [str(start), EVALUATED] for r in kept)  # otherwise, rows can be missing
        if not self.evaluated:
            kept = [r for r in kept if int(r[0]) < start or not r[1].startswith("eval/")]
        self._there = {(int(step), name) for step, name, _ in kept if int(step) == start}
        with write_atomically(self.csv_path) as part, part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", "name", "value"], *kept])
        self._file = self.csv_path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Record values after `step` steps. values: maps names such as `train/loss` to values.

        An undefined value is None. It is written as `nan` to metrics.csv, and not written to TensorBoard. Values that
        metrics.csv already contained when the run resumed are skipped.
        """
        for name, value in values.items():
            if (step, name) in self._there:
                continue
            self._csv.writerow([step, name, "nan" if value is None else f"{value:.6g}"])
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._file.flush()

    def precision_recall(self, step: int, name: str, found: ClassAP) -> None:
        """Record the precision-recall curve of a class for TensorBoard, at the score thresholds 0, 1/126, ..., 1."""
        counts = curve_counts(found, np.linspace(0.0, 1.0, 127))
        self._board.add_pr_curve_raw(name, *counts, step, 127)  # type: ignore[call-arg]

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Record an image (H, W, 3) uint8 RGB for TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._board.close()


class Silent(Tracker):
    """Records nothing. It is used in all processes of a run except the first."""

    def __init__(self) -> None:
        self.evaluated = False

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None: ...

    def precision_recall(self, step: int, name: str, found: ClassAP) -> None: ...

    def picture(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None: ...


def curve_counts(found: ClassAP, thresholds: np.ndarray) -> tuple[np.ndarray, ...]:
    """Count true positives, false positives, true negatives and false negatives of a class at thresholds (T,).

    Returns the four counts, the precision and the recall, each (T,). Detections with a score below a threshold are
    rejected. Precision is 1 if all detections are rejected. A true negative is a wrong detection that is rejected.
    """
    correct = np.diff(np.round(found.recall * found.positives), prepend=0.0)  # by descending score
    left = np.searchsorted(-found.scores, -thresholds, side="right")  # number of detections that are not rejected
    right = np.append(0.0, np.cumsum(correct))[left]
    wrong = left - right
    precision = np.divide(right, left, out=np.ones(len(thresholds)), where=left > 0)
    rejected = len(correct) - correct.sum() - wrong
    return right, wrong, rejected, found.positives - right, precision, right / max(found.positives, 1)


def refuse_used(folder: Path) -> None:
    """Raise UserError if the folder already contains a run."""
    if (folder / "checkpoints").is_dir() or (folder / "config.yaml").exists():
        raise UserError(
            f"run={folder}: this folder already contains a run. Continue it with resume=auto, or choose another folder "
            "with run=PATH."
        )


def claim(folder: Path) -> AbstractContextManager[None]:
    """Return a context manager that creates a run's folder and locks it against other processes.

    It raises UserError if another process has locked the folder, or if the folder cannot be created.
    """
    busy = "another process is training in this folder"
    return lock(folder / ".lock", f"run={folder}", busy, "choose another folder with run=PATH")


class LogFile(logging.FileHandler):
    """A log file that ignores write errors, for example on a full disk. A run can continue without its log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore the error. By default, logging prints a traceback."""

    def close(self) -> None:
        """Close the file. Ignore an error while the last messages are written."""
        with suppress(OSError):
            super().close()


@contextmanager
def hide_tensorboard_errors() -> Iterator[None]:
    """Hide the tracebacks of TensorBoard's threads while the `with` block runs. Tracker raises the errors again."""
    hook = threading.excepthook

    def show(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("tensorboard."):
            hook(error)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = hook


@contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Also write log messages to train.log in the folder while the `with` block runs.

    Raises UserError if the file cannot be created.
    """
    path = folder / "train.log"
    try:
        file = LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). {ADVICE}") from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)
    try:
        yield
    finally:
        log.removeHandler(file)
        file.close()


def environment() -> dict[str, Any]:
    """Return the versions of fastrcnn, Python and libraries, and the hardware, for environment.json."""
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


def known_threads(folder: Path) -> int | None:
    """Return the number of threads in environment.json, with which the run in `folder` was trained; None if unknown."""
    try:
        number = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["threads"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    return number if type(number) is int and 0 < number <= MOST_THREADS else None


def newest_first(runs: Iterable[Path]) -> list[Path]:
    """Return the folders of runs, from the one that was started or resumed last.

    The time is that in the last line of command.txt, which copies of a run keep. If it is unreadable, the time at which
    the folder was last changed is used.
    """

    def used(run: Path) -> tuple[float, Path]:
        try:
            last = (run / "command.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-1]
            return datetime.fromisoformat(last.partition("  ")[0]).timestamp(), run
        except (OSError, ValueError, OverflowError, IndexError):
            return run.stat().st_mtime, run

    return sorted(runs, key=used, reverse=True)


def describe_run(folder: Path, config_yaml: str) -> None:
    """Write config.yaml and environment.json into a run's folder, and append the command line to command.txt."""
    replace_file(folder / "config.yaml", config_yaml.encode())  # atomically: an incomplete file would prevent resuming
    # A path on the command line can be invalid Unicode.
    with (folder / "command.txt").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {' '.join(sys.argv)}\n")
    replace_file(folder / "environment.json", (json.dumps(environment(), indent=2) + "\n").encode())
