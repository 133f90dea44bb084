"""Files and folders that are written whole or not at all, and locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastrcnn import files
from fastrcnn.errors import UserError
from fastrcnn.files import BusyError, lock, remove_parts, replace_file, write_atomically, write_derived, write_folder


def test_a_name_as_long_as_a_file_system_takes_is_written(tmp_path: Path) -> None:
    output = tmp_path / f"{'x' * 252}.pt"
    with write_derived(output, "source") as part:
        part.write_bytes(b"1")
    assert output.read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 2  # it, and what says what it was made of


def test_a_file_is_replaced_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.json"
    for content in (b"1", b"22"):
        assert replace_file(path, content) == path
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["body", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    path = replace_file(tmp_path / "x", b"old")

    def fail(*_: object) -> None:
        raise error

    if where != "body":
        monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), fail)

    def write() -> None:
        with write_atomically(path, "Use another disk.") as part:
            part.write_bytes(b"new")
            if where == "body":
                fail()

    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        write()
    said = f"{path}: cannot be written (No space left on device). Use another disk."
    assert isinstance(caught.value, KeyboardInterrupt) or str(caught.value) == said
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]


def test_the_remains_of_a_process_that_was_killed_are_removed(tmp_path: Path) -> None:
    (tmp_path / "step-1.pt").touch()
    with write_atomically(tmp_path / "step-2.pt") as part:
        part.write_bytes(b"half")
        part.rename(tmp_path / ".0123.part")
        part.touch()
    remove_parts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1.pt", "step-2.pt"]


def test_a_folder_takes_its_name_whole_and_replaces_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a" / "store"
    for number in (1, 2):
        with write_folder(path, replace=number == 2) as folder:
            (folder / "below").mkdir()
            (folder / "below" / "x").write_text(str(number))
            assert path.exists() == (number == 2)
        assert (path / "below" / "x").read_text() == str(number)
    with pytest.raises(UserError, match=r"store: cannot be written \("), write_folder(path) as folder:
        (folder / "x").touch()
    assert (path / "below" / "x").read_text() == "2"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems need two renames")
def test_a_folder_is_replaced_without_a_moment_in_which_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    path.mkdir()
    monkeypatch.setattr(Path, "rename", None)
    with write_folder(path, replace=True) as folder:
        (folder / "x").touch()
    assert [p.name for p in path.iterdir()] == ["x"]
    assert list(tmp_path.iterdir()) == [path]


def test_without_an_exchange_a_folder_is_replaced_by_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    path, left = tmp_path / "store", tmp_path / ".store.old"
    left.mkdir()
    (left / "old").touch()  # a process was killed between the two renames
    with pytest.raises(KeyboardInterrupt), write_folder(path, replace=True):  # noqa: PT012
        assert [p.name for p in path.iterdir()] == ["old"]
        raise KeyboardInterrupt
    left.mkdir()  # one was killed after both
    with write_folder(path, replace=True) as folder:
        (folder / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_write_removes_what_killed_processes_left(tmp_path: Path) -> None:
    """Not what a process that runs is writing, nor one on another host, nor what looks otherwise."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    gone = [f".{files.HOST}-{killed.pid}-0123abcd.{kind}" for kind in ("part", "new", "part.mp4")]
    kept = [f".{files.HOST}-{os.getpid()}-0123abcd.part", f".x{files.HOST}-{killed.pid}-0123abcd.part", ".mine.part"]
    for name in (gone[0], gone[2], *kept):
        (tmp_path / name).touch()
    (tmp_path / gone[1]).mkdir()
    (tmp_path / gone[1] / "boxes.npy").touch()
    replace_file(tmp_path / "x", b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "x"])


def test_a_lock_keeps_out_those_that_do_not_share_it(tmp_path: Path) -> None:
    file = tmp_path / "work" / "lock"
    words = ("work", "another run is at it", "choose another folder")
    with lock(file, *words, shared=True):
        with lock(file, *words, shared=True):
            pass
        said = r"^work: another run is at it\. Wait for it to end, or choose another folder\.$"
        with pytest.raises(BusyError, match=said), lock(file, *words):
            pass
    with lock(file, *words):
        pass
    with pytest.raises(UserError, match=r"^work: cannot be written to \(Not a directory\)\. Choose another folder\.$"):
        lock(file / "below" / "x", *words).__enter__()
