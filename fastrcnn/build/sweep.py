"""`fastrcnn train -m key=a,b ...`: a run for each combination of values, by Hydra, and a table of them all."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastrcnn.build.run_config import start_config
from fastrcnn.config.compose import compose
from fastrcnn.config.schema import TrainConfig
from fastrcnn.config.sweep import as_config, choices, multirun, varying_keys
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable
from fastrcnn.parallel.launch import launch

log = logging.getLogger("fastrcnn")
FLAGS = ("-m", "--multirun")
HYDRAS = ("hydra.", "hydra/", "+hydra.", "++hydra.", "+hydra/")  # arguments that are Hydra's own
OPTUNA = "hydra/sweeper=optuna"
PLUGINS = {"joblib": "hydra-joblib-launcher", "optuna": "hydra-optuna-sweeper", "submitit": "hydra-submitit-launcher"}
RESULT = "sweep.json"  # in the folder of a run that is over
Train = Callable[[TrainConfig], tuple[Path, Any, float | None]]  # gives the run's folder, its Evaluation, and its mAP


def sweep(arguments: Sequence[str], train: Train, speak: Callable[[int], None]) -> int:
    """Runs them all, one after another or as Hydra's launcher does, and prints the table. Returns 1 where one failed.

    The runs are the folders 0, 1, ... of `hydra.sweep.dir`, by default outputs/NAME/sweep-TIME. Called again, a sweep
    that was stopped resumes: runs that are over are left, the one that was stopped is resumed. speak: sets up what a
    new process says of the run with this number.
    """
    hydras = [a for a in arguments if a.startswith(HYDRAS)]
    ours = [a for a in arguments if a not in FLAGS and a not in hydras]
    refuse(ours, hydras)
    overrides, first = choices(ours)
    require_plugins(hydras)
    config = compose("train", first)
    named = [a.partition("=")[2] for a in hydras if a.startswith("hydra.sweep.dir=")]
    default = Path("outputs") / config.name / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(named[-1]).expanduser() if named else default
    refuse_unusable(folder, f"hydra.sweep.dir={folder}")
    if OPTUNA in hydras:
        require_truth(config)
    claim_folder(folder, overrides, hydras)
    hydras = [a for a in hydras if not a.startswith("hydra.sweep.dir=")]
    if OPTUNA in hydras and not any(a.startswith("hydra.sweeper.direction=") for a in hydras):
        hydras.append("hydra.sweeper.direction=maximize")

    def job(composed: Any, place: Path, number: int, said: list[str]) -> float:
        # joblib's way to start processes, which neither loaders nor selective search can use
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        if not logging.getLogger().handlers:  # a process of its own
            speak(number)
        return run_one(composed, place, said, train)

    multirun(overrides, hydras, folder, job)
    return report(folder)


def refuse(ours: Sequence[str], hydras: Sequence[str]) -> None:
    """Raises UserError for what a sweep decides by itself."""
    if launch().size > 1:
        raise UserError("-m runs trainings one after another in this process: call it without torchrun.")
    for argument in ours:
        if argument.partition("=")[0] in ("run", "resume"):
            raise UserError(f"{argument}: a sweep names its runs' folders; hydra.sweep.dir=FOLDER says where they are.")
    for argument in hydras:
        if argument.startswith("hydra.sweep.subdir=") or (argument.startswith("hydra.sweep.dir=") and "${" in argument):
            raise UserError(f"{argument}: the runs are the folders 0, 1, ... of hydra.sweep.dir=FOLDER, a plain path.")


def require_plugins(hydras: Sequence[str]) -> None:
    """Raises UserError where a launcher or sweeper is asked for that is not installed."""
    for argument in hydras:
        key, _, value = argument.partition("=")
        package = PLUGINS.get(value.partition("_")[0])
        if key not in ("hydra/launcher", "hydra/sweeper") or package is None:
            continue
        if importlib.util.find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
            raise UserError(f"{argument}: needs a package that is not installed: pip install {package}.")


def require_truth(config: TrainConfig) -> None:
    """Raises UserError where there is no mAP that Optuna could maximise."""
    from fastrcnn.build import annotations

    splits = annotations.validation_splits(config.data) or config.data.test
    if not splits:
        raise UserError(f"{OPTUNA}: seeks the highest mAP, and with data.test=[] there is none.")
    names = annotations.classes(config.data)
    if not annotations.has_truth(annotations.samples(config.data, splits, names, need_pictures=False)):
        raise UserError(f"{OPTUNA}: seeks the highest mAP, and there is {annotations.NO_TRUTH}.")


def claim_folder(folder: Path, overrides: Sequence[str], hydras: Sequence[str]) -> None:
    """Makes the folder. Raises UserError where another sweep is there, whose runs have the same numbers."""
    asked = [*overrides, *(a for a in hydras if a.startswith("hydra/sweeper"))]
    path = folder / "values.json"
    there = read(path)
    if there is not None and (there != asked or OPTUNA in asked):
        raise UserError(
            f"hydra.sweep.dir={folder}: another sweep is there. With its own values it goes on where it stopped (not "
            "Optuna's, which keeps its trials by hydra.sweeper.storage); other values need another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked) + "\n", encoding="utf-8")


def run_one(composed: Any, folder: Path, overrides: list[str], train: Train) -> float:
    """One run, and its result in the folder; its mAP, or for Optuna 0 where it failed."""
    if (done := read(folder / RESULT)) is not None and done["error"] is None:
        log.info("run %s is over already", folder)
        return done["mAP"] or 0.0
    result: dict[str, Any] = {"overrides": overrides, "mAP": None, "error": None}
    try:
        config = as_config(composed)
        if config.start:
            config = start_config(config, overrides)
        config.run = str(folder)
        config.resume = "auto" if (folder / "config.yaml").exists() else None
        result["mAP"] = train(config)[2]
    except Exception as error:  # the others may do better
        log.error("run %s: %s", folder, error, exc_info=not isinstance(error, UserError))
        result["error"] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    (folder / RESULT).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return result["mAP"] or 0.0


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def report(folder: Path) -> int:
    """Prints the runs, best first, and writes them to sweep.csv; returns 1 where one failed."""
    runs = [(int(p.parent.name), read(p)) for p in folder.glob(f"*/{RESULT}")]
    runs.sort(key=lambda r: (r[1]["error"] is not None, r[1]["mAP"] is None, -(r[1]["mAP"] or 0), r[0]))
    settings = [dict(o.split("=", 1) for o in result["overrides"]) for _, result in runs]
    keys = varying_keys(read(folder / "values.json") or [])  # also where few runs are over, or none
    for key in dict.fromkeys(key for values in settings for key in values):
        if key not in keys and len({values.get(key) for values in settings}) > 1:
            keys.append(key)
    rows = [["run", *keys, "mAP"]]
    for (number, result), values in zip(runs, settings, strict=True):
        value = "failed" if result["error"] else "none" if result["mAP"] is None else f"{result['mAP']:.4f}"
        rows.append([str(number), *(values.get(key, "") for key in keys), value])
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    print(f"{len(runs)} runs in {folder}; curves: tensorboard --logdir {folder}")
    for number, result in runs:
        if result["error"]:
            print(f"fastrcnn: run {number} failed: {result['error']}", file=sys.stderr)
    return int(any(result["error"] for _, result in runs))
