"""SIGTERM and SIGINT: the first one asks a training to end in good order, a second one ends the process at once.

Imports nothing but the standard library, so that signals are heeded before torch is loaded.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# `timeout`, `make` and batch systems send a signal to a process and then to its group, which it is in; these two, some
# microseconds apart, are one request.
SAME_REQUEST = 0.2  # seconds


class Stopped(BaseException):  # like KeyboardInterrupt: no error, and no `except Exception` takes it for one
    """The program was asked to end, and does. status: its exit status; the text, if any, is for the user."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class Stop:
    """What signals have asked for so far.

    state, advice: what `Stopped` says beside the signal's name, where one arrives before `finish_steps`.
    """

    def __init__(self) -> None:
        self.state = "nothing was trained yet"
        self.advice = "start it again by the same command"
        self.received: signal.Signals | None = None
        self._when = 0.0
        self._steps = False

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    @property
    def status(self) -> int:
        """The exit status by which shells know the signal: 128 and its number; 0 where there was none."""
        return 128 + self.received if self.received else 0

    def stopped(self, state: str) -> Stopped:
        """The exception that ends the program, with the state that it is left in. Where no signal has come, another
        process of the job had one."""
        by = self.received.name if self.received else "a signal to another process"
        return Stopped(self.status or 128 + signal.SIGTERM, f"stopped by {by}: {state}. To go on: {self.advice}")

    def finish_steps(self) -> None:
        """From now on a signal is noted, and whoever calls this object acts on it; until now it raises Stopped.

        Raises Stopped where one has come, and its exception was lost in code that lets none out.
        """
        self._steps = True
        if self.received:
            raise self.stopped(self.state)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Of the signals' handlers the one there is."""
        now = time.monotonic()
        if self.received:
            if now - self._when > SAME_REQUEST:
                os._exit(128 + number)  # nothing is waited for, nothing is written
            return
        self.received, self._when = signal.Signals(number), now
        if not self._steps:
            raise self.stopped(self.state)
        # Not by `logging` or `print`: either may be what the signal has interrupted.
        text = f"{self.received.name}: ending after this step; once more ends at once, without saving\n"
        os.write(2, text.encode())


@contextmanager
def heeded() -> Iterator[Stop]:
    """While the body runs, SIGTERM and SIGINT do what the Stop says that it is given. In another thread than the
    main one, where Python has no handlers, nothing changes."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
