"""What the handler of SIGTERM and SIGINT does, without a training: see test_survival.py for one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from limits import PATIENCE

from fastrcnn.parallel import signals
from fastrcnn.parallel.signals import Stopped, handle_signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_before_the_steps_a_signal_ends_what_runs_and_says_so(number: signal.Signals, status: int) -> None:
    with pytest.raises(Stopped) as stopped, handle_signals() as stop:  # noqa: PT012 - the handler is there inside only
        stop.state = "nothing was done"
        stop.advice = "do something"
        os.kill(os.getpid(), number)
        pytest.fail("it went on")
    assert stopped.value.status == status
    assert str(stopped.value) == f"interrupted by {number.name}: nothing was done. To resume: do something"
    assert not isinstance(stopped.value, Exception)  # so that no reader takes it for a fault in a file


def test_later_it_is_noted_and_nothing_is_cut_short(capfd: pytest.CaptureFixture[str]) -> None:
    with handle_signals() as stop:
        stop.finish_steps()
        assert not stop()
        assert stop.status == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.status == 143
    assert capfd.readouterr().err == (
        "SIGTERM: training ends after this step. Another signal ends it immediately, without saving.\n"
    )


def test_one_whose_exception_was_lost_counts_when_the_steps_begin() -> None:
    with handle_signals() as stop:
        with contextlib.suppress(Stopped):  # as in a callback from C, which lets no exception out
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            stop.finish_steps()


def test_handlers_are_as_they_were_afterwards() -> None:
    before = [signal.getsignal(n) for n in signals.SIGNALS]
    with handle_signals():
        assert [signal.getsignal(n) for n in signals.SIGNALS] != before
        with handle_signals() as inner:
            assert signal.getsignal(signal.SIGTERM) == inner.handle
    assert [signal.getsignal(n) for n in signals.SIGNALS] == before


def test_a_thread_that_can_have_no_handlers_does_without() -> None:
    found = []

    def work() -> None:
        with handle_signals() as stop:
            found.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


SECOND = """
import os, signal, types
from fastrcnn.parallel import signals
now = 0.0
signals.time = types.SimpleNamespace(monotonic=lambda: now)
class Slow:
    def __del__(self): print("tidied up")
slow = Slow()
with signals.handle_signals() as stop:
    stop.finish_steps()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does, to the process and its group
        print("goes on", flush=True)
        now = 2 * signals.SAME_REQUEST
        os.kill(os.getpid(), signal.SIGINT)
        print("never")
    finally:
        print("never")
"""


def test_a_second_signal_ends_the_process_at_once_and_one_that_is_sent_twice_is_one() -> None:
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 130
    assert done.stdout == "goes on\n"
    assert "Traceback" not in done.stderr


IMPORTING = """
import os, signal, sys
from fastrcnn.cli import main
def module(verb):
    import importer
import fastrcnn.cli
fastrcnn.cli.importlib.import_module = module
sys.exit(main(["check"]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_during_an_import_that_would_lose_its_exception_a_signal_ends_the_program(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    (tmp_path / "importer.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {number:d})\nexcept BaseException:\n    print('lost')\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == f"fastrcnn: interrupted by {number.name}.\n"


def test_an_error_that_follows_from_a_lost_exception_is_the_signal() -> None:
    with pytest.raises(Stopped) as stopped, handle_signals():  # noqa: PT012 - the handler is there inside only
        with contextlib.suppress(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        raise AttributeError("module 'numpy' has no attribute 'matrix'")
    assert stopped.value.status == 130


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(AttributeError), handle_signals():
        raise AttributeError
