"""Start worker processes and prepare them. This module imports neither torch nor OpenCV."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TypeVar

from fastrcnn.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
UNGUARDED = 113  # exit status of a worker that `refuse_import` stopped
STARTING = "FASTRCNN_STARTING"  # environment variable, set in workers whose parent reports why they ended
Item = TypeVar("Item")
Result = TypeVar("Result")


def refuse_import() -> None:
    """Exit if this worker process is still importing the script that started it.

    A process that is not forked imports that script first. If the script lacks `if __name__ == "__main__":`, the import
    would repeat the script's work and start more processes.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # Python's own check uses this attribute too
        if STARTING in os.environ:
            os._exit(UNGUARDED)  # SystemExit would become exit status 1 in a process of a fork server
        raise SystemExit(missing_guard())


def missing_guard() -> str:
    """Return the error message for a script that `refuse_import` stopped."""
    script = getattr(sys.modules.get("__main__"), "__file__", None) or "the script"
    return (
        f"{script}: cannot start worker processes, because each of them imports the script and would repeat its work. "
        'Move the work into a function and call it below `if __name__ == "__main__":`.'
    )


@contextmanager
def signals_later() -> Iterator[None]:
    """Delay SIGTERM and SIGINT until the `with` block ends.

    Processes that are started in it keep both signals blocked until they call `prepare`. Otherwise, a signal during
    their imports would print a traceback.
    """
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    # Blocking is not enough: another thread can receive the signal, and Python runs the handler in the main thread.
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in SIGNALS} if main else {}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


@contextmanager
def start_method(method: str) -> Iterator[None]:
    """Delay signals while the `with` block starts processes by `method`, and mark these processes with STARTING."""
    if method != "fork":
        resource_tracker.ensure_running()  # otherwise it starts in the body and unblocks the signals
    with signals_later():
        os.environ[STARTING] = "1"
        try:
            yield
        finally:
            os.environ.pop(STARTING, None)


def prepare(ignored: tuple[signal.Signals, ...] = (signal.SIGINT,)) -> None:
    """Prepare this worker process: ignore some signals, and exit as soon as the parent ends.

    ignored: signals that the parent handles. SIGTERM is not one of the defaults, because pools end processes with it.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ.pop(STARTING, None)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)  # a killed parent cannot end its workers, and nothing needs their results

    threading.Thread(target=leave_with_parent, daemon=True).start()


class Worker(SpawnProcess):
    """A spawned process that SIGTERM and SIGINT cannot interrupt until it calls `prepare`."""

    def start(self) -> None:
        with start_method("spawn"):
            super().start()


class Workers(SpawnContext):
    """A multiprocessing context for a pool. `started` contains the processes that it started."""

    def __init__(self) -> None:
        self.started: list[Worker] = []

    def Process(self, *arguments: object, **options: object) -> Worker:  # type: ignore[override]  # noqa: N802
        self.started.append(Worker(*arguments, **options))  # type: ignore[arg-type]
        return self.started[-1]


def map_in_order(
    executor: ProcessPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item], chunk: int = 1
) -> Iterator[Result]:
    """Yield function(item) for each item, in order. Each task of the executor processes `chunk` items.

    Unlike executor.map, this does not cancel tasks if the caller stops early. In a pool whose workers died, Python 3.11
    prints a traceback for each cancelled task that it finds. `pool` drops the tasks that have not begun.
    """
    tasks = [executor.submit(_map, function, items[n : n + chunk]) for n in range(0, len(items), chunk)]
    tasks.reverse()
    while tasks:
        yield from tasks.pop().result()  # pop: the results are not kept until the end


def _map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


@contextmanager
def pool(workers: int, start: Callable[[], None], died: str) -> Iterator[ProcessPoolExecutor]:
    """Run a pool of `workers` processes in the `with` block. Each process first calls `start`, which calls `prepare`.

    The processes are spawned, because forking can hang if the caller has threads, such as torch's. They are killed if
    the block raises an exception. Raises UserError if a process ends unexpectedly. The message is `died`, or that of
    `missing_guard` if the calling script lacks `if __name__ == "__main__":`.
    """
    context = Workers()
    executor = ProcessPoolExecutor(workers, context, start)
    try:
        yield executor
    except BrokenProcessPool:
        executor.shutdown(cancel_futures=True)
        raise UserError(missing_guard() if any(w.exitcode == UNGUARDED for w in context.started) else died) from None
    except BaseException:
        for worker in context.started:
            if worker.pid is not None:
                worker.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
