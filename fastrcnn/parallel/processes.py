"""Starting processes that work for this one, and what each of them does first. Imports neither torch nor OpenCV."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess

from fastrcnn.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
UNGUARDED = 113  # exit status of a process that stopped importing the script that started it
STARTING = "FASTRCNN_STARTING"  # environment variable of processes whose starter reports why they stopped


def refuse_import() -> None:
    """Ends a process that is still importing the script that started it, as one that is not forked does first. Without
    `if __name__ == "__main__":` there, the import would do the same work again, and start processes again."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as Python's own check does
        if STARTING in os.environ:
            os._exit(UNGUARDED)  # a fork server's process would turn SystemExit into the status 1
        raise SystemExit(missing_guard())


def missing_guard() -> str:
    """What to do about a script that `refuse_import` stopped."""
    script = getattr(sys.modules.get("__main__"), "__file__", None) or "the script"
    return (
        f"{script}: cannot start processes, because each of them imports the script and would do its work again. Put "
        'the work into a function, and call that below `if __name__ == "__main__":`.'
    )


@contextmanager
def signals_later() -> Iterator[None]:
    """Delays SIGTERM and SIGINT until the body is over. Processes that start in the body are deaf to both until they
    call `prepare`: a traceback from an unfinished import would help nobody."""
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    # Other threads may still receive what this one blocks, and Python's handlers run here all the same.
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
    """While processes start by a `method` of multiprocessing: no signal interrupts that, see signals_later."""
    if method != "fork":
        resource_tracker.ensure_running()  # it starts with the first of them, and would unblock the signals
    with signals_later():
        os.environ[STARTING] = "1"
        try:
            yield
        finally:
            os.environ.pop(STARTING, None)


def prepare(ignored: tuple[signal.Signals, ...] = (signal.SIGINT,)) -> None:
    """Prepares a process that works for its parent: it ignores signals that the parent handles, and ends when the
    parent does, however that ended. Pools end their processes by SIGTERM."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ.pop(STARTING, None)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)  # a killed parent cannot end us, and nobody waits for our results

    threading.Thread(target=leave_with_parent, daemon=True).start()


class Worker(SpawnProcess):
    """A spawned process that no signal interrupts before it is prepared."""

    def start(self) -> None:
        with start_method("spawn"):
            super().start()


class Workers(SpawnContext):
    """A context for a pool that keeps the processes it started."""

    def __init__(self) -> None:
        self.started: list[Worker] = []

    def Process(self, *arguments: object, **options: object) -> Worker:  # type: ignore[override]  # noqa: N802
        self.started.append(Worker(*arguments, **options))  # type: ignore[arg-type]
        return self.started[-1]


@contextmanager
def pool(workers: int, start: Callable[[], None], died: str) -> Iterator[ProcessPoolExecutor]:
    """A pool of `workers` spawned processes, each of which calls `start` first, which should call `prepare`. They are
    not forked: the caller may have threads, torch's for one, and a fork of those can hang.

    Where the body ends early, the processes are killed. Raises UserError where one ends by itself: `died`, or that the
    script that called us lacks its guard.
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
