"""What a run that resumes finds in its folder: the configuration it was started with, and its newest checkpoint."""

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
Config = dict[str, Any]  # a run's configuration as plain data: groups of keys, and keys
# Keys whose values belong together in the configuration files, though none is computed from the other: key -> its
# companion, and what that decides.
COMPANIONS = {
    "data.short_sides": ("data.test_short_sides", "evaluation and detection keep these sizes"),
    "solver.iterations": ("solver.lr_steps", "the learning rate still falls at these steps"),
}


def saved_config(folder: Path) -> Config:
    """The configuration that the run in the folder was started with. Raises UserError."""
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


def by_key(config: Config, head: str = "") -> Config:
    """The values by their dotted keys."""
    found: Config = {}
    for key, value in config.items():
        found |= by_key(value, f"{head}{key}.") if isinstance(value, dict) else {f"{head}{key}": value}
    return found


def log_changes(folder: Path, config: Config) -> None:
    """Logs which values differ from those that the run in the folder was last started with, and what follows."""
    before, now = by_key(saved_config(folder)), by_key(config)
    changed = [key for key in now if key not in ("run", "resume") and before.get(key) != now[key]]
    for key in changed:
        log.info("%s=%s, before: %s", key, as_written(now[key]), as_written(before.get(key)))
    warn_of_companions(changed, config)


def warn_of_companions(changed: Collection[str], config: Config) -> None:
    """Warns of each changed key whose companion is unchanged."""
    values = by_key(config)
    for key, (other, what) in COMPANIONS.items():
        used = other != "solver.lr_steps" or values["solver.schedule"] == "step"
        if key in changed and other not in changed and used and values[key] != values[other]:
            log.warning("%s=%s leaves %s=%s: %s", key, as_written(values[key]), other, as_written(values[other]), what)


def load_newest(
    folder: Path, model: FastRCNN, optimizer: torch.optim.Optimizer, names: list[str], config: Config, check: Check
) -> tuple[int, float, int]:
    """Puts the folder's newest sound checkpoint into model and optimiser; returns its step, and the best weights'
    mAP and step so far; without any -1 and its own step.

    The best are forgotten where it was measured in another way, or on other images, than now. check: see
    checkpoint.newest_sound. Raises UserError where there is no checkpoint, or it is of another model, of other classes,
    or of another optimiser.
    """
    from fastrcnn.training import checkpoint
    from fastrcnn.training.optim import load_state

    path, state, refused = checkpoint.newest_sound(folder, check)
    for reason in refused:
        log.warning("passed over: %s", reason)
    if state["classes"] != names:
        raise UserError(f"{path}: was trained on other classes ({', '.join(state['classes'])}).")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: was trained with another model; go on with the same model.* keys.\n{error}") from None
    for group, key in (("solver", "optimizer"), ("solver", "box_weight"), ("model", "finetune_from")):
        was, now = state["config"][group].get(key), config[group][key]
        if was != now and (key != "box_weight" or (was == 0) != (now == 0)):
            raise UserError(
                f"{group}.{key}={now}: the run was started with {was}, and its optimiser's state fits nothing else. "
                f"Leave it out, or begin a new run with start={path}."
            )
    try:
        load_state(optimizer, state["optimizer"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: its optimiser's state is not this model's or solver's ({error}).") from None
    log.info("going on from %s", path)
    written, best = [state], folder / "best.pt"
    if best.is_file():  # by an evaluation that came after the checkpoint
        try:
            written.append(check(best, checkpoint.load(best)))
        except UserError as error:
            log.warning("passed over: %s", error)
    measured = ("metric", "val") if config["data"]["val"] else ("metric", "val", "test")
    alike = [w for w in written if all(w["config"]["data"].get(k, []) == config["data"][k] for k in measured)]
    chosen = next((w for w in alike if w is not state), {"best": -1.0, "step": state["step"]})
    return state["step"], chosen["best"], chosen["step"]
