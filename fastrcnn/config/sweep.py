"""Several values for a key: which ones an argument has, and Hydra's multirun over their combinations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastrcnn.config.compose import check_overrides, config_folder
from fastrcnn.config.schema import SCHEMAS, leaves
from fastrcnn.config.values import fill, quote
from fastrcnn.errors import UserError

FUNCTION = re.compile(r"(choice|range|interval|tag|sort|shuffle|glob|int|float|str|bool)\(.*\)")  # of Hydra's grammar
# A value up to the next comma that is in no bracket and no quotes.
VALUE = re.compile(r"""(?:^|,)((?:\[[^]]*\]|\([^)]*\)|\{[^}]*\}|'(?:\\'|[^'])*'|"[^"]*"|[^,])*)""")
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null")
Job = Callable[[Any, Path, int, list[str]], float]  # configuration, folder, number, arguments of the run


def choices(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments as overrides for Hydra's multirun, and those of a single run: the first value of each.

    Raises UserError for a key or a value that no run could have.
    """
    overrides, first = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if FUNCTION.fullmatch(value) and key in leaves(SCHEMAS["train"]):  # a range, of which Hydra knows the grammar
            overrides.append(argument)
            continue
        values = VALUE.findall(value) if equals and not FUNCTION.fullmatch(value) else []
        checked = check_overrides("train", [f"{key}={v}" for v in values] or [argument])
        overrides.append(f"{key}=" + ",".join(c.partition("=")[2] for c in checked))
        first.append(f"{key}={values[0]}")
    return overrides, first


def varying_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that have several values in overrides for Hydra's multirun."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def multirun(overrides: Sequence[str], hydras: Sequence[str], folder: Path, job: Job) -> None:
    """Calls `job` for every combination, in whatever process Hydra's launcher has for it.

    hydras: arguments for Hydra itself. The runs' folders are 0, 1, ... of `folder`. job: its result is what Optuna
    maximises. Raises UserError where Hydra cannot use an argument.
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
    """What Hydra composed, as an object. Raises UserError for a value that a key cannot have."""
    from omegaconf import OmegaConf

    return fill(SCHEMAS["train"], OmegaConf.to_container(composed))
