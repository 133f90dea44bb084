"""Cache the results of reading files and folders until they change."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

FRESH = 3_000_000_000  # nanoseconds; longer than the resolution of modification times on any file system

P = ParamSpec("P")
T = TypeVar("T")
Read = Callable[Concatenate[Path, P], T]


def read_once(most: int, fresh: int = FRESH) -> Callable[[Read[P, T]], Read[P, T]]:
    """Return a decorator that caches the `most` last used results of a function whose first argument is a path.

    A result is valid until the modification time or size of the file or folder changes. fresh: nanoseconds after a
    modification during which results are not cached. Calls with keyword arguments are never cached.
    """

    def decorate(read: Read[P, T]) -> Read[P, T]:
        @functools.lru_cache(maxsize=most)
        def kept(path: Path, version: tuple[int, int], *more: object) -> T:
            return read(path, *more)  # type: ignore[call-arg,arg-type]

        @functools.wraps(read)
        def current(path: Path, *more: P.args, **named: P.kwargs) -> T:
            try:
                stat = path.stat()
            except OSError:
                return read(path, *more, **named)
            if named or abs(time.time_ns() - stat.st_mtime_ns) < fresh:
                return read(path, *more, **named)
            return kept(path, (stat.st_mtime_ns, stat.st_size), *more)

        return current

    return decorate
