"""What eval, reval and train leave of an evaluation: the results, and the report that people open first."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.config.compose import to_yaml
from fastrcnn.files import refuse_unusable

if TYPE_CHECKING:
    from fastrcnn.evaluation.evaluate import Evaluation


def write(result: Evaluation, folder: Path, split: str, title: str, about: Sequence[tuple[str, str]]) -> Path:
    """Writes all files of an evaluation into `folder`; returns the report. about: titles and texts to end it with.

    The figures come first and the detections last, so that a name that the file system does not take costs no figures.
    Raises UserError.
    """
    from fastrcnn.evaluation.evaluate import write_results
    from fastrcnn.evaluation.result_files import write_comp4
    from fastrcnn.report.report_page import write_report
    from fastrcnn.training.tracking import environment

    write_results(result, folder)
    about = [*about, ("Environment", json.dumps(environment(), indent=2, ensure_ascii=False))]
    report = write_report(result, folder, title, about)
    write_comp4(folder, split, result.detections, [s.image_id for s in result.samples])
    return report


def check_place(folder: Path, split: str, classes: Sequence[str]) -> None:
    """Raises UserError, before the work, where the folder of an evaluation cannot be written to, and for a class whose
    detections cannot have a file."""
    from fastrcnn.evaluation.result_files import check_comp4

    check_comp4(split, classes)
    refuse_unusable(folder, f"output={folder}")


def title(run: Path, split: str) -> str:
    """A heading for the evaluation of a run."""
    return f"{'/'.join(run.resolve().parts[-2:])} on {split}"


def command(verb: str, arguments: Sequence[str], config: Any) -> list[tuple[str, str]]:
    """What was asked for: the command and the configuration it led to."""
    return [("Command", shlex.join(["fastrcnn", verb, *arguments])), ("Configuration", to_yaml(config))]


def training(run: Path) -> list[tuple[str, str]]:
    """How a run was trained, as far as its folder says."""
    files = (("Command of the training", "command.txt"), ("Configuration of the training", "config.yaml"))
    return [
        (name, (run / file).read_text(encoding="utf-8", errors="replace"))
        for name, file in files
        if (run / file).is_file()
    ]
