"""The ranks of this process in its torchrun job, and its number of cores. This module does not import torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """The ranks of this process and the settings of its torchrun job. The defaults describe a single process."""

    rank: int = 0  # 0 .. size - 1
    size: int = 1  # number of processes in the job
    local_rank: int = 0  # rank among the processes on the same machine
    local_size: int = 1  # number of processes of the job on this machine
    restarts: int = 0  # maximum number of times that torchrun restarts the job
    kept_store: bool = False  # whether the processes use torchrun's store, which keeps its content across restarts
    attempt: int = 0  # number of restarts so far if kept_store is set, else 0


def launch() -> Launch:
    """Read the environment variables that torchrun sets, such as RANK and WORLD_SIZE.

    Variables that are not set get default values.
    """

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
    """Return the number of cores that this process can use, at least 1.

    The available cores are divided by the number of processes of the job on this machine. The CPU quota of a container
    is respected, because it can be lower than the number of cores that are visible in the container.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, _least(here, quota()) // launch().local_size)


def _least(cores: int, share: float) -> int:
    return cores if math.isinf(share) else min(cores, math.ceil(share))


def quota(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the number of cores, possibly a fraction, that a container's cgroup allows; infinity without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroup versions 2 and 1
        try:
            words = [word for name in names for word in (folder / name).read_text(encoding="ascii").split()]
            share, period = float(words[0]), float(words[1])  # "max" or -1 means no limit
        except (OSError, ValueError, IndexError):
            continue
        if share > 0 and period > 0:
            return share / period
    return math.inf
