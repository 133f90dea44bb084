"""Limits that hold for a reader whatever comes in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


@contextlib.contextmanager
def in_time(seconds: float = 2.0) -> Iterator[None]:
    """Fails where more time of the processor is used; other programs on the machine do not count."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds
