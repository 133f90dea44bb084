"""Sweeps (`fastrcnn train -m key=a,b ...`): one run per combination of values, with Hydra, and a table of results."""

from __future__ import annotations

import csv
import importlib.util
import io
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
from fastrcnn.files import refuse_unusable, replace_file
from fastrcnn.names import csv_cell
from fastrcnn.parallel.launch import launch

log = logging.getLogger("fastrcnn")
FLAGS = ("-m", "--multirun")
HYDRAS = ("hydra.", "hydra/", "+hydra.", "++hydra.", "+hydra/")  # arguments for Hydra
OPTUNA = "hydra/sweeper=optuna"
PLUGINS = {"joblib": "hydra-joblib-launcher", "optuna": "hydra-optuna-sweeper", "submitit": "hydra-submitit-launcher"}
RESULT = "sweep.json"  # in the folder of each run that has finished or failed
Train = Callable[[TrainConfig], tuple[Path, Any, float | None]]  # returns the run's folder, its Evaluation, and its mAP


def sweep(arguments: Sequence[str], train: Train, speak: Callable[[int], None]) -> int:
    """Train one run per combination of values, sequentially or with Hydra's launcher, and print a table of the results.

    The runs are in the folders 0, 1, ... of `hydra.sweep.dir`, by default outputs/NAME/sweep-TIME. If a stopped sweep
    is started again, it skips its finished runs and resumes the others. train: a function that trains one run. speak:
    a function that sets up logging in a new process, for the run with the given number. Returns 1 if a run failed, else
    0. Raises UserError for invalid arguments.
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
        # joblib sets its own start method, which loaders and selective search cannot use.
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        if not logging.getLogger().handlers:  # in a new process
            speak(number)
        return run_one(composed, place, said, train)

    multirun(overrides, hydras, folder, job)
    return report(folder)


def refuse(ours: Sequence[str], hydras: Sequence[str]) -> None:
    """Raise UserError under torchrun, and for keys that a sweep sets itself."""
    if launch().size > 1:
        raise UserError(
            "`fastrcnn train -m` trains the runs one after another in one process. Start it without torchrun."
        )
    for argument in ours:
        if argument.partition("=")[0] in ("run", "resume"):
            raise UserError(
                f"{argument}: a sweep sets this key for each run. Remove it. To choose the folder that contains the "
                "runs, set hydra.sweep.dir=FOLDER."
            )
    for argument in hydras:
        if argument.startswith("hydra.sweep.subdir=") or (argument.startswith("hydra.sweep.dir=") and "${" in argument):
            raise UserError(
                f"{argument}: not supported. The runs are in the folders 0, 1, ... of hydra.sweep.dir=FOLDER, where "
                "FOLDER must not contain ${...}."
            )


def require_plugins(hydras: Sequence[str]) -> None:
    """Raise UserError if a requested launcher or sweeper is not installed."""
    for argument in hydras:
        key, _, value = argument.partition("=")
        package = PLUGINS.get(value.partition("_")[0])
        if key not in ("hydra/launcher", "hydra/sweeper") or package is None:
            continue
        if importlib.util.find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
            raise UserError(f"{argument}: this needs a package that is not installed. Run: pip install {package}")


def require_truth(config: TrainConfig) -> None:
    """Raise UserError if the runs will have no mAP for Optuna to maximise."""
    from fastrcnn.build import annotations

    splits = annotations.validation_splits(config.data) or config.data.test
    if not splits:
        raise UserError(
            f"{OPTUNA}: Optuna maximises the mAP, but with data.test=[] there is no mAP. Set data.test to at least one "
            "split."
        )
    names = annotations.classes(config.data)
    if not annotations.has_truth(annotations.samples(config.data, splits, names, need_pictures=False)):
        raise UserError(
            f"{OPTUNA}: Optuna maximises the mAP, but there is {annotations.NO_TRUTH}. Add ground truth to "
            f"{', '.join(splits)}, or choose other splits with data.test."
        )


def claim_folder(folder: Path, overrides: Sequence[str], hydras: Sequence[str]) -> None:
    """Create the folder of the sweep. Raises UserError if it contains a different sweep, or an Optuna sweep."""
    asked = [*overrides, *(a for a in hydras if a.startswith("hydra/sweeper"))]
    path = folder / "values.json"
    there = read(path)
    if there is not None and (there != asked or OPTUNA in asked):
        raise UserError(
            f"hydra.sweep.dir={folder}: this folder already contains a sweep. Choose another folder, or repeat the "
            "arguments of that sweep to resume it. An Optuna sweep cannot be resumed in its folder, but its trials can "
            "be kept with hydra.sweeper.storage."
        )
    replace_file(path, (json.dumps(asked) + "\n").encode())


def run_one(composed: Any, folder: Path, overrides: list[str], train: Train) -> float:
    """Train one run unless it is finished, write its result to `folder`, and return its mAP, or 0 if there is none."""
    if (done := read(folder / RESULT)) is not None and done["error"] is None:
        log.info("Skipping run %s, which is already finished", folder)
        return done["mAP"] or 0.0
    result: dict[str, Any] = {"overrides": overrides, "mAP": None, "error": None}
    try:
        config = as_config(composed)
        if config.start:
            config = start_config(config, overrides)
        config.run = str(folder)
        config.resume = "auto" if (folder / "config.yaml").exists() else None
        result["mAP"] = train(config)[2]
    except Exception as error:  # continue with the other runs
        log.error("Run %s failed: %s", folder, error, exc_info=not isinstance(error, UserError))
        result["error"] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    replace_file(folder / RESULT, (json.dumps(result) + "\n").encode())
    return result["mAP"] or 0.0


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def report(folder: Path) -> int:
    """Print the results of a sweep, best run first, and write them to sweep.csv. Return 1 if a run failed, else 0."""
    runs = [(int(p.parent.name), read(p)) for p in folder.glob(f"*/{RESULT}")]
    runs.sort(key=lambda r: (r[1]["error"] is not None, r[1]["mAP"] is None, -(r[1]["mAP"] or 0), r[0]))
    settings = [dict(o.split("=", 1) for o in result["overrides"]) for _, result in runs]
    keys = varying_keys(read(folder / "values.json") or [])  # even if no run is finished
    for key in dict.fromkeys(key for values in settings for key in values):
        if key not in keys and len({values.get(key) for values in settings}) > 1:
            keys.append(key)
    rows = [["run", *keys, "mAP"]]
    for (number, result), values in zip(runs, settings, strict=True):
        value = "failed" if result["error"] else "none" if result["mAP"] is None else f"{result['mAP']:.4f}"
        rows.append([str(number), *(values.get(key, "") for key in keys), value])
    content = io.StringIO(newline="")
    csv.writer(content).writerows([csv_cell(cell) for cell in row] for row in rows)
    replace_file(folder / "sweep.csv", content.getvalue().encode())
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    print(f"{len(runs)} runs in {folder}; curves: tensorboard --logdir {folder}")
    for number, result in runs:
        if result["error"]:
            print(f"fastrcnn: run {number} failed: {result['error']}", file=sys.stderr)
    return int(any(result["error"] for _, result in runs))
