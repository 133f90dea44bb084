"""fastrcnn compress"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn import files
from fastrcnn.build.checkpoints import opened, require
from fastrcnn.build.derived import evaluated, network, output_file
from fastrcnn.cli.compress_report import change, points, shown, size_lines, time_line
from fastrcnn.config.compose import compose
from fastrcnn.config.schema import CompressConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.model.compress import Decomposition, Ranks
    from fastrcnn.model.fast_rcnn import FastRCNN

log = logging.getLogger("fastrcnn")
EXAMPLES = [
    "fastrcnn compress checkpoint=RUN fc6=1024 fc7=256",
    "fastrcnn compress checkpoint=RUN keep=0.9",
    "fastrcnn compress checkpoint=RUN budget=0.5 split=val",
    "fastrcnn compress checkpoint=RUN fc6=1024 fc7=256 data.root=null      (without measuring the mAP)",
]
TRIALS = 6  # evaluations in a search, beside that of the model as it is


def main(arguments: list[str]) -> int:
    """Writes a smaller checkpoint and says what it saves and costs."""
    require("compress", arguments)
    config = compose("compress", arguments)
    check_way(config)
    config, path, content = opened("compress", config, arguments)
    output, source = output_file(config.output, path, default_output(config))
    compress(config, path, content, output, source, asked=any(a.startswith("data.root=") for a in arguments))
    return 0


def check_way(config: CompressConfig) -> None:
    """Raises UserError unless there is exactly one way to choose the ranks."""
    ways = [config.fc6 is not None or config.fc7 is not None, config.keep is not None, config.budget is not None]
    if sum(ways) != 1:
        raise UserError(
            "how small? Give one of: the ranks (fc6=1024 fc7=256, or one of them), the share of energy that is kept "
            f"(keep=0.9), the mAP points that may be lost (budget=0.5). {'None' if not any(ways) else 'More'} is given."
        )


def default_output(config: CompressConfig) -> str:
    """Where the result lies in the run's folder."""
    ways = (("fc6", config.fc6), ("fc7", config.fc7), ("keep", config.keep), ("budget", config.budget))
    name = "-".join(f"{way}-{value:g}" for way, value in ways if value is not None)
    return f"compressed/{name}/best.pt"


def compress(
    config: CompressConfig, path: Path, content: dict[str, Any], output: Path, source: str, asked: bool
) -> None:
    """Compresses the checkpoint's `content`, writes `output` and prints the outcome. source: see outputs.py.

    asked: whether the data set's folder was named for this command, and so has to be there.
    """
    from fastrcnn.build import annotations, machine, models, training
    from fastrcnn.model.compress import LAYERS, decompose, factored_state, ranks_for
    from fastrcnn.progress import progress
    from fastrcnn.training import checkpoint

    given: Ranks = {"fc6": config.fc6, "fc7": config.fc7}
    for name in LAYERS:
        if content["config"]["model"].get(f"{name}_rank") is not None:
            raise UserError(f"{path}: is compressed already ({name} is two layers). Compress the one it was made from.")
    names = content["classes"]
    device = machine.device(config.runtime)
    dtype = machine.precision(config.runtime, device)
    machine.threads(config.runtime)
    before = network(path, content["config"], names, content["model"], device)
    for name in LAYERS:
        models.check_rank(name, given[name], *before.state_dict()[f"head.{name}.weight"].shape)
    test_set = data(config, names, asked)

    wanted = [name for name in LAYERS if given[name] is not None] or list(LAYERS)
    weights = {name: before.state_dict()[f"head.{name}.weight"] for name in wanted}
    log.info("decomposing %s, which takes a few minutes for the paper's network", " and ".join(wanted))
    found = {name: decompose(weights[name]) for name in progress(wanted, len(wanted), "decompose", "layer")}

    def smaller(ranks: Ranks) -> FastRCNN:
        state = factored_state(before.state_dict(), found, ranks)
        return network(path, with_ranks(content["config"], ranks), names, state, device)

    def mean_ap(model: FastRCNN) -> float | None:
        if test_set is None:
            return None
        settings = training.detection(config.detection, model.classifier)
        return evaluated(config, model, test_set, names, settings, dtype)

    ap_before = mean_ap(before)
    ap_after: float | None
    tried: list[str] = []
    if config.budget is not None:
        ranks, ap_after, tried = within_budget(config.budget, found, ap_before, lambda r: mean_ap(smaller(r)) or 0.0)
        after = smaller(ranks)
    else:
        ranks = given if config.keep is None else ranks_for(found, config.keep)
        refuse_nothing(config.keep, ranks, found)
        after = smaller(ranks)
        ap_after = mean_ap(after)
    whole = checkpoint.packed(
        {
            "step": content["step"],
            "best": -1.0 if ap_after is None else ap_after,
            "classes": names,
            "config": with_ranks(content["config"], ranks),
            "model": after.state_dict(),
        },
    )
    with files.write_derived(output, source) as part:
        part.write_bytes(whole)
    print("\n".join([*tried, *size_lines(before, after, ranks), time_line(before, after, dtype)]))
    if ap_before is not None and ap_after is not None:
        split = annotations.split_name(annotations.test_splits(config.data, config.split))
        print(f"mAP on {split}: {points(ap_before)} before, {points(ap_after)} after ({change(ap_before, ap_after)})")
    else:
        print(f"mAP: not measured, {'as no class has truth there' if test_set else 'as there is no data set'}")
    print(f"written to {output}")
    if after.classifier == "softmax":
        print(f"to train it further: fastrcnn train start={output} solver.lr=0.0001")


def with_ranks(config: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A run's configuration, its network with layers of these ranks."""
    return config | {"model": config["model"] | {f"{name}_rank": rank for name, rank in ranks.items()}}


def data(config: CompressConfig, names: list[str], asked: bool) -> DetectionDataset | None:
    """What the mAP is measured on; None where the data set is no longer where the run had it."""
    from fastrcnn.build import annotations, datasets

    root = config.data.root
    if config.budget is None and config.split is None and not config.data.test:
        log.warning("the mAP is not measured: data.test is empty")
        return None
    if root is None or not (asked or Path(root).expanduser().exists()):
        if config.budget is not None or config.split is not None:
            annotations.root(config.data)  # says what is missing
        log.warning("the mAP is not measured: %s", f"there is no {root}" if root else "there is no data.root")
        return None
    try:
        return datasets.test_set(config.data, names, config.split)
    except UserError as error:
        raise UserError(f"{error}\nTo compress without measuring the mAP: data.root=null.") from None


def within_budget(
    budget: float, found: dict[str, Decomposition], before: float | None, measure: Callable[[Ranks], float]
) -> tuple[Ranks, float, list[str]]:
    """The smallest ranks tried that lose at most `budget` points, their mAP, and what was tried as people read it.

    before, and what `measure` gives for ranks: mAP, 0 to 1. Raises UserError where nothing tried is good enough.
    """
    from fastrcnn.model.compress import search

    if before is None:
        raise UserError("budget: there is no mAP to lose, as no class has truth in these pictures. Give keep=0.9.")
    tried: list[str] = []

    def measured(keep: float, ranks: Ranks) -> float:
        log.info("trial %d of at most %d: %s", len(tried) + 1, TRIALS, shown(ranks))
        value = measure(ranks)
        tried.append(f"keep={keep:.3f}: {shown(ranks)}: mAP {points(value)} ({change(before, value)})")
        log.info("%s", tried[-1])
        return value

    trials = search(found, measured, before - budget / 100 - 1e-9, TRIALS)
    good = [t for t in trials if t.enough]
    if not good:
        raise UserError(f"budget={budget:g}: nothing that was tried loses so little.\n" + "\n".join(tried))
    return good[-1].ranks, good[-1].value, tried


def refuse_nothing(keep: float | None, ranks: Ranks, found: dict[str, Decomposition]) -> None:
    """Says which layers stay as they are, as `keep` takes too many; raises UserError where all do."""
    from fastrcnn.model.head import largest_rank

    stay = [
        f"{name}: a rank of {found[name].rank_for(keep)} is needed to keep {keep:g} of its energy, but only up to "
        f"{largest_rank(*found[name].weight.shape)} are two layers smaller than one"
        for name, rank in ranks.items()
        if keep is not None and rank is None
    ]
    if not any(ranks.values()):
        raise UserError(f"keep={keep}: there is nothing to compress.\n" + "\n".join(stay))
    for line in stay:
        log.info("%s; it stays as it is", line)
