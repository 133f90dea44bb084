"""What torchrun, or whatever else started the processes of one job, has told this one. Imports nothing of torch."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process among those of its job; the defaults are those of a process alone.

    rank: its number of `size`; local_rank, local_size: the same among those of its machine.
    restart: how often torchrun has started the job again; restarts: how often it would.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restart: int = 0
    restarts: int = 0


def launch() -> Launch:
    """As the environment says: RANK, WORLD_SIZE and so on, which torchrun sets."""
    read = {
        name: int(os.environ.get(variable, "") or default)
        for name, variable, default in (
            ("rank", "RANK", 0),
            ("size", "WORLD_SIZE", 1),
            ("local_rank", "LOCAL_RANK", 0),
            ("local_size", "LOCAL_WORLD_SIZE", 1),
            ("restart", "TORCHELASTIC_RESTART_COUNT", 0),
            ("restarts", "TORCHELASTIC_MAX_RESTARTS", 0),
        )
    }
    return Launch(**read)


def cores() -> int:
    """How many cores this process may use: its share, where its machine has several of the job."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // launch().local_size)
