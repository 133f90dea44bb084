"""Work that threads do ahead of the caller, in order and bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fastrcnn.parallel.launch import cores

AT_ONCE = 8  # threads, at most
Item = TypeVar("Item")
Result = TypeVar("Result")


def threads() -> int:
    """How many threads work ahead: one a core, up to AT_ONCE."""
    return min(cores(), AT_ONCE)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Generator[Future[Result], None, None]:
    """The future of function(item) for each of the items, in their order.

    Threads compute up to `most` results beyond the last one that the caller asked for. The items are taken in the
    caller's thread. When the generator is closed, what has not begun is cancelled, and what has is waited for.
    """
    executor = ThreadPoolExecutor(threads(), thread_name_prefix="ahead")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > most:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        executor.shutdown(cancel_futures=True)
