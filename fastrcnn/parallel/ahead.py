"""Apply a function to items in background threads, before the caller needs the results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from fastrcnn.parallel.launch import cores

AT_ONCE = 8  # maximum number of threads
Item = TypeVar("Item")
Result = TypeVar("Result")


def threads() -> int:
    """Return the number of threads to use: one per available core, but at most AT_ONCE."""
    return min(cores(), AT_ONCE)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], size: int
) -> Generator[Future[Result], None, None]:
    """Yield a future of function(item) for each item, in order.

    The items are read in the caller's thread, in groups of `size`. Each group is submitted before the futures of the
    previous group are yielded, so at most 2 * size items are in use. The items of a group are processed concurrently,
    because a caller that computes on all cores is delayed less by work on all cores than by the same work on one core.
    Closing the generator cancels calls that have not started, and waits for running calls.
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
    """Yield the items in lists of `size`; the last list can be shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
