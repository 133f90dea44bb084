"""What torchrun, or whatever else started the processes of one job, has told this one. Imports nothing of torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """This process among those of its job; the defaults are those of a single process."""

    rank: int = 0  # of `size`
    size: int = 1
    local_rank: int = 0  # the same among the processes of its machine
    local_size: int = 1
    restarts: int = 0  # how often torchrun would start the job again
    kept_store: bool = False  # the processes meet in torchrun's own store, which keeps what precedes a restart
    attempt: int = 0  # then the number of the restart


def launch() -> Launch:
    """As the environment says: RANK, WORLD_SIZE and so on, which torchrun sets."""

    def number(variable: str, default: int = 0) -> int:
        return int(os.environ.get(variable, "") or default)

    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(
        rank=number("RANK"),
        size=number("WORLD_SIZE", 1),
        local_rank=number("LOCAL_RANK"),
        local_size=number("LOCAL_WORLD_SIZE", 1),
        restarts=number("TORCHELASTIC_MAX_RESTARTS"),
        kept_store=kept,
        attempt=number("TORCHELASTIC_RESTART_COUNT") if kept else 0,
    )


def cores() -> int:
    """How many cores this process may use: its share, where its machine has several of the job. A container may have
    the time of fewer cores than it sees."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, _least(here, quota()) // launch().local_size)


def _least(cores: int, share: float) -> int:
    return cores if math.isinf(share) else min(cores, math.ceil(share))


def quota(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """The cores whose time the control group of a container allows; infinity without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # versions 2 and 1
        try:
            words = [word for name in names for word in (folder / name).read_text(encoding="ascii").split()]
            share, period = float(words[0]), float(words[1])  # "max" is no number, -1 no limit
        except (OSError, ValueError, IndexError):
            continue
        if share > 0 and period > 0:
            return share / period
    return math.inf
