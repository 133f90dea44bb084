"""Limits that a busy machine does not change: work is counted in calls and bytes; a clock only ends what hangs."""

from __future__ import annotations

import contextlib
import cProfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PATIENCE = 900.0  # seconds after which a process that a test waits for counts as hung


def a_second_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the clock on: TensorBoard reads its files in the order of their names, which hold the second."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1.1)


def calls(work: Callable[[], Any]) -> int:
    """How many functions the work calls in this thread, of Python and of C."""
    profile = cProfile.Profile()
    with profile:
        work()
    return sum(entry.callcount for entry in profile.getstats())


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond `size` bytes, which fails with "File too large"; not on Windows."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def in_bounds(most_calls: int = 500_000, most_bytes: int = 64_000_000) -> Iterator[None]:
    """Fails where the body, which reads a few kilobytes, calls more functions or holds more memory at once.

    Tracing memory and counting calls make the body several times as slow, so a body must not read a clock.
    """
    profile = cProfile.Profile()
    traced = tracemalloc.is_tracing()
    if not traced:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with profile:
            yield
        assert tracemalloc.get_traced_memory()[1] - before < most_bytes
        assert sum(entry.callcount for entry in profile.getstats()) < most_calls
    finally:
        if not traced:
            tracemalloc.stop()


class Compared(str):
    """A text whose comparisons `calls` counts, and which stays one where a reader strips it."""

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)

    __hash__ = str.__hash__

    def __str__(self) -> str:
        return self

    def strip(self, chars: str | None = None) -> str:
        return self
