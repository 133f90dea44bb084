"""The runs behind a table of the paper: trained and evaluated as far as that is not done."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastrcnn.cli import train
from fastrcnn.cli.paper_tables import Cell, Work
from fastrcnn.config.compose import experiment_content, to_dict
from fastrcnn.config.schema import DataConfig, ReproduceConfig, TrainConfig

log = logging.getLogger("fastrcnn")
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


@dataclass(frozen=True)
class Measured:
    """value: in the cell's measure; None where there is no ground truth, or none that is public: `archive` is for the
    evaluation server then."""

    value: float | None
    folder: Path  # of the run
    archive: Path | None = None


@dataclass
class Plan:
    """What all experiments of a call share. given: the arguments that go to each of them."""

    config: ReproduceConfig
    given: list[str]
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def small(self) -> bool:
        return self.config.data.name == "demo"

    @property
    def own_data(self) -> bool:
        """Whether everything is measured on a data set that is not the paper's."""
        return any(a.startswith("data=") for a in self.given)

    def arguments(self, experiment: str, seed: int) -> list[str]:
        """The command line of an experiment's training."""
        shrunk = small(experiment, self.config) if self.small else []
        return [f"experiment=paper/{experiment}", *shrunk, *self.given, f"runtime.seed={seed}"]

    def then(self, work: Work) -> tuple[str, ...]:
        """What is done with the trained network, with ranks that fit a small one."""
        return tuple(SMALL_RANKS.get(a, a) for a in work.then) if self.small else work.then

    def check(self, works: list[Work]) -> None:
        """Raises UserError for what would be missed only after hours: weights, pictures, ranks, packages."""
        from fastrcnn.build import annotations, models
        from fastrcnn.weights import pretrained

        for work in works:
            for name in filter(None, (work.start, work.experiment)):
                config = train.configure(self.arguments(name, 0))
                self.fingerprint(config.data)
                for split in (*config.data.test, *([] if self.own_data else filter(None, [work.server]))):
                    annotations.image_ids(config.data, [split])
                if config.model.weights not in (None, "imagenet"):
                    pretrained.existing(Path(config.model.weights).expanduser())
            verb_name, *arguments = self.then(work) or ("",)
            if verb_name == "svm":
                from fastrcnn.training.svm import linear_svc

                linear_svc()
            if verb_name == "compress":
                for argument in arguments:
                    layer, _, rank = argument.partition("=")
                    setattr(config.model, f"{layer}_rank", int(rank))
            models.check_model(config.model)

    def fingerprint(self, data: DataConfig) -> str:
        """Letters that depend on the training pictures' names, sizes and truth, and on the store of their proposals."""
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


def small(experiment: str, config: ReproduceConfig) -> list[str]:
    """What makes an experiment small, on the embedded data set."""
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


def measured(cell: Cell, seed: int, plan: Plan) -> Measured:
    """A cell's number for one seed: trains and evaluates what is not there yet."""
    folder, trained = network(cell.work, seed, plan)
    if cell.measure == "hours":
        return Measured(training_hours(folder), folder)
    last = folder / "checkpoints" / f"step-{trained.solver.iterations}.pt"
    if cell.work.server is not None and not plan.own_data:
        output = folder / "reproduce" / cell.work.server.replace("/", "-")
        archive = output / "results.tgz"
        if not archive.is_file():
            asked = [f"split={cell.work.server}", "competition=true", f"output={output}"]
            verb("eval")([f"checkpoint={last}", *detection_arguments(trained), *asked])
        return Measured(None, folder, archive)
    result = evaluation(plan.then(cell.work), folder, last, trained)
    value = result["mAP"] if cell.measure == "mAP" else result["seconds_per_image"]
    return Measured(100 * value if cell.measure == "mAP" and value is not None else value, folder)


def network(work: Work, seed: int, plan: Plan) -> tuple[Path, TrainConfig]:
    """The folder of the trained network, and its configuration. A training that was interrupted goes on.

    The folder is known by all that decides what is learned, the truth of the training pictures included. Nothing is
    evaluated in it while it trains.
    """
    arguments = plan.arguments(work.experiment, seed)
    if work.start is not None:
        first, of_first = network(Work(work.start), seed, plan)
        arguments.append(f"start={first / 'checkpoints' / f'step-{of_first.solver.iterations}.pt'}")
    wanted = train.configure(arguments)
    letters = digest(wanted, plan.fingerprint(wanted.data))
    folder = Path("outputs") / "reproduce" / f"{work.experiment}-{letters}"
    if not (folder / "checkpoints" / f"step-{wanted.solver.iterations}.pt").is_file():
        resume = (folder / "config.yaml").is_file()  # of one without a checkpoint, training begins again
        log.info("%s %s, seed %d: %s", "going on with" if resume else "training", work.experiment, seed, folder)
        how = ["resume=auto"] if resume else [*arguments, "data.test=[]"]
        train.run(train.configure([f"run={folder}", *how]))
    return folder, wanted


def digest(config: TrainConfig, data: str) -> str:
    """Letters of all that decides what is learned. data: the fingerprint of the training pictures."""
    content = {key: value for key, value in to_dict(config).items() if key in ("model", "solver", "data", "start")}
    for key in ("name", "test", "test_short_sides", "metric", "proposal_cache"):
        content["data"].pop(key)
    content["runtime"] = [config.runtime.seed, config.runtime.precision, data]
    return letters_of(content)


def letters_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def detection_arguments(config: TrainConfig) -> list[str]:
    """Arguments that make `eval` detect and measure as the configuration says, whatever the checkpoint says."""
    shown = {None: "null", True: "true", False: "false"}
    found = [f"detection.{k}={shown.get(v, v)}" for k, v in asdict(config.detection).items()]
    sides = ",".join(map(str, config.data.test_short_sides))
    return [*found, f"data.test_short_sides=[{sides}]", f"data.metric={config.data.metric}"]


def evaluation(then: tuple[str, ...], folder: Path, last: Path, trained: TrainConfig) -> dict[str, Any]:
    """mAP and seconds a picture of what the work makes of the checkpoint `last`; kept in the run's folder."""
    from fastrcnn.files import replace_file

    name, *arguments = then or ("eval",)
    asked = detection_arguments(trained)
    words = [name, *(a.rpartition(".")[2].replace("=", "-") for a in arguments)]
    test = f"data.test=[{','.join(trained.data.test)}]"
    output = folder / "reproduce" / f"{'-'.join(words)}-{letters_of([asked, test])}"
    kept = output / "result.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    checkpoint = last
    if name != "eval":
        checkpoint = folder / "reproduce" / "-".join(words) / "best.pt"
        if not checkpoint.is_file():
            log.info("%s: %s", folder, " ".join((name, *arguments)))
            without = ["data.root=null"] if name == "compress" else []  # the mAP is measured below
            verb(name)([f"checkpoint={last}", f"output={checkpoint}", *without, *arguments])
        arguments = []
    if name == "svm":  # a threshold for probabilities means nothing to margins
        asked = [a for a in asked if not a.startswith("detection.score_threshold=")]
    asked = [a for a in asked if a.partition("=")[0] not in {b.partition("=")[0] for b in arguments}]
    verb("eval")([f"checkpoint={checkpoint}", f"output={output}", test, *asked, *arguments])
    result = {
        "mAP": json.loads((output / "metrics.json").read_text(encoding="utf-8"))["mAP"],
        "seconds_per_image": json.loads((output / "timing.json").read_text(encoding="utf-8"))["seconds_per_image"],
        "metric": trained.data.metric,
    }
    replace_file(kept, (json.dumps(result) + "\n").encode())
    return result


def verb(name: str) -> Callable[[list[str]], int]:
    """Another verb of the command line."""
    return importlib.import_module(f"fastrcnn.cli.{name}").main


def training_hours(folder: Path) -> float:
    """Hours that the steps of a run took, pauses left out; from its metrics.csv."""
    seconds, before = 0.0, 0
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        for step, name, value in list(csv.reader(file))[1:]:
            if name == "train/steps_per_s":
                seconds += (int(step) - before) / float(value)
                before = int(step)
    return seconds / 3600
