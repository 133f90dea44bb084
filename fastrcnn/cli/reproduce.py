"""The command `fastrcnn reproduce`."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import json
import logging
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fastrcnn.build.run_config import configure, start_config
from fastrcnn.cli import train
from fastrcnn.config.compose import check_overrides, compose, experiment_content
from fastrcnn.config.schema import DataConfig, EvalConfig, ReproduceConfig, TrainConfig, groups
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable, replace_file
from fastrcnn.report.paper_tables import TABLES, Cell, Measured, Table, Work, markdown

log = logging.getLogger("fastrcnn")
EXAMPLES = [
    "fastrcnn reproduce table=6 data=demo",
    "fastrcnn reproduce table=4 data.root=VOCdevkit data.proposals=voc07.proposals",
    "fastrcnn reproduce table=1 seeds=[0,1,2] data.root=VOCdevkit data.proposals=voc.proposals",
]
OWN = ("table", "seeds", "output")
NOT_HERE = ("run", "resume", "start", "name", "runtime.seed", "data.test")  # set for each experiment separately
FREE = ("solver.iterations", "solver.lr_steps")  # allowed, because a shorter schedule is still the same experiment
# Settings for the demo data set, which train narrow networks from scratch in minutes. All stages of the full
# experiments are run, but the numbers cannot be compared with the paper's.
SMALL = (
    "solver=scratch",
    "solver.iterations=400",
    "model.width=0.25",
    "model.batch_norm=true",
    "model.weights=null",
    "model.dropout=0.0",
    "runtime.images_every=0",
)
SMALL_RANKS = {"fc6=1024": "fc6=256", "fc7=256": "fc7=64"}
SHORT_SIDE = 600  # of the paper's images, in pixels; other scales are reduced in proportion


def main(arguments: list[str]) -> int:
    """Run the missing experiments of a table of the paper. Print the paper's numbers next to the measured numbers."""
    check_overrides("reproduce", arguments)
    config = compose("reproduce", arguments)
    table = choose_table(config)
    plan = Plan(config, [a for a in arguments if a.partition("=")[0] not in OWN])
    plan.refuse(table)
    folder = Path(config.output or f"outputs/reproduce/{config.data.name}").expanduser()
    refuse_unusable(folder, f"output={folder}")
    if plan.small:
        from fastrcnn.data.demo import write_demo

        write_demo(Path(config.data.root))
    plan.check(table)
    names = experiments(table)
    seeds = f" for each of {len(config.seeds)} seeds" if len(config.seeds) > 1 else ""
    log.info(
        "To reproduce table %d of the paper, %d trained network(s) are required%s: %s",
        table.number,
        len(names),
        seeds,
        ", ".join(names),
    )
    results: dict[Cell, list[Measured]] = {}
    text = ""
    for cell in table.cells:
        with contextlib.redirect_stdout(sys.stderr):  # the other commands print to stderr
            results[cell] = [measure(cell, seed, plan) for seed in config.seeds]
        text = markdown(table, results, plan.notes())
        write(text, table, results, plan, folder)  # after each cell, because experiments take hours
    name = folder / f"table-{table.number}"
    print(f"{text}\n\nWrote {name}.md and {name}.json")
    return 0


def choose_table(config: ReproduceConfig) -> Table:
    """Return the table to reproduce. Raises UserError if none is given, or if the seeds are empty or not unique."""
    if config.table is None:
        titles = "\n".join(f"  table={t.number}  {t.title}" for t in TABLES)
        raise UserError(f"Choose a table of the paper: fastrcnn reproduce table=NUMBER ...\n{titles}")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(
            f"seeds={config.seeds}: specify at least one seed, without duplicates, for example seeds=[0,1,2]."
        )
    return TABLES[config.table - 1]


def experiments(table: Table) -> list[str]:
    """Return the names of the experiments that a table needs, without duplicates, in the order of training."""
    works = [cell.work for cell in table.cells]
    return list(dict.fromkeys(name for w in works for name in (w.start, w.experiment) if name is not None))


@dataclass
class Plan:
    """The settings that all experiments of one call of the command share. given: arguments for each experiment."""

    config: ReproduceConfig
    given: list[str]
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def small(self) -> bool:
        return self.config.data.name == "demo"

    @property
    def own_data(self) -> bool:
        """Return whether the experiments use a data set that the user chose instead of the paper's."""
        return any(a.startswith("data=") for a in self.given)

    def refuse(self, table: Table) -> None:
        """Raise UserError for keys that would override the differences between the experiments of the table."""
        set_by = {
            f"{group}.{key}": name
            for name in experiments(table)
            for group, part in experiment_content(f"paper/{name}").items()
            for key in (part if isinstance(part, dict) else ())
        }
        for argument in self.given:
            key, _, value = argument.partition("=")
            if key in NOT_HERE:
                raise UserError(f"{argument}: `fastrcnn reproduce` sets this key for each experiment. Remove it.")
            if key in ("model", "model.network"):
                raise UserError(f"{argument}: the experiments determine the networks (S, M or L). Remove this key.")
            if key == "data" and value.startswith("voc"):
                raise UserError(
                    f"{argument}: the experiments determine which VOC data sets are used. Remove this key, and set "
                    "only data.root."
                )
            if key in set_by and key not in FREE:
                raise UserError(
                    f"{argument}: this key is set by the table's experiment paper/{set_by[key]}. Remove it."
                )

    def configuration(self, experiment: str, seed: int = 0, start: Path | None = None) -> TrainConfig:
        """Return the configuration for training an experiment. start: the checkpoint that provides initial weights."""
        shrunk = shrink(experiment, self.config) if self.small else []
        arguments = [f"experiment=paper/{experiment}", *shrunk, *self.given]
        config = configure(arguments)
        config.runtime.seed = seed
        if start is not None:
            config.start = str(start)
            config = start_config(config, arguments)
        return config

    def then(self, work: Work) -> tuple[str, ...]:
        """Return the command to run on the trained network. The ranks of `compress` are smaller for the demo data."""
        return tuple(SMALL_RANKS.get(a, a) for a in work.then) if self.small else work.then

    def check(self, table: Table) -> None:
        """Raise UserError for missing weights, images or packages and for invalid ranks, before hours of training."""
        from fastrcnn.build import annotations, models
        from fastrcnn.training import svm
        from fastrcnn.weights import pretrained

        for work in (cell.work for cell in table.cells):
            for name in filter(None, (work.start, work.experiment)):
                config = self.configuration(name)
                self.fingerprint(config.data)
                for split in (*config.data.test, *([] if self.own_data else filter(None, [work.server]))):
                    annotations.image_ids(config.data, [split])
                if config.model.weights not in (None, "imagenet"):
                    pretrained.existing(Path(config.model.weights).expanduser())
            command, *arguments = self.then(work) or ("",)
            if command == "svm":
                svm.linear_svc()
            if command == "compress":
                for argument in arguments:
                    layer, _, rank = argument.partition("=")
                    setattr(config.model, f"{layer}_rank", int(rank))
            models.check_model(config.model)

    def fingerprint(self, data: DataConfig) -> str:
        """Return a hash of the training images' names, sizes and ground truth, and of their proposal store."""
        key = json.dumps(asdict(data), sort_keys=True)
        if key not in self.fingerprints:
            from fastrcnn.build import annotations

            names = annotations.classes(data)
            found = hashlib.sha256(repr(names).encode())
            for s in annotations.samples(data, data.train, names, training=True, need_pictures=False):
                found.update(f"{s.image_id} {s.width} {s.height}".encode())
                found.update(s.boxes.tobytes() + s.labels.tobytes() + s.difficult.tobytes())
            if data.proposals is not None:
                for file in sorted(Path(data.proposals).expanduser().glob("*.json")):
                    found.update(file.read_bytes())
            self.fingerprints[key] = found.hexdigest()
        return self.fingerprints[key]

    def notes(self) -> list[str]:
        """Return notes for readers of the table: data set, seeds, and settings that differ from the paper."""
        data = self.config.data
        found = [f"Seeds: {', '.join(map(str, self.config.seeds))}."]
        other = [a for a in self.given if a.partition("=")[0] not in ("data", "data.root", "data.proposals")]
        if self.own_data:
            found.append(f"Measured on the data set {data.name} (AP: {data.metric}), not on the paper's data.")
        if self.small:
            found.append(
                "Small networks, trained from scratch on generated images. Do not compare them with the paper."
            )
        if other:
            found.append(f"Settings that differ from the paper: {' '.join(other)}")
        return found


def shrink(experiment: str, config: ReproduceConfig) -> list[str]:
    """Return the arguments that reduce the size of an experiment for the demo data set."""
    content = experiment_content(f"paper/{experiment}")
    found = list(SMALL)
    if "finetune_from" not in content.get("model", {}):  # without pre-trained weights, no layer can be frozen
        found.append(f"model.finetune_from={'conv1_1' if experiment.startswith('l_') else 'conv1'}")
    factor = config.data.short_sides[0] / SHORT_SIDE
    for key, value in content.get("data", {}).items():
        if key in ("short_sides", "test_short_sides"):
            found.append(f"data.{key}=[{','.join(str(round(side * factor)) for side in value)}]")
        elif key == "long_side":
            found.append(f"data.long_side={round(value * factor)}")
    return found


def measure(cell: Cell, seed: int, plan: Plan) -> Measured:
    """Measure the number of a table cell for one seed. Existing networks and evaluations are reused."""
    work = cell.work
    folder, config = trained_network(work, seed, plan)
    if cell.measure == "hours":
        return Measured(training_hours(folder), folder)
    last = last_checkpoint(folder, config)
    if work.server is not None and not plan.own_data:
        output = folder / "reproduce" / work.server.replace("/", "-")
        archive = output / "results.tgz"
        if not archive.is_file():
            evaluate(last, output, config, f"split={work.server}", "competition=true")
        return Measured(None, folder, archive)
    output = evaluation(plan.then(work), folder, last, config)
    if cell.measure == "s/image":
        return Measured(json.loads((output / "timing.json").read_text(encoding="utf-8"))["seconds_per_image"], folder)
    mean_ap = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["mAP"]
    return Measured(None if mean_ap is None else 100 * mean_ap, folder)


def last_checkpoint(folder: Path, config: TrainConfig) -> Path:
    return folder / "checkpoints" / f"step-{config.solver.iterations}.pt"


def trained_network(work: Work, seed: int, plan: Plan) -> tuple[Path, TrainConfig]:
    """Train the network of an experiment unless it exists. Return the folder of its run, and its full configuration.

    An interrupted run is resumed. The folder's name contains a hash of everything that affects training, including the
    ground truth. The network is not evaluated during training.
    """
    start = last_checkpoint(*trained_network(Work(work.start), seed, plan)) if work.start is not None else None
    config = plan.configuration(work.experiment, seed, start)
    folder = Path("outputs") / "reproduce" / f"{work.experiment}-{digest(config, plan.fingerprint(config.data))}"
    if not last_checkpoint(folder, config).is_file():
        resume = (folder / "config.yaml").is_file()  # without a checkpoint, training starts from scratch
        log.info("%s %s, seed %d: %s", "Resuming" if resume else "Training", work.experiment, seed, folder)
        data = replace(config.data, test=[])
        train.run(replace(config, run=str(folder), resume="auto" if resume else None, data=data))
    return folder, config


def digest(config: TrainConfig, data: str) -> str:
    """Return a hash of everything that affects training. data: the fingerprint of the training images."""
    content = {key: value for key, value in asdict(config).items() if key in ("model", "solver", "data", "start")}
    for key in ("name", "test", "test_short_sides", "metric", "proposal_cache"):
        content["data"].pop(key)
    content["runtime"] = [config.runtime.seed, config.runtime.precision, data]
    return letters_of(content)


def letters_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def evaluation(then: tuple[str, ...], folder: Path, last: Path, config: TrainConfig) -> Path:
    """Run the command `then` on the checkpoint `last`, evaluate the result, and return the folder of the evaluation."""
    command, *arguments = then or ("eval",)
    words = "-".join([command, *(a.rpartition(".")[2].replace("=", "-") for a in arguments)])
    data = config.data
    letters = letters_of([asdict(config.detection), data.test_short_sides, data.metric, data.test])
    output = folder / "reproduce" / f"{words}-{letters}"
    if (output / "metrics.json").is_file():  # written last
        return output
    checkpoint = last
    if command != "eval":
        checkpoint = folder / "reproduce" / words / "best.pt"
        if not checkpoint.is_file():
            log.info("%s: running `fastrcnn %s`", folder, " ".join((command, *arguments)))
            cache = f"data.proposal_cache={data.proposal_cache}"
            without = ["data.root=null"] if command == "compress" else []  # the mAP is measured below
            main_of_command = importlib.import_module(f"fastrcnn.cli.{command}").main
            main_of_command([f"checkpoint={last}", f"output={checkpoint}", cache, *without, *arguments])
        arguments = []
    if command == "svm":  # a threshold for probabilities does not apply to SVM margins
        config = replace(config, detection=replace(config.detection, score_threshold=None))
    evaluate(checkpoint, output, config, *arguments)
    return output


def evaluate(checkpoint: Path, output: Path, config: TrainConfig, *arguments: str) -> None:
    """Evaluate a checkpoint with `config` instead of its own configuration. arguments: more keys of `eval`."""
    from fastrcnn.build import checkpoints, machine
    from fastrcnn.cli.eval import evaluate_network

    cache = f"data.proposal_cache={config.data.proposal_cache}"
    given = [f"checkpoint={checkpoint}", f"output={output}", cache, *arguments]
    found = compose("eval", given, base=asdict(config))
    machine.threads(found.runtime)
    network, names, run = checkpoints.open_network(found, groups(EvalConfig))
    evaluate_network(found, network, names, run, given)


def training_hours(folder: Path) -> float:
    """Return the total time in hours of the training steps of a run, computed from its metrics.csv."""
    seconds, before = 0.0, 0
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        for step, name, value in list(csv.reader(file))[1:]:
            if name == "train/steps_per_s":
                seconds += (int(step) - before) / float(value)
                before = int(step)
    return seconds / 3600


def write(text: str, table: Table, results: dict[Cell, list[Measured]], plan: Plan, folder: Path) -> None:
    """Write table-N.md, and table-N.json with the number and the run of each cell for each seed."""
    from fastrcnn.training.tracking import environment

    config = plan.config
    content = {
        "table": table.number,
        "title": table.title,
        "data": config.data.name,
        "metric": config.data.metric,
        "given": plan.given,
        "seeds": list(config.seeds),
        "environment": environment(),
        "cells": [
            {name: getattr(cell, name) for name in ("row", "column", "measure", "paper")}
            | {"measured": [v.value for v in values], "runs": [str(v.folder) for v in values]}
            | {"experiment": f"paper/{cell.work.experiment}", "then": list(plan.then(cell.work))}
            for cell, values in results.items()
        ],
    }
    replace_file(folder / f"table-{table.number}.md", f"{text}\n".encode())
    replace_file(folder / f"table-{table.number}.json", (json.dumps(content, indent=2) + "\n").encode())
