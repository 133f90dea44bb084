"""`fastrcnn train -m key=a,b ...`: a run for each combination of values, by Hydra, and a table of them all."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from fastrcnn.build.run_folder import refuse_unusable
from fastrcnn.config.compose import check_overrides, compose, config_folder
from fastrcnn.config.schema import SCHEMAS, leaves
from fastrcnn.config.values import fill, quote
from fastrcnn.errors import UserError
from fastrcnn.parallel.launch import launch

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("fastrcnn")
FLAGS = ("-m", "--multirun")
HYDRAS = ("hydra.", "hydra/", "+hydra.", "++hydra.", "+hydra/")  # arguments that are Hydra's own
FUNCTION = re.compile(r"(choice|range|interval|tag|sort|shuffle|glob|int|float|str|bool)\(.*\)")  # of Hydra's grammar
PLUGINS = {"joblib": "hydra-joblib-launcher", "optuna": "hydra-optuna-sweeper", "submitit": "hydra-submitit-launcher"}
RESULT = "sweep.json"  # in the folder of a run that is over


def sweep(arguments: Sequence[str]) -> int:
    """Runs them all, one after another or as Hydra's launcher does, and prints the table. Returns 1 where one failed.

    The runs are the folders 0, 1, ... of `hydra.sweep.dir`, by default outputs/NAME/sweep-TIME. Named again, a sweep
    that was stopped goes on: runs that are over are left, the one that was stopped is resumed.
    """
    if launch().size > 1:
        raise UserError("-m runs trainings one after another in this process: call it without torchrun.")
    ours = [a for a in arguments if a not in FLAGS and not a.startswith(HYDRAS)]
    hydras = [a for a in arguments if a.startswith(HYDRAS)]
    for argument in ours:
        if argument.partition("=")[0] in ("run", "resume"):
            raise UserError(f"{argument}: a sweep names its runs' folders; hydra.sweep.dir=FOLDER says where they are.")
    for argument in hydras:
        if argument.startswith("hydra.sweep.subdir=") or (argument.startswith("hydra.sweep.dir=") and "${" in argument):
            raise UserError(f"{argument}: the runs are the folders 0, 1, ... of hydra.sweep.dir=FOLDER, a plain path.")
    overrides, first = choices(ours)
    require_plugins(hydras)
    config = compose("train", first)
    folder = sweep_folder(config.name, hydras)
    refuse_unusable(folder, f"hydra.sweep.dir={folder}")
    if "hydra/sweeper=optuna" in hydras and not config.data.test:
        raise UserError("hydra/sweeper=optuna: seeks the highest mAP, and with data.test=[] there is none.")
    if "hydra/sweeper=optuna" in hydras:
        from fastrcnn.build import annotations

        names = annotations.classes(config.data)
        if not annotations.has_truth(annotations.samples(config.data, config.data.test, names, need_pictures=False)):
            raise UserError(f"hydra/sweeper=optuna: seeks the highest mAP, and there is {annotations.NO_TRUTH}.")
    claim_folder(folder, overrides, hydras)
    hydras = [a for a in hydras if not a.startswith("hydra.sweep.dir=")]
    if "hydra/sweeper=optuna" in hydras and not any(a.startswith("hydra.sweeper.direction=") for a in hydras):
        hydras.append("hydra.sweeper.direction=maximize")
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    places = [f"hydra.sweep.dir={quote(str(folder))}", "hydra.sweep.subdir=${hydra.job.num}"]
    import hydra

    entry = hydra.main(config_path=str(config_folder()), config_name="train", version_base="1.3")(job)
    command = ["fastrcnn train", "--multirun", *overrides, *places, *quiet, *hydras]
    with mock.patch.object(sys, "argv", command):
        try:
            entry()
        except SystemExit as stopped:  # of Hydra, which has said why
            return report(folder) or int(bool(stopped.code))
    return report(folder)


def choices(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments as overrides for Hydra's multirun, and those of a single run: the first value of each.

    Raises UserError for a key or a value that no run could have.
    """
    overrides, first = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if FUNCTION.fullmatch(value):  # a range, of which Hydra knows the grammar
            if key not in leaves(SCHEMAS["train"]):
                check_overrides("train", [argument])  # says what is wrong with the key
            overrides.append(argument)
            continue
        values = parts(value) if equals else []
        checked = [check_overrides("train", [f"{key}={v}"])[0] for v in values] or check_overrides("train", [argument])
        overrides.append(f"{key}=" + ",".join(c.partition("=")[2] for c in checked))
        first.append(f"{key}={values[0]}")
    return overrides, first


def parts(value: str) -> list[str]:
    """The values between commas that are in no bracket and no quotes."""
    found, depth, quote = [""], 0, ""
    for letter in value:
        if letter == "," and not depth and not quote:
            found.append("")
            continue
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[({") - (letter in "])}")
        found[-1] += letter
    return found


def require_plugins(hydras: Sequence[str]) -> None:
    """Raises UserError where a launcher or sweeper is asked for that is not installed."""
    for argument in hydras:
        name = argument.partition("=")[2].partition("_")[0]
        if argument.startswith(("hydra/launcher=", "hydra/sweeper=")) and name in PLUGINS:
            package = PLUGINS[name]
            if importlib.util.find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
                raise UserError(f"{argument}: needs a package that is not installed: pip install {package}.")


def sweep_folder(name: str, hydras: Sequence[str]) -> Path:
    """Where the runs are."""
    named = [a.partition("=")[2] for a in hydras if a.startswith("hydra.sweep.dir=")]
    return Path(named[-1]).expanduser() if named else Path("outputs") / name / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"


def claim_folder(folder: Path, overrides: Sequence[str], hydras: Sequence[str]) -> None:
    """Makes the folder. Raises UserError where another sweep is there, whose runs have the same numbers."""
    asked = [*overrides, *(a for a in hydras if a.startswith("hydra/sweeper"))]
    path = folder / "values.json"
    there = read(path)
    if there is not None and (there != asked or "hydra/sweeper=optuna" in asked):
        raise UserError(
            f"hydra.sweep.dir={folder}: another sweep is there. With its own values it goes on where it stopped (not "
            "Optuna's, which keeps its trials by hydra.sweeper.storage); other values need another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked) + "\n", encoding="utf-8")


def job(composed: DictConfig) -> float:
    """One run, in whatever process the launcher has for it; its mAP, or for Optuna 0 where it failed."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from fastrcnn.cli import FLAGS_SAID, show_any_text, speak
    from fastrcnn.cli.train import configure, run

    here = HydraConfig.get()
    folder, number, overrides = Path(here.runtime.output_dir), here.job.num, list(here.overrides.task)
    # joblib's way to start processes, which neither loaders nor selective search can use
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    if not logging.getLogger().handlers:  # a process of its own
        show_any_text()
        speak(os.environ.get(FLAGS_SAID, "").split(), f"{number}: ")
    if (done := read(folder / RESULT)) is not None and done["error"] is None:
        log.info("run %s is over already", folder)
        return done["mAP"] or 0.0
    result: dict[str, Any] = {"overrides": overrides, "mAP": None, "error": None}
    try:
        config = fill(SCHEMAS["train"], OmegaConf.to_container(composed))
        if config.start:  # the model is the checkpoint's
            config = configure(overrides)
        config.run = str(folder)
        config.resume = "auto" if (folder / "config.yaml").exists() else None
        outcome = run(config)[1]
        result["mAP"] = outcome.ap.mean if outcome is not None else None
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
    settings = {number: dict(o.split("=", 1) for o in result["overrides"]) for number, result in runs}
    columns = varied(folder)  # also where few runs are over, or none
    columns += [k for k in dict.fromkeys(k for s in settings.values() for k in s) if differs(k, settings.values())]
    keys = list(dict.fromkeys(columns))
    rows = [["run", *keys, "mAP"]]
    for number, result in runs:
        value = "failed" if result["error"] else "none" if result["mAP"] is None else f"{result['mAP']:.4f}"
        rows.append([str(number), *(settings[number].get(k, "") for k in keys), value])
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    print("\n".join(aligned(rows)))
    print(f"{len(runs)} runs in {folder}; curves: tensorboard --logdir {folder}")
    for number, result in runs:
        if result["error"]:
            print(f"fastrcnn: run {number} failed: {result['error']}", file=sys.stderr)
    return int(any(result["error"] for _, result in runs))


def varied(folder: Path) -> list[str]:
    """The keys that the sweep in the folder was given several values of."""
    asked = [a.partition("=") for a in read(folder / "values.json") or []]
    return [key for key, _, value in asked if len(parts(value)) > 1 or FUNCTION.fullmatch(value)]


def differs(key: str, settings: Any) -> bool:
    return len({s.get(key) for s in settings}) > 1


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, columns to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
