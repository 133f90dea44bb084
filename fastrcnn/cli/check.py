"""The command `fastrcnn check`."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import CheckConfig, DataConfig
from fastrcnn.files import refuse_unusable, replace_file

if TYPE_CHECKING:
    from fastrcnn.audit.report import Report

EXAMPLES = [
    "fastrcnn check data=custom data.root=mydata",
    "fastrcnn check data=voc07 data.root=VOCdevkit proposals=voc07.proposals",
]
EVERYDAY = [
    "proposals",
    "output",
    "data.root",
    "data.train",
    "data.val",
    "data.test",
    "data.classes",
    "data.other_classes",
    "data.first_pixel",
    "data.skip_bad",
]


def main(arguments: list[str]) -> int:
    """Check a data set and its proposals. Print a summary, and write report.json and report.html.

    Returns the exit status: 1 if there are errors that would stop training or make it skip data, else 0.
    """
    config: CheckConfig = compose("check", arguments)
    from fastrcnn.audit.report import to_json
    from fastrcnn.audit.views import page, summary
    from fastrcnn.build.audit import audit, truth_pictures
    from fastrcnn.build.run_config import check_solver

    check_solver(config.solver)
    if config.proposals is not None:
        config.data.proposals = config.proposals
    folder = default_folder(config.data) if config.output is None else Path(config.output).expanduser()
    refuse_unusable(folder, f"output={folder}")
    report, records = audit(config)
    print(summary(report))
    replace_file(folder / "report.json", (json.dumps(to_json(report), indent=2) + "\n").encode())
    html = page(report, truth_pictures(records, report.classes))
    replace_file(folder / "report.html", html.encode(errors="replace"))
    print(f"report: {folder / 'report.html'}")
    head = "fix the errors, then run" if report.errors else "next step"
    command = next_command(arguments, config.data, report)
    if "recipe=transfer" in command:
        print("recipe=transfer downloads pre-trained weights (or set model.weights=FILE); recipe=scratch needs none")
    print(f"{head}: {command}")
    return 1 if report.errors else 0


def default_folder(config: DataConfig) -> Path:
    """Return the default output folder. Its name depends on the name, the root and the splits of the data set."""
    from fastrcnn.build.annotations import root

    whole = root(config).resolve()
    which = json.dumps([str(whole), config.train, config.test]).encode(errors="surrogateescape")
    return Path("outputs/check") / f"{config.name}-{whole.stem[:20]}-{hashlib.sha256(which).hexdigest()[:8]}"


def next_command(arguments: Sequence[str], config: DataConfig, report: Report) -> str:
    """Return the command to run next (propose or train), with the arguments that select the data set."""
    import torch

    given = [a for a in arguments if a.startswith(("data=", "data.")) and not a.startswith("data.proposals=")]
    unfit = {"no_proposals", "proposal_size", "bad_proposals"} & {p.kind for p in report.errors}
    if unfit:
        return shlex.join(["fastrcnn", "propose", *given])
    store = [f"data.proposals={config.proposals}"] if config.proposals else []
    small = [] if torch.cuda.is_available() else ["recipe=transfer"]  # training the full network needs a GPU
    return shlex.join(["fastrcnn", "train", *given, *store, *small])
