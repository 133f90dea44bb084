"""Progress output of long jobs: a bar with the remaining time on a terminal, and a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from fastrcnn.parallel.launch import launch

T = TypeVar("T")
_silent = False


def be_silent() -> None:
    """Turn off the progress output of this process."""
    global _silent
    _silent = True


def duration(seconds: float) -> str:
    """Format a duration, for example as "40 s", "25 min" or "2 h 10 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def silent() -> bool:
    """Return whether progress output is off: after a call of be_silent, and in every process of a job but the first."""
    return _silent or launch().rank > 0


def progress(items: Iterable[T], total: int, what: str, unit: str = "image", every: float = 10.0) -> Iterator[T]:
    """Yield the items, and print to stderr the number of completed items and the estimated remaining time.

    total: the number of items. what: the activity. unit: what one item is called, in the singular. every: seconds
    between two lines if stderr is not a terminal. On a terminal, a progress bar is shown.
    """
    if silent():
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit=unit, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every or (done == total and now - start >= every):
            left = (now - start) / done * (total - done)
            print(f"{what}: {done}/{total} {unit}s, {left:.0f} s left", file=sys.stderr, flush=True)
            last = now
