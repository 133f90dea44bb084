"""Commands in processes of their own that need not import torch: each is forked from one that has.

As a program: reads a line of JSON for each command, and answers with a line. For processes that tests signal and kill.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from limits import PATIENCE


class Forked:
    """A command that runs, or has; what subprocess.Popen has."""

    def __init__(self, source: Source, pid: int) -> None:
        self.source = source
        self.pid = pid
        self.status: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.status is None:
            self.status = self.source.ask({"pid": self.pid})
        return self.status

    def held(self) -> bool:
        """Whether it waits at the call where `hold` stops it."""
        return is_held(self.pid)

    def release(self) -> None:
        """Lets a process run that was held."""
        os.kill(self.pid, signal.SIGCONT)


def is_held(pid: int) -> bool:
    """Whether a process is stopped, as `hold` and SIGSTOP do."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(what: Callable[[], object], process: Forked | subprocess.Popen | None = None) -> None:
    """Waits for it; fails where the process has ended without it, or nothing comes in a very long time."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "waited for too long"
        ended = process is not None and process.poll() is not None
        assert what() or not ended, "the process ended"
        time.sleep(0.002)


class Source:
    """The process that they are forked from."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=place,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started: list[Forked] = []

    def ask(self, question: dict) -> int | None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        arguments: Sequence[str],
        said: Path,
        file_size: int | None = None,
        environment: dict[str, str] | None = None,
        hold: tuple[str, int] | None = None,
        then: str = "goes on",
    ) -> Forked:
        """Starts a command, what it says goes to the file `said`; `file_size`: no file may grow beyond it.

        hold: ("module:function", n); the process stops itself where it calls the function for the nth time, so that a
        test can do something at that moment, however slow the machine is. then: what it does once it is released: it
        `goes on`, `hears` a signal before it goes on, or `hangs`.
        """
        question = {
            "arguments": list(arguments),
            "said": str(said),
            "file_size": file_size,
            "hold": hold and [*hold, then],
        }
        pid = self.ask(question | {"environment": environment or {}})
        assert pid
        self.started.append(Forked(self, pid))
        return self.started[-1]

    def close(self) -> None:
        """Ends it, and what is left of its commands."""
        for command in self.started:
            if command.poll() is None:
                os.kill(command.pid, signal.SIGKILL)
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(PATIENCE)


def serve() -> None:
    """Answers each line of stdin: starts a command and says its pid, or says what became of one."""
    for line in sys.stdin:
        question = json.loads(line)
        answer: int | None
        if "pid" in question:
            pid, status = os.waitpid(question["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return run(question)
        print(json.dumps(answer), flush=True)
    return None


def run(question: dict) -> None:
    """The command, in its own process."""
    import resource

    said = os.open(question["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(here, there)
    os.environ.update(question["environment"])
    if question["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (question["file_size"],) * 2)
    if question["hold"]:
        hold(*question["hold"])
    from fastrcnn.cli import main

    sys.exit(main(question["arguments"]))


def hold(where: str, call: int, then: str = "goes on") -> None:
    """Makes this process stop itself where it calls the function for the nth time; then: see `start`."""
    module, _, dotted = where.partition(":")
    owner = importlib.import_module(module)
    *outer, name = dotted.split(".")
    for part in outer:
        owner = getattr(owner, part)
    function, number = getattr(owner, name), itertools.count(1)

    def held(*arguments: object, **keywords: object) -> object:
        if next(number) == call:
            heard, told = os.pipe()
            os.set_blocking(told, False)
            before = signal.set_wakeup_fd(told)  # whichever thread the system gives a signal to
            os.kill(os.getpid(), signal.SIGSTOP)
            if then == "hears":
                os.read(heard, 1)
            signal.set_wakeup_fd(before)
            while then == "hangs":
                time.sleep(0.01)  # not signal.pause(): a signal just before it, or in another thread, would not end it
        return function(*arguments, **keywords)

    setattr(owner, name, held)


# What a training imports late: torch's optimisers import torch._dynamo, which takes longer than a short training.
LATE = ("torch._dynamo", "torch.utils.tensorboard", "torchvision", "fastrcnn.cli.train", "fastrcnn.data.loader")
LATE += ("fastrcnn.inference.evaluate", "fastrcnn.report.report", "fastrcnn.build.run")

if __name__ == "__main__":
    for late in LATE:
        importlib.import_module(late)
    from fastrcnn.config.compose import compose

    compose("train", ["experiment=demo"])
    serve()
