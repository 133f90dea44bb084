"""The folder of a run: which one it is, what it was started with, its log."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastrcnn.config import TrainConfig
from fastrcnn.errors import UserError

log = logging.getLogger("fastrcnn")


def run_folder(config: TrainConfig) -> tuple[Path, bool]:
    """The folder of the run, and whether it goes on there.

    Raises UserError where there is nothing to resume, or a run in the folder already.
    """
    if config.resume not in (None, "auto"):
        raise UserError(f"resume={config.resume}: should be 'auto' (with run=FOLDER to say which run).")
    if config.resume:
        if config.run:
            return Path(config.run).expanduser(), True
        runs = sorted((Path("outputs") / config.name).glob("*/checkpoints"), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise UserError(f"resume=auto: there is no run in outputs/{config.name}. Name one with run=FOLDER.")
        return runs[-1].parent, True
    if config.run is None:
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        return Path("outputs") / config.name / stamp, False
    folder = Path(config.run).expanduser()
    refuse_used(folder)
    return folder, False


def refuse_used(folder: Path) -> None:
    """Raises UserError where there is a run in the folder already."""
    if (folder / "checkpoints").is_dir() or (folder / "config.yaml").exists():
        raise UserError(
            f"run={folder}: there is a run in this folder already. Go on with it by resume=auto, or name a new one."
        )


class LogFile(logging.FileHandler):
    """A file that does without what a full disk does not take: a checkpoint that it does not take says so."""

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


def saved_config(folder: Path) -> dict[str, Any]:
    """The configuration that the run in the folder was started with. Raises UserError."""
    import yaml

    path = folder / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):  # a few of them unfold to gigabytes
            raise UserError("it refers to parts of itself by *NAME")
        config = yaml.safe_load(text)
    except Exception as error:  # of files, of YAML
        raise UserError(f"{path}: the run's configuration cannot be read ({error}); nothing to go on from.") from None
    if not isinstance(config, dict) or not config:
        raise UserError(f"{path}: holds no keys with values, so it is no run's configuration; nothing to go on from.")
    return config
