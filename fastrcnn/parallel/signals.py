"""Handling of SIGTERM and SIGINT.

The first signal ends the program. During training, the program ends after the current step. A second signal ends the
process immediately. This module imports only the standard library, so that signals are handled before torch is
imported.
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
APART = 30  # seconds; the processes of a job start at most this long after each other
OUT_OF_TIME = 75  # exit status EX_TEMPFAIL of sysexits.h (temporary failure, try again)
# `timeout`, `make` and batch systems send a signal to a process and again to its process group. The process receives
# both within microseconds, so they are treated as one request.
SAME_REQUEST = 0.2  # seconds


class Stopped(BaseException):  # not an Exception, like KeyboardInterrupt: `except Exception` must not catch it
    """Raised to end the program after a signal or at its time limit. text: a message for the user."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class Stop:
    """Record whether a signal has arrived or the time limit has passed. Calling the object returns whether one has.

    state: the state of the run, for the message if a signal arrives before `finish_steps` is called. advice: how to
    resume the run, for all messages.
    """

    def __init__(self, state: str = "", advice: str = "run the same command again") -> None:
        self.state = state
        self.advice = advice
        self.received: signal.Signals | None = None
        self.imports = imports(sys._getframe())
        self._when = 0.0
        self._begun = time.monotonic()
        self.most_seconds = math.inf  # time limit of the program, from the creation of this object
        self.steps = False

    def __call__(self) -> bool:
        """Return whether a signal has arrived or the time limit has passed."""
        return self.received is not None or self._late()

    def _late(self, early: float = 0.0) -> bool:
        return time.monotonic() - self._begun > self.most_seconds - early

    @property
    def status(self) -> int:
        """The exit status: 128 plus the signal's number, OUT_OF_TIME from APART seconds before the limit, or 0."""
        return 128 + self.received if self.received else OUT_OF_TIME if self._late(APART) else 0

    def stopped(self, state: str) -> Stopped:
        """Return the exception that ends the program. state: the state of the run when it ends.

        If neither a signal nor the time limit ended this process, the message says that another one got a signal.
        """
        by = self.received.name if self.received else "a signal to another process"
        why = "ended by runtime.max_hours" if self.status == OUT_OF_TIME else f"interrupted by {by}"
        details = f": {state}. To resume: {self.advice}" if state else "."
        return Stopped(self.status or 128 + signal.SIGTERM, f"{why}{details}")

    def finish_steps(self) -> None:
        """From now on, record signals instead of raising Stopped. The training loop checks for them after each step.

        Raises Stopped if a signal has already arrived, because code that catches all exceptions can lose the first one.
        """
        self.steps = True
        if self.received:
            raise self.stopped(self.state)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise Stopped at the first signal, or record it after `finish_steps`. At the second, end the process."""
        now = time.monotonic()
        if self.received:
            if now - self._when > SAME_REQUEST:
                os._exit(128 + number)  # without any cleanup
            return
        self.received, self._when = signal.Signals(number), now
        if not self.steps:
            stopped = self.stopped(self.state)
            if imports(frame) > self.imports:  # C code that imports can lose the exception or crash
                os.write(2, f"fastrcnn: {stopped}\n".encode(errors="backslashreplace"))
                os._exit(stopped.status)
            raise stopped
        # `logging` and `print` are not safe here: the signal may have interrupted one of them.
        name = self.received.name
        text = f"{name}: training ends after this step. Another signal ends it immediately, without saving.\n"
        os.write(2, text.encode())


def imports(frame: FrameType | None) -> int:
    """Return the number of frames, from `frame` outwards, in which Python imports a module."""
    found = 0
    while frame is not None:
        found += frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        frame = frame.f_back
    return found


@contextmanager
def handle_signals(state: str = "", to_the_end: bool = False) -> Iterator[Stop]:
    """Handle SIGTERM and SIGINT during the `with` block, and yield the `Stop` that records them.

    Outside the main thread, no handler is installed, because Python does not allow it. state: see Stop.
    to_the_end: whether the program exits after the `with` block. If so, a later signal ends the program immediately.
    """
    stop = Stop(state)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in SIGNALS}
    try:
        yield stop
    except Exception:
        if stop.received and not stop.steps:  # Stopped was caught and caused this exception
            raise stop.stopped(stop.state) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, (lambda n, _: os._exit(128 + n)) if to_the_end else handler)
