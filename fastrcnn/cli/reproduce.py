"""fastrcnn reproduce"""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

from fastrcnn.cli import reproduce_report
from fastrcnn.cli.paper_tables import TABLES, Cell, Table, Work
from fastrcnn.cli.reproduce_runs import Measured, Plan, measured
from fastrcnn.config.compose import check_overrides, compose, experiment_content
from fastrcnn.config.schema import ReproduceConfig
from fastrcnn.errors import UserError

log = logging.getLogger("fastrcnn")
EXAMPLES = [
    "fastrcnn reproduce table=6 data=demo",
    "fastrcnn reproduce table=4 data.root=VOCdevkit data.proposals=voc07.proposals",
    "fastrcnn reproduce table=1 seeds=[0,1,2] data.root=VOCdevkit data.proposals=voc.proposals",
]
OWN = ("table", "seeds", "output")
NOT_HERE = ("run", "resume", "start", "name", "runtime.seed", "data.test")  # each experiment has its own
FREE = ("solver.iterations", "solver.lr_steps")  # may be given though experiments set them: shorter is still the same


def main(arguments: list[str]) -> int:
    """Runs the experiments of a table of the paper, as far as they are not done, and prints it beside the paper's."""
    check_overrides("reproduce", arguments)
    config = compose("reproduce", arguments)
    table = chosen(config)
    given = [a for a in arguments if a.partition("=")[0] not in OWN]
    refuse(table, given)
    plan = Plan(config, given)
    if plan.small:
        from fastrcnn.data.demo import write_demo

        write_demo(Path(config.data.root))
    folder = Path(config.output or f"outputs/reproduce/{config.data.name}").expanduser()
    plan.check([cell.work for cell in table.cells])
    say(table, config)
    results: dict[Cell, list[Measured]] = {}
    text = ""
    for cell in table.cells:
        with contextlib.redirect_stdout(sys.stderr):  # what the other verbs print
            results[cell] = [measured(cell, seed, plan) for seed in config.seeds]
        text = reproduce_report.write(table, results, plan, folder)  # after each, so that hours are never lost
    print(text)
    return 0


def chosen(config: ReproduceConfig) -> Table:
    """The table that is asked for. Raises UserError where it is none of the paper's."""
    if config.table is None:
        titles = "\n".join(f"  table={t.number}  {t.title}" for t in TABLES)
        raise UserError(f"which table of the paper? fastrcnn reproduce table=NUMBER ...\n{titles}")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds={config.seeds}: give at least one, each once, as seeds=[0,1,2].")
    return TABLES[config.table - 1]


def experiments(works: list[Work]) -> list[str]:
    """Names of the experiments that have to be trained, each once, first ones first."""
    return list(dict.fromkeys(name for w in works for name in (w.start, w.experiment) if name is not None))


def refuse(table: Table, given: list[str]) -> None:
    """Raises UserError for keys that would undo what makes the experiments of the table differ."""
    set_by: dict[str, str] = {}
    for name in experiments([cell.work for cell in table.cells]):
        for group, part in experiment_content(f"paper/{name}").items():
            if isinstance(part, dict):
                set_by |= {f"{group}.{key}": name for key in part}
    for argument in given:
        key, _, value = argument.partition("=")
        if key in NOT_HERE:
            raise UserError(f"{argument}: reproduce decides that for each experiment by itself; leave it out.")
        if key in ("model", "model.network"):
            raise UserError(f"{argument}: the networks are the paper's S, M and L; leave it out.")
        if key == "data" and value.startswith("voc"):
            raise UserError(f"{argument}: the experiments choose VOC's sets by themselves; give data.root alone.")
        if key in set_by and key not in FREE:
            raise UserError(f"{argument}: the experiment paper/{set_by[key]} of this table sets it; leave it out.")


def say(table: Table, config: ReproduceConfig) -> None:
    """Says how many networks the table takes."""
    names = experiments([cell.work for cell in table.cells])
    seeds = f" for each of {len(config.seeds)} seeds" if len(config.seeds) > 1 else ""
    log.info("table %d needs %d trained network(s)%s: %s", table.number, len(names), seeds, ", ".join(names))
