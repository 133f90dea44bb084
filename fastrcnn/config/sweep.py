"""Sweeps: parse arguments with several values, and run Hydra's multirun over all combinations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastrcnn.config.compose import check_overrides, config_folder
from fastrcnn.config.schema import SCHEMAS, leaves
from fastrcnn.config.values import fill, quote
from fastrcnn.errors import UserError

FUNCTION = re.compile(
    r"(choice|range|interval|tag|sort|shuffle|glob|int|float|str|bool)\(.*\)"
)  # functions of Hydra's grammar
# A value up to the next comma that is outside brackets and quotes.
VALUE = re.compile(r"""(?:^|,)((?:\[[^]]*\]|\([^)]*\)|\{[^}]*\}|'(?:\\'|[^'])*'|"[^"]*"|[^,])*)""")
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null")
Job = Callable[[Any, Path, int, list[str]], float]  # takes the configuration, folder, number and arguments of a run


def choices(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides for Hydra's multirun, and the arguments of a single run with the first value of each key.

    The single run omits keys whose values come from a function of Hydra, such as `range(1,4)`. Raises UserError for an
    invalid key or value.
    """
    overrides, first = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if FUNCTION.fullmatch(value) and key in leaves(SCHEMAS["train"]):  # Hydra parses it
            overrides.append(argument)
            continue
        values = VALUE.findall(value) if equals and not FUNCTION.fullmatch(value) else []
        checked = check_overrides("train", [f"{key}={v}" for v in values] or [argument])
        overrides.append(f"{key}=" + ",".join(c.partition("=")[2] for c in checked))
        first.append(f"{key}={values[0]}")
    return overrides, first


def varying_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys and groups that have several values in overrides for Hydra's multirun."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def multirun(overrides: Sequence[str], hydras: Sequence[str], folder: Path, job: Job) -> None:
    """Call `job` for every combination of values, in the process that Hydra's launcher chooses.

    hydras: arguments for Hydra itself. folder: the folder of the sweep, in which each run has a folder 0, 1 and so on.
    job: trains one run, and returns the value that Optuna maximises. Raises UserError if Hydra rejects an argument.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    def task(composed: Any) -> float:
        here = HydraConfig.get()
        return job(composed, Path(here.runtime.output_dir), here.job.num, list(here.overrides.task))

    places = [f"hydra.sweep.dir={quote(str(folder))}", "hydra.sweep.subdir=${hydra.job.num}"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    try:
        hydra.multirun("train", task, [*overrides, *places, *QUIET, *hydras], with_log_configuration=False)
    except HydraException as error:
        raise UserError(str(error)) from None


def as_config(composed: Any) -> Any:
    """Convert a configuration that Hydra composed to a TrainConfig. Raises UserError for invalid values."""
    from omegaconf import OmegaConf

    return fill(SCHEMAS["train"], OmegaConf.to_container(composed))
