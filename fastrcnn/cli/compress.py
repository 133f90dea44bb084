"""The command `fastrcnn compress`."""

from __future__ import annotations

from fastrcnn.build.checkpoints import compose_for, open_trained
from fastrcnn.errors import UserError

WAYS = ("fc6", "fc7", "keep", "budget")  # keys that determine the ranks
EXAMPLES = [
    "fastrcnn compress checkpoint=RUN fc6=1024 fc7=256",
    "fastrcnn compress checkpoint=RUN keep=0.9",
    "fastrcnn compress checkpoint=RUN budget=0.5 split=val",
    "fastrcnn compress checkpoint=RUN fc6=1024 fc7=256 data.root=null      (without measuring the mAP)",
]


def main(arguments: list[str]) -> int:
    """Write a compressed copy of a checkpoint, and print how the size, the time and the mAP change."""
    config = compose_for("compress", arguments)
    ways = {name: value for name in WAYS if (value := getattr(config, name)) is not None}
    check_way(ways)
    trained = open_trained(config, arguments)
    from fastrcnn.build import derived

    name = "-".join(f"{way}-{value:g}" for way, value in ways.items())
    output, source = derived.output_file(config.output, trained.file, f"compressed/{name}/best.pt")
    for name in ("fc6", "fc7"):
        if trained.config["model"].get(f"{name}_rank") is not None:
            raise UserError(
                f"{trained.file}: this checkpoint is already compressed ({name} consists of two layers). Compress the "
                "original checkpoint instead."
            )
    asked = any(a.startswith("data.root=") for a in arguments)
    print("\n".join(derived.compress(config, trained, output, source, asked)))
    return 0


def check_way(ways: dict[str, float]) -> None:
    """Raise UserError unless the given keys (fc6 and fc7, keep, or budget) determine the ranks in exactly one way."""
    got = f"Given: {', '.join(f'{name}={value:g}' for name, value in ways.items())}." if ways else "None is given."
    if len({"ranks" if name in ("fc6", "fc7") else name for name in ways}) != 1:
        raise UserError(
            "Choose exactly one compression setting: the ranks (fc6=1024, fc7=256, or both), the fraction of the "
            "energy (sum of squared singular values) to keep (keep=0.9), or the maximum loss of mAP in points "
            f"(budget=0.5). {got}"
        )
