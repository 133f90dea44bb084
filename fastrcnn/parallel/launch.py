"""What torchrun, or whatever else started the processes of one job, has told this one. Imports nothing of torch."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process among those of its job; the defaults are those of a process alone.

    rank: its number of `size`; local_rank, local_size: the same among those of its machine.
    restarts: how often torchrun would start the job again.
    kept_store: whether the store in which the processes find each other is torchrun's own, and so still has what was
        written before a restart; attempt: then the number of the restart, else 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    kept_store: bool = False
    attempt: int = 0


def launch() -> Launch:
    """As the environment says: RANK, WORLD_SIZE and so on, which torchrun sets."""
    read = {
        name: int(os.environ.get(variable, "") or default)
        for name, variable, default in (
            ("rank", "RANK", 0),
            ("size", "WORLD_SIZE", 1),
            ("local_rank", "LOCAL_RANK", 0),
            ("local_size", "LOCAL_WORLD_SIZE", 1),
            ("restarts", "TORCHELASTIC_MAX_RESTARTS", 0),
            ("attempt", "TORCHELASTIC_RESTART_COUNT", 0),
        )
    }
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(**read | {"attempt": read["attempt"] if kept else 0}, kept_store=kept)


def cores() -> int:
    """How many cores this process may use: its share, where its machine has several of the job."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // launch().local_size)
