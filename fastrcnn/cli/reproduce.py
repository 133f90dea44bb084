"""fastrcnn reproduce"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastrcnn.cli import reproduce_report, train
from fastrcnn.cli.compose import check_overrides, compose, experiment_content, to_dict
from fastrcnn.cli.paper_tables import TABLES, Cell, Table, Work
from fastrcnn.config import ReproduceConfig, TrainConfig
from fastrcnn.errors import UserError

log = logging.getLogger("fastrcnn")
EXAMPLES = [
    "fastrcnn reproduce table=6 data=demo",
    "fastrcnn reproduce table=4 data.root=VOCdevkit data.proposals=voc07.proposals",
    "fastrcnn reproduce table=1 seeds=[0,1,2] data.root=VOCdevkit data.proposals=voc.proposals",
]
OWN = ("table", "seeds", "output")
# On the embedded data set: from scratch, at a quarter of the width, in minutes. The numbers have nothing to do with the
# paper's then; all the ways to them are the same.
SMALL = (
    "solver=scratch",
    "solver.iterations=400",
    "model.width=0.25",
    "model.batch_norm=true",
    "model.weights=null",
    "model.dropout=0.0",
    "runtime.pictures_every=0",
)
SMALL_RANKS = {"fc6=1024": "fc6=256", "fc7=256": "fc7=64"}
SHORT_SIDE = 600  # of the paper's pictures; five scales shrink in proportion


def main(arguments: list[str]) -> int:
    """Runs the experiments of a table of the paper, as far as they are not done, and prints it beside the paper's."""
    check_overrides("reproduce", arguments)
    config = compose("reproduce", arguments)
    table = chosen(config)
    given = [a for a in arguments if a.partition("=")[0] not in OWN]
    if config.data.name == "demo":
        from fastrcnn.data.demo import write_demo

        write_demo(Path(config.data.root))
    with contextlib.redirect_stdout(sys.stderr):  # what the other verbs print
        results = [[measured(cell, seed, given, config) for seed in config.seeds] for cell in progress(table, config)]
    folder = Path(config.output or f"outputs/reproduce/{config.data.name}").expanduser()
    print(reproduce_report.write(table, results, config, folder))
    return 0


def chosen(config: ReproduceConfig) -> Table:
    """The table that is asked for. Raises UserError where it is none of the paper's."""
    if config.table is None:
        titles = "\n".join(f"  table={t.number}  {t.title}" for t in TABLES)
        raise UserError(f"which table of the paper? fastrcnn reproduce table=NUMBER ...\n{titles}")
    if not config.seeds:
        raise UserError("seeds=[]: give at least one, as seeds=[0].")
    return TABLES[config.table - 1]


def progress(table: Table, config: ReproduceConfig) -> list[Cell]:
    """The cells of the table; says first how many networks that takes."""
    works = {cell.work.experiment for cell in table.cells} | {c.work.start for c in table.cells if c.work.start}
    log.info(
        "table %d: %d network(s) to train for each of %d seed(s): %s",
        table.number,
        len(works),
        len(config.seeds),
        ", ".join(sorted(works)),
    )
    return list(table.cells)


@dataclass(frozen=True)
class Measured:
    """value: in the cell's measure; None where the truth is not public, and `archive` is for the evaluation server."""

    value: float | None
    folder: Path  # of the run
    archive: Path | None = None


def measured(cell: Cell, seed: int, given: list[str], config: ReproduceConfig) -> Measured:
    """A cell's number for one seed: trains and evaluates what is not there yet."""
    own_data = any(a.startswith("data=") for a in given)
    folder, trained = network(cell.work, seed, given, config)
    if cell.measure == "hours":
        return Measured(training_hours(folder), folder)
    if cell.work.server is not None and not own_data:
        output = folder / "eval" / cell.work.server.replace("/", "-")
        if not any(output.rglob("*.tgz")):
            verb("eval")([f"checkpoint={folder}", f"split={cell.work.server}", "competition=true", f"output={output}"])
        return Measured(None, folder, next(output.rglob("*.tgz")))
    results = evaluation(cell.work, folder, trained, config)
    if cell.measure == "mAP":
        mean = json.loads((results / "metrics.json").read_text(encoding="utf-8"))["mAP"]
        return Measured(None if mean is None else 100 * mean, folder)
    return Measured(json.loads((results / "timing.json").read_text(encoding="utf-8"))["seconds_per_image"], folder)


def network(work: Work, seed: int, given: list[str], config: ReproduceConfig) -> tuple[Path, TrainConfig]:
    """The folder of the trained network, and its configuration. A training that was interrupted goes on."""
    arguments = [f"experiment=paper/{work.experiment}", *small(work.experiment, config), *given, f"runtime.seed={seed}"]
    if work.start is not None:
        first, _ = network(Work(work.start), seed, given, config)
        arguments.append(f"start={first}")
    wanted = train.configure(arguments)
    folder = Path("outputs") / "reproduce" / f"{work.experiment}-{digest(wanted)}"
    last = folder / "checkpoints" / f"step-{wanted.solver.iterations}.pt"
    finished = any((folder / "eval").glob("*/metrics.json")) if wanted.data.test else last.is_file()
    if not finished:
        resume = (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("step-*.pt"))
        log.info("%s %s, seed %d: %s", "going on with" if resume else "training", work.experiment, seed, folder)
        train.run(train.configure([f"run={folder}", *(["resume=auto"] if resume else arguments)]))
    return folder, wanted


def small(experiment: str, config: ReproduceConfig) -> list[str]:
    """What makes an experiment small, on the embedded data set; nothing on any other."""
    if config.data.name != "demo":
        return []
    content = experiment_content(f"paper/{experiment}")
    found = list(SMALL)
    if "finetune_from" not in content.get("model", {}):  # nothing was trained before that could be kept
        found.append(f"model.finetune_from={'conv1_1' if experiment.startswith('l_') else 'conv1'}")
    factor = config.data.short_sides[0] / SHORT_SIDE
    for key, value in content.get("data", {}).items():
        if key in ("short_sides", "test_short_sides"):
            found.append(f"data.{key}=[{','.join(str(round(side * factor)) for side in value)}]")
        elif key == "long_side":
            found.append(f"data.long_side={round(value * factor)}")
    return found


def digest(config: TrainConfig) -> str:
    """Letters that another configuration would not have; where the run lies does not count."""
    content = to_dict(config) | {"run": None, "resume": None}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def evaluation(work: Work, folder: Path, trained: TrainConfig, config: ReproduceConfig) -> Path:
    """The folder of the evaluation of what the work makes of the trained network."""
    from fastrcnn import build_data

    if not work.then:
        return folder / "eval" / build_data.split_name(trained.data.test)
    name, *arguments = (SMALL_RANKS.get(a, a) for a in work.then) if config.data.name == "demo" else work.then
    output = folder / "-".join((name, *(a.rpartition(".")[2].replace("=", "-") for a in arguments)))
    results = output / "eval"
    if (results / "metrics.json").is_file():
        return results
    checkpoint = folder
    if name == "eval":
        extra = arguments
    else:
        checkpoint, extra = output / "best.pt", []
        if not checkpoint.is_file():
            log.info("%s: %s", folder, " ".join((name, *arguments)))
            verb(name)([f"checkpoint={folder}", f"output={checkpoint}", *arguments])
    verb("eval")([f"checkpoint={checkpoint}", f"output={results}", *extra])
    return results


def verb(name: str) -> Callable[[list[str]], int]:
    """Another verb of the command line."""
    import importlib

    return importlib.import_module(f"fastrcnn.cli.{name}").main


def training_hours(folder: Path) -> float:
    """Hours that the steps of a run took, evaluations and pauses left out; from its metrics.csv."""
    seconds, before = 0.0, 0
    with (folder / "metrics.csv").open(newline="") as file:
        for step, name, value in list(csv.reader(file))[1:]:
            if name == "train/steps_per_s":
                seconds += (int(step) - before) / float(value)
                before = int(step)
    return seconds / 3600
