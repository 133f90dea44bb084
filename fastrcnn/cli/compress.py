"""fastrcnn compress"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.build import derived
from fastrcnn.build.checkpoints import Trained, compose_for, open_trained
from fastrcnn.config.schema import CompressConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.data.dataset import DetectionDataset
    from fastrcnn.inference.network import TorchNetwork
    from fastrcnn.model.compress import Ranks

log = logging.getLogger("fastrcnn")
WAYS = ("fc6", "fc7", "keep", "budget")  # keys that choose the ranks
EXAMPLES = [
    "fastrcnn compress checkpoint=RUN fc6=1024 fc7=256",
    "fastrcnn compress checkpoint=RUN keep=0.9",
    "fastrcnn compress checkpoint=RUN budget=0.5 split=val",
    "fastrcnn compress checkpoint=RUN fc6=1024 fc7=256 data.root=null      (without measuring the mAP)",
]


def main(arguments: list[str]) -> int:
    """Writes a smaller checkpoint and says what it saves and costs."""
    config = compose_for("compress", arguments)
    ways = {name: value for name in WAYS if (value := getattr(config, name)) is not None}
    check_way(ways)
    trained = open_trained(config, arguments)
    name = "-".join(f"{way}-{value:g}" for way, value in ways.items())
    output, source = derived.output_file(config.output, trained.file, f"compressed/{name}/best.pt")
    for name in ("fc6", "fc7"):
        if trained.config["model"].get(f"{name}_rank") is not None:
            raise UserError(
                f"{trained.file}: is compressed already ({name} is two layers). Compress the one it was made from."
            )
    compress(config, trained, output, source, asked=any(a.startswith("data.root=") for a in arguments))
    return 0


def check_way(ways: dict[str, float]) -> None:
    """Raises UserError unless there is exactly one way to choose the ranks."""
    if len({"ranks" if name in ("fc6", "fc7") else name for name in ways}) != 1:
        raise UserError(
            "how small? Give one of: the ranks (fc6=1024 fc7=256, or one of them), the share of energy that is kept "
            f"(keep=0.9), the mAP points that may be lost (budget=0.5). {'More' if ways else 'None'} is given."
        )


def compress(config: CompressConfig, trained: Trained, output: Path, source: str, asked: bool) -> None:
    """Compresses the checkpoint, writes `output` and prints the outcome. source: see derived.write.

    asked: whether the data set's folder was named for this command, and so has to be there.
    """
    from fastrcnn.build import machine, models, training
    from fastrcnn.deploy.compression import ranks_that_keep, ranks_within, size_lines, time_line
    from fastrcnn.inference.network import TorchNetwork
    from fastrcnn.model.compress import LAYERS, decompose, factored_state
    from fastrcnn.progress import progress

    given: Ranks = {"fc6": config.fc6, "fc7": config.fc7}
    device = machine.device(config.runtime)
    dtype = machine.precision(config.runtime, device)
    machine.threads(config.runtime)
    before = TorchNetwork(trained.model(device), dtype)
    state = before.model.state_dict()
    for name in LAYERS:
        models.check_rank(name, given[name], *state[f"head.{name}.weight"].shape)
    test_set = data(config, trained.classes, asked)

    wanted = [name for name in LAYERS if given[name] is not None] or list(LAYERS)
    log.info("decomposing %s, which takes a few minutes for the paper's network", " and ".join(wanted))
    layers = progress(wanted, len(wanted), "decompose", "layer")
    found = {name: decompose(state[f"head.{name}.weight"]) for name in layers}

    def smaller(ranks: Ranks) -> Trained:
        model = trained.config["model"] | {f"{name}_rank": rank for name, rank in ranks.items()}
        return replace(trained, config=trained.config | {"model": model}, state=factored_state(state, found, ranks))

    def mean_ap(network: TorchNetwork) -> float | None:
        settings = training.detection(config.detection, network.classifier)
        return derived.mean_ap(config, network, test_set, trained.classes, settings)

    def measure(ranks: Ranks) -> float:
        return mean_ap(TorchNetwork(smaller(ranks).model(device), dtype)) or 0.0

    ap_before = mean_ap(before)
    ap_after: float | None
    tried: list[str] = []
    if config.budget is not None:
        ranks, ap_after, tried = ranks_within(config.budget, found, ap_before, measure)
    else:
        ranks = given if config.keep is None else ranks_that_keep(config.keep, found)
    made = smaller(ranks)
    after = TorchNetwork(made.model(device), dtype)
    if config.budget is None:
        ap_after = mean_ap(after)
    derived.write(made, ap_after, output, source)
    print("\n".join([*tried, *size_lines(before.model, after.model, ranks), time_line(before, after)]))
    unmeasured = "no class has truth there" if test_set else "there is no data set"
    print(derived.ap_line(config, "{} before, {} after", ap_before, ap_after, unmeasured))
    print(f"written to {output}")
    if after.classifier == "softmax":
        print(f"to train it further: fastrcnn train start={output} solver.lr=0.0001")


def data(config: CompressConfig, names: list[str], asked: bool) -> DetectionDataset | None:
    """What the mAP is measured on; None where the data set is no longer where the run had it."""
    from fastrcnn.build import annotations, datasets

    root = config.data.root
    needed = config.budget is not None or config.split is not None
    if not needed and not config.data.test:
        log.warning("the mAP is not measured: data.test is empty")
        return None
    if root is None or not (asked or Path(root).expanduser().exists()):
        if needed:
            annotations.root(config.data)  # says what is missing
        log.warning("the mAP is not measured: %s", f"there is no {root}" if root else "there is no data.root")
        return None
    try:
        return datasets.test_set(config.data, names, config.split)
    except UserError as error:
        raise UserError(f"{error}\nTo compress without measuring the mAP: data.root=null.") from None
