"""Files and folders that are read once for as long as they do not change."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

FRESH = 3_000_000_000  # nanoseconds after which a date tells that a file was changed, on any file system

P = ParamSpec("P")
T = TypeVar("T")
Read = Callable[Concatenate[Path, P], T]


def read_once(most: int, fresh: int = FRESH) -> Callable[[Read[P, T]], Read[P, T]]:
    """Decorator of a function of a path: its results, the last `most`, are kept until the file's date or size changes.

    fresh: nanoseconds for which a file is read again each time after a change.
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
