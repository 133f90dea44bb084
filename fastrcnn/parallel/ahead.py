"""Work that threads do ahead of their caller, in order and bounded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from fastrcnn.parallel.launch import cores

AT_ONCE = 8  # threads, at most
Item = TypeVar("Item")
Result = TypeVar("Result")


def threads() -> int:
    """How many threads work ahead: one a core, up to AT_ONCE."""
    return min(cores(), AT_ONCE)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], size: int
) -> Generator[Future[Result], None, None]:
    """The future of function(item) for each of the items, in their order.

    The caller's thread takes `size` items at a time, one such group ahead of the group whose futures it is given; so
    2 `size` items are in use at most. A group is computed at once: where the caller itself computes on all cores, work
    spread over these delays it less than the same work on one core, for which its other threads would wait. When the
    generator is closed, what has not begun is cancelled, and what has is waited for.
    """
    executor = ThreadPoolExecutor(threads(), thread_name_prefix="ahead")
    group: list[Future[Result]] = []
    try:
        for chunk in chunks_of(items, size):
            following = [executor.submit(function, item) for item in chunk]
            yield from group
            group = following
        yield from group
    finally:
        executor.shutdown(cancel_futures=True)


def chunks_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`; the last one may be shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
