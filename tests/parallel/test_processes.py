"""Processes that work for another one: scripts without a guard, and signals while they start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from limits import PATIENCE

from fastrcnn.parallel import processes

REASON = 'call it below `if __name__ == "__main__":`'
SCRIPTS = {
    "check": """
from pathlib import Path
from fastrcnn.audit.check import Settings, Task, read_all
tasks = [Task("train", "trainval", Path("none"), str(i), None) for i in range(40)]
read_all(tasks, Settings(), workers=2)
""",
    "proposals": """
from pathlib import Path
from fastrcnn.data.frames import without_objects
from fastrcnn.proposals.generate import propose_all
propose_all([without_objects(n, Path(f"{n}.jpg")) for n in "ab"], "x.proposals", workers=2)
""",
    "loader, spawn": """
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
from fastrcnn.data.loader import Loader, _options
list(Loader(list(range(9)), **_options(2, False)))
""",
    "loader, fork server": """
import multiprocessing
multiprocessing.set_start_method("forkserver", force=True)
from fastrcnn.data.loader import Loader, _options
list(Loader(list(range(100_000)), **_options(2, False)))
""",
    "command line": """
from fastrcnn.cli import main
import sys
sys.exit(main(["propose", "source=pictures", "output=x.proposals", "workers=2"]))
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_a_guard_is_told_so_and_ends(tmp_path: Path, name: str) -> None:
    from fastrcnn.data.demo import write_demo

    if name == "command line":
        root = write_demo(tmp_path / "demo", train=3, val=1, test=1)
        (root / "JPEGImages").rename(tmp_path / "pictures")
    (tmp_path / "script.py").write_text(SCRIPTS[name], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert f"{tmp_path / 'script.py'}: cannot start worker processes" in done.stderr
    assert done.stderr.count(REASON) == 1
    assert "memory" not in done.stderr


def test_a_process_that_another_program_started_gives_the_reason_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.refuse_import()
    monkeypatch.setattr(processes.multiprocessing.current_process(), "_inheriting", True, raising=False)
    monkeypatch.delenv(processes.STARTING, raising=False)
    with pytest.raises(SystemExit, match="cannot start worker processes"):
        processes.refuse_import()


def test_signals_wait_for_the_end_of_the_body_and_reach_no_process_that_starts_in_it() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        with processes.signals_later():
            os.kill(os.getpid(), signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert came == []
            status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
        assert set(came) == {signal.SIGINT}
    finally:
        signal.signal(signal.SIGINT, before)
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert blocked & 1 << number - 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


def test_a_pool_whose_body_ends_early_leaves_no_process() -> None:
    with pytest.raises(KeyboardInterrupt), processes.pool(1, processes.prepare, "died") as executor:  # noqa: PT012
        pid = executor.submit(os.getpid).result()
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_of_a_pool_that_dies_is_the_error_that_was_given() -> None:
    from fastrcnn.errors import UserError

    with pytest.raises(UserError, match=r"^it died$"), processes.pool(1, processes.prepare, "it died") as executor:
        executor.submit(os._exit, 3).result()


def test_workers_that_die_after_an_early_end_print_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[object] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    with pytest.raises(KeyboardInterrupt), processes.pool(1, processes.prepare, "died") as executor:  # noqa: PT012
        results = processes.map_in_order(executor, time.sleep, [0, *[PATIENCE] * 20])
        next(results)
        results.close()  # type: ignore[attr-defined]
        for worker in multiprocessing.active_children():
            worker.kill()
        executor._executor_manager_thread.join(PATIENCE)  # type: ignore[attr-defined]  # it marks all tasks as failed
        raise KeyboardInterrupt
    assert errors == []


def test_items_are_mapped_in_order_in_chunks() -> None:
    with processes.pool(2, processes.prepare, "died") as executor:
        assert list(processes.map_in_order(executor, abs, range(-7, 0), 3)) == [7, 6, 5, 4, 3, 2, 1]
