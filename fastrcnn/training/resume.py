"""Resuming: read the configuration and the newest checkpoint from a run's folder."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fastrcnn.config.values import as_written
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    import torch

    from fastrcnn.model.fast_rcnn import FastRCNN
    from fastrcnn.training.checkpoint import Check

log = logging.getLogger("fastrcnn")
LARGEST = 2**20  # bytes of config.yaml, which usually has 5,000; YAML can take 300 bytes of memory per byte
Config = dict[str, Any]  # a run's configuration as plain data: nested groups of keys
# Pairs of keys whose values should usually be changed together:
# key -> the other key, and what happens if only the first key is changed.
COMPANIONS = {
    "data.short_sides": ("data.test_short_sides", "evaluation and detection still use these sizes"),
    "solver.iterations": ("solver.lr_steps", "the learning rate still falls at these steps"),
}


def saved_config(folder: Path) -> Config:
    """Read the configuration of the run in the folder. Raises UserError if it is missing, unreadable or empty."""
    path = folder / "config.yaml"
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"it has {size:,} bytes, but the limit is {LARGEST:,}")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):  # a few can expand to gigabytes
            raise UserError("YAML aliases such as *NAME are not allowed")
        config = yaml.safe_load(text)
    except Exception as error:  # errors of the file or of YAML
        why: object = error
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:  # as text, the error quotes the line
            why = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise UserError(
            f"{path}: the run's configuration cannot be read ({why}), so the run cannot be resumed."
        ) from None
    if not isinstance(config, dict) or not config:
        raise UserError(f"{path}: the run cannot be resumed, because this file contains no configuration keys.")
    return config


def by_key(config: Config, head: str = "") -> Config:
    """Convert nested dictionaries to a flat one with dotted keys, such as solver.lr. head: prefix of all keys."""
    found: Config = {}
    for key, value in config.items():
        found |= by_key(value, f"{head}{key}.") if isinstance(value, dict) else {f"{head}{key}": value}
    return found


def log_changes(folder: Path, config: Config) -> None:
    """Log the keys whose values differ from config.yaml in the folder. Warn if a related key has not been changed."""
    before, now = by_key(saved_config(folder)), by_key(config)
    changed = [key for key in now if key not in ("run", "resume") and before.get(key) != now[key]]
    for key in changed:
        log.info("Changed: %s=%s (previously %s)", key, as_written(now[key]), as_written(before.get(key)))
    warn_of_companions(changed, config)


def warn_of_companions(changed: Collection[str], config: Config) -> None:
    """Log a warning for each changed key if a key that should usually be changed with it (COMPANIONS) is unchanged."""
    values = by_key(config)
    for key, (other, what) in COMPANIONS.items():
        used = other != "solver.lr_steps" or values["solver.schedule"] == "step"
        if key in changed and other not in changed and used and values[key] != values[other]:
            text = "%s=%s does not change %s=%s: %s"
            log.warning(text, key, as_written(values[key]), other, as_written(values[other]), what)


def load_newest(
    folder: Path, model: FastRCNN, optimizer: torch.optim.Optimizer, names: list[str], config: Config, check: Check
) -> tuple[int, float, int]:
    """Load the newest usable checkpoint in a folder into the model and the optimiser.

    Returns the step of the checkpoint, the best mAP so far, and the step of the best mAP. If best.pt is missing, or was
    chosen with another metric or other splits, the best mAP is -1 and its step is the step of the checkpoint.
    names: class names. check: raises UserError if a checkpoint is unusable, see newest_sound. Raises UserError if no
    checkpoint is usable, or if the checkpoint has another model, other classes or another optimiser.
    """
    from fastrcnn.training import checkpoint
    from fastrcnn.training.optim import load_state

    path, state, refused = checkpoint.newest_sound(folder, check)
    for reason in refused:
        log.warning("Skipped a checkpoint: %s", reason)
    if state["classes"] != names:
        raise UserError(
            f"{path}: the network in this checkpoint was trained on different classes: "
            f"{', '.join(state['classes'])}. Resume with these classes, or start a new run with start={path}."
        )
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(
            f"{path}: the model of the checkpoint does not match the configuration. Resume with the model.* values "
            f"that the checkpoint was trained with.\n{error}"
        ) from None
    for group, key in (("solver", "optimizer"), ("solver", "box_weight"), ("model", "finetune_from")):
        was, now = state["config"][group].get(key), config[group][key]
        if was != now and (key != "box_weight" or (was == 0) != (now == 0)):
            raise UserError(
                f"{group}.{key}={now}: the run was started with {was}, and its optimiser state does not fit {now}. "
                f"Omit the key, or start a new run with start={path}."
            )
    try:
        load_state(optimizer, state["optimizer"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: the optimiser state does not fit the model or the solver.* keys ({error}).") from None
    log.info("Resuming from %s", path)
    written, best = [state], folder / "best.pt"
    if best.is_file():  # can be newer than the checkpoint, because a step is evaluated after it is saved
        try:
            written.append(check(best, checkpoint.load(best)))
        except UserError as error:
            log.warning("Skipped a checkpoint: %s", error)
    measured = ("metric", "val") if config["data"]["val"] else ("metric", "val", "test")
    alike = [w for w in written if all(w["config"]["data"].get(k, []) == config["data"][k] for k in measured)]
    chosen = next((w for w in alike if w is not state), {"best": -1.0, "step": state["step"]})
    return state["step"], chosen["best"], chosen["step"]
