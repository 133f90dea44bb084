"""Commands in processes of their own that need not import torch: each is forked from one that has.

As a program: reads a line of JSON for each command, and answers with a line. For processes that tests signal and kill.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


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
    ) -> Forked:
        """Starts a command, what it says goes to the file `said`; `file_size`: no file may grow beyond it."""
        question = {"arguments": list(arguments), "said": str(said), "file_size": file_size}
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
        self.process.wait(60)


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
    from fastrcnn.cli import main

    sys.exit(main(question["arguments"]))


if __name__ == "__main__":
    import torch.utils.tensorboard  # noqa: F401

    import fastrcnn.cli.train
    import fastrcnn.data.loader
    import fastrcnn.evaluation.evaluate
    import fastrcnn.training.loop  # noqa: F401

    serve()
