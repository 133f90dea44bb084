"""Atomic writes of files and folders, locks between processes, and files that are derived from another file.

A derived file, such as an exported checkpoint, is recorded in the file .fastrcnn-made.json (MADE) in its folder. MADE
maps the SHA-256 digest of each derived file to the digest of its source. A command can therefore be repeated, even
after an interruption: it only overwrites files that this program created from the same source.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastrcnn.errors import UserError
from fastrcnn.names import NAME_BYTES

log = logging.getLogger(__name__)
MADE = ".fastrcnn-made.json"
ADVICE = "Free some disk space or choose another folder."
HOST = re.sub(r"\W", "_", platform.node())[:60]
TEMPORARY = re.compile(rf"\.{HOST}-(\d+)-[0-9a-f]{{8}}\.(part|new)(\.\w+)?")
PATH_BYTES = 3500  # limit for an output folder; Linux allows 4095, and files in it have up to 520 bytes more


class BusyError(UserError):
    """Another process holds a lock that is needed."""


@contextmanager
def write_atomically(path: Path, advice: str = ADVICE) -> Iterator[Path]:
    """Yield the path of a temporary file next to `path`, and rename the file to `path` when the `with` block succeeds.

    The content is flushed to disk before the file is renamed. If the block raises an exception, the temporary file is
    deleted. The folder of `path` is created if needed. Raises UserError if the file cannot be written.
    advice: the last sentence of the error message, which tells the user what to do.
    """
    part = temporary(path, "part")
    try:
        with _explain_errors(path, advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_remains(part.parent.absolute())
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors makes its files readable only by the owner
            _flush(part)
            part.replace(path)
            _flush_folder(path.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> Path:
    """Write the content to `path` atomically and return `path`. Raises the same errors as write_atomically."""
    with write_atomically(path) as part:
        part.write_bytes(content)
    return path


def remove_parts(folder: Path) -> None:
    """Delete the temporary files (.*.part) of killed processes in a folder. No other process may be writing to it."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def write_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary folder, and rename the folder to `path` when the `with` block succeeds.

    The files are flushed to disk before the folder is renamed. If the block raises an exception, the temporary folder
    is deleted. If `replace` is true, an existing folder is replaced: atomically if the file system supports it,
    otherwise with two renames. If the process is killed between the renames, the next call restores the old folder.
    Raises UserError if the folder cannot be written, or if `path` is a non-empty folder and `replace` is false.
    """
    new, old = temporary(path, "new"), path.with_name(f".{path.name}.old")
    try:
        with _explain_errors(path, ADVICE):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_remains(path.parent.absolute())
            if old.exists() and not path.exists():
                old.rename(path)
            new.mkdir()
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    _flush(file)
            if not (replace and path.exists()):
                new.rename(path)
            elif not _exchange(new, path):
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)  # rename does not replace a folder that is not empty
                try:
                    new.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            _flush_folder(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)  # after an exchange, this is the old folder


def temporary(path: Path, kind: str) -> Path:
    """Return a new temporary name next to `path`, which contains the host and the process: see _remove_remains.

    kind: `part` for a file or `new` for a folder, to which a suffix such as `.mp4` can be added.
    """
    return path.with_name(f".{HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{kind}")


@functools.cache  # once for each folder
def _remove_remains(folder: Path) -> None:
    """Delete temporary files and folders in `folder` that were left by processes of this host that no longer run."""
    if os.name != "posix":  # on Windows, os.kill(process, 0) interrupts the process
        return
    with suppress(OSError):
        for remains in folder.iterdir():
            if (found := TEMPORARY.fullmatch(remains.name)) and not _runs(int(found[1])):
                shutil.rmtree(remains) if remains.is_dir() else remains.unlink()


def _runs(process: int) -> bool:
    """Return whether a process with this number exists on this host."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        pass
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders atomically. Return False if the operating or file system cannot do that."""
    if sys.platform != "linux":
        return False
    here, flag = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), flag) == 0


@contextmanager
def lock(file: Path, name: str, busy: str, advice: str, shared: bool = False) -> Iterator[None]:
    """Lock `file` against other processes while the `with` block runs. On Windows, nothing is locked.

    The file and its folder are created if needed. shared: take a shared lock, which excludes only exclusive locks.
    Raises BusyError if another process holds the lock, and UserError if the file cannot be written or locked. Texts for
    the message are name (the locked object), busy (what the other process does) and advice (what to do instead).
    """
    instead = advice[:1].upper() + advice[1:]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("ab+")  # a shared lock on NFS needs a file that is open for reading
    except OSError as error:
        raise UserError(f"{name}: cannot be written to ({error.strerror or error}). {instead}.") from error
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError:
            raise BusyError(f"{name}: {busy}. Wait for it to end, or {advice}.") from None
        except OSError as error:
            raise UserError(
                f"{name}: cannot be locked ({error.strerror or error}). The file system may not support "
                f"locks. {instead}."
            ) from error
        yield


def digest(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_unusable(folder: Path, said: str) -> None:
    """Raise UserError if the folder cannot be created or written to. said: the start of the message (key=value)."""
    whole = folder.absolute()
    if (longest := max(len(os.fsencode(part)) for part in whole.parts)) > NAME_BYTES:
        raise UserError(
            f"{said}: a folder name of {longest} bytes exceeds the limit of {NAME_BYTES} bytes. Use a shorter name."
        )
    if (length := len(os.fsencode(whole))) > PATH_BYTES:
        raise UserError(f"{said}: the path has {length} bytes, but the limit is {PATH_BYTES}. Use a shorter path.")
    try:
        there = next(p for p in (whole, *whole.parents) if p.exists())
    except OSError as error:
        raise UserError(f"{said}: {folder} cannot be used ({error.strerror}). Choose another folder.") from None
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if there.is_dir() else "is not a folder"
        raise UserError(f"{said}: {there} {what}. Choose another folder.")


def refuse_existing(output: Path, source: str | None = None) -> None:
    """Raise UserError if `output` exists, unless MADE records that it was created from the same source.

    source: SHA-256 digest of the file that `output` is derived from. If it is None, every existing file is refused.
    """
    if not output.exists():
        return
    made_of = _made(output.parent).get(digest(output)) if output.is_file() else None
    if made_of is None or made_of != source:
        why = "" if made_of is None or source is None else " and was created from another file"
        raise UserError(f"{output} already exists{why}. Remove it, or choose another file with output=FILE.")


@contextmanager
def write_derived(output: Path, source: str | None = None) -> Iterator[Path]:
    """Yield the path of a temporary file, and rename the file to `output` when the `with` block succeeds.

    source: SHA-256 digest of the file that `output` is derived from, which is recorded in MADE; None: record nothing.
    Raises UserError if the file cannot be written, or if refuse_existing refuses an existing file.
    """
    refuse_existing(output, source)
    with write_atomically(output) as part:
        yield part
        if source is not None:  # before the rename, so that the file never exists without its entry
            made = _made(output.parent) | {digest(part): source}
            replace_file(output.parent / MADE, (json.dumps(made, indent=1) + "\n").encode())
        if output.exists():
            log.info("Replacing %s, which was previously created from the same source", output)


def _made(folder: Path) -> dict[str, str]:
    """Read MADE in a folder: digest of a derived file -> digest of its source. Empty if MADE is missing or damaged."""
    try:
        made = json.loads((folder / MADE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return made if isinstance(made, dict) else {}


@contextmanager
def _explain_errors(path: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}). {advice}") from error


def _flush_folder(path: Path) -> None:
    with suppress(OSError):  # the folder is not readable, or the file system can flush only files
        _flush(path)


def _flush(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
