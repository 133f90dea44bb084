"""SIGTERM and SIGINT: the first one ends a program, or asks a training to end in good order; a second one ends the
process at once.

Imports nothing but the standard library, so that signals are handled before torch is loaded.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# `timeout`, `make` and batch systems send a signal to a process and then to its group, which it is in; these two, some
# microseconds apart, are one request.
APART = 30  # seconds by which the processes of a job may begin one after another
OUT_OF_TIME = 75  # exit status: EX_TEMPFAIL of sysexits.h, to be tried again
SAME_REQUEST = 0.2  # seconds


class Stopped(BaseException):  # like KeyboardInterrupt: no error, and no `except Exception` takes it for one
    """The program was asked to end, and does. status: its exit status; the text, if any, is for the user."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class Stop:
    """What signals have asked for so far. state, advice: what `Stopped` says beside the signal's name, where a signal
    arrives before `finish_steps`."""

    def __init__(self, state: str = "", advice: str = "run the same command again") -> None:
        self.state = state
        self.advice = advice
        self.received: signal.Signals | None = None
        self.imports = imports(sys._getframe())
        self._when = 0.0
        self._begun = time.monotonic()
        self.most_seconds = math.inf  # since this object was made, after which the program is to end
        self.steps = False

    def __call__(self) -> bool:
        """Whether a signal has come, or the time is over."""
        return self.received is not None or self._late()

    def _late(self, early: float = 0.0) -> bool:
        return time.monotonic() - self._begun > self.most_seconds - early

    @property
    def status(self) -> int:
        """The exit status by which shells know the signal: 128 and its number; OUT_OF_TIME; 0 for neither."""
        return 128 + self.received if self.received else OUT_OF_TIME if self._late(APART) else 0

    def stopped(self, state: str) -> Stopped:
        """The exception that ends the program, with the state that it is left in. Where no signal has come, another
        process of the job had one."""
        by = self.received.name if self.received else "a signal to another process"
        why = "ended by runtime.max_hours" if self.status == OUT_OF_TIME else f"interrupted by {by}"
        details = f": {state}. To resume: {self.advice}" if state else "."
        return Stopped(self.status or 128 + signal.SIGTERM, f"{why}{details}")

    def finish_steps(self) -> None:
        """From now on a signal is noted, and whoever calls this object acts on it; until now it raises Stopped. So does
        this call where one has come, and its exception was lost in code that lets none out."""
        self.steps = True
        if self.received:
            raise self.stopped(self.state)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Of the signals' handlers the one there is."""
        now = time.monotonic()
        if self.received:
            if now - self._when > SAME_REQUEST:
                os._exit(128 + number)  # nothing is waited for, nothing is written
            return
        self.received, self._when = signal.Signals(number), now
        if not self.steps:
            stopped = self.stopped(self.state)
            if imports(frame) > self.imports:  # C code that imports may lose the exception, or end the process
                os.write(2, f"fastrcnn: {stopped}\n".encode(errors="backslashreplace"))
                os._exit(stopped.status)
            raise stopped
        # Not by `logging` or `print`: either may be what the signal has interrupted.
        text = f"{self.received.name}: ending after this step; once more ends at once, without saving\n"
        os.write(2, text.encode())


def imports(frame: FrameType | None) -> int:
    """How many of the frames, from this one out, are Python's import of a module."""
    found = 0
    while frame is not None:
        found += frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        frame = frame.f_back
    return found


@contextmanager
def handle_signals(state: str = "", to_the_end: bool = False) -> Iterator[Stop]:
    """While the body runs, SIGTERM and SIGINT do what the Stop says that it is given. In another thread than the main
    one, where Python has no handlers, nothing changes. to_the_end: the program ends after the body; a signal that comes
    then ends it at once."""
    stop = Stop(state)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in SIGNALS}
    try:
        yield stop
    except Exception:
        if stop.received and not stop.steps:  # the exception of the signal was lost, and led to this one
            raise stop.stopped(stop.state) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, (lambda n, _: os._exit(128 + n)) if to_the_end else handler)
