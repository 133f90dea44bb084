"""Run work in threads ahead of the caller, in order and in groups of bounded size."""

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
    """Return the number of threads: one per core, up to AT_ONCE."""
    return min(cores(), AT_ONCE)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], size: int
) -> Generator[Future[Result], None, None]:
    """Yield a future of function(item) for each item, in order.

    The caller's thread takes the items in groups of `size`. It submits the next group before it yields the futures of
    the current one, so at most 2 `size` items are in use. All items of a group run concurrently: if the caller itself
    computes on all cores, work that is spread over them delays it less than the same work on one core would. Closing
    the generator cancels pending work and waits for running work.
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
