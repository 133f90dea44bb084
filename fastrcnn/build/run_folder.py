"""The folder of a run: which one it is, what it was started with, its log."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastrcnn.config.compose import to_dict
from fastrcnn.config.schema import TrainConfig, leaves
from fastrcnn.config.values import as_written
from fastrcnn.errors import UserError
from fastrcnn.names import NAME_BYTES

log = logging.getLogger("fastrcnn")
PATH_BYTES = 3500  # bytes of a run's path; Linux takes 4095, and what an evaluation writes is up to 520 longer
# Keys whose values belong together in the configuration files, though none is computed from the other: key -> its
# companion, and what that decides.
COMPANIONS = {
    "data.short_sides": ("data.test_short_sides", "evaluation and detection keep these sizes"),
    "solver.iterations": ("solver.lr_steps", "the learning rate still falls at these steps"),
}


def run_folder(config: TrainConfig) -> tuple[Path, bool]:
    """The folder of the run, and whether it goes on there.

    Raises UserError where there is nothing to resume, or a run in the folder already.
    """
    if config.resume:
        if config.run:
            return Path(config.run).expanduser(), True
        runs = sorted((Path("outputs") / config.name).glob("*/checkpoints"), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise UserError(f"resume=auto: there is no run in outputs/{config.name}. Name one with run=FOLDER.")
        return runs[-1].parent, True
    if config.run is None:
        refuse_unusable(Path("outputs") / config.name, f"name={config.name}")
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        return Path("outputs") / config.name / stamp, False
    folder = Path(config.run).expanduser()
    refuse_unusable(folder, f"run={config.run}")
    refuse_used(folder)
    return folder, False


def refuse_unusable(folder: Path, said: str) -> None:
    """Raises UserError, which begins with `said`, where the folder cannot be made or written to."""
    whole = folder.absolute()
    if (longest := max(len(os.fsencode(part)) for part in whole.parts)) > NAME_BYTES:
        raise UserError(f"{said}: a folder's name may have {NAME_BYTES} bytes, not {longest}. Choose a shorter one.")
    if (length := len(os.fsencode(whole))) > PATH_BYTES:
        raise UserError(f"{said}: a run's path may have {PATH_BYTES} bytes, not {length}. Choose a shorter one.")
    try:
        there = next(p for p in (whole, *whole.parents) if p.exists())
    except OSError as error:
        raise UserError(f"{said}: {folder} cannot be used ({error.strerror}). Choose another folder.") from None
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if there.is_dir() else "is not a folder"
        raise UserError(f"{said}: {there} {what}. Choose another folder.")


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


def value_of(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; None where the configuration lacks it."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None  # type: ignore[assignment]
    return config


def log_changes(folder: Path, config: TrainConfig) -> None:
    """Logs which values differ from those that the run in the folder was last started with, and what follows."""
    before, now = saved_config(folder), to_dict(config)
    changed = [
        key
        for key in leaves(TrainConfig)
        if key not in ("run", "resume") and value_of(before, key) != value_of(now, key)
    ]
    for key in changed:
        log.info("%s=%s, before: %s", key, as_written(value_of(now, key)), as_written(value_of(before, key)))
    warn_of_companions(changed, config)


def warn_of_companions(changed: Collection[str], config: TrainConfig) -> None:
    """Warns of each changed key whose companion is unchanged."""
    values = to_dict(config)
    for key, (other, what) in COMPANIONS.items():
        if key not in changed or other in changed or (other == "solver.lr_steps" and config.solver.schedule != "step"):
            continue
        if value_of(values, key) != value_of(values, other):
            log.warning(
                "%s=%s leaves %s=%s: %s",
                key,
                as_written(value_of(values, key)),
                other,
                as_written(value_of(values, other)),
                what,
            )
