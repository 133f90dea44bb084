"""Writing files and folders whole or not at all, locks between processes, and files that are made of another file.

Beside the files that are made of another one, such as exports of a checkpoint, lies MADE. It maps the SHA-256 of each
to that of the file it was made of. So the same command can run again, after an interruption or not, and replaces what
this program made of the same file, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastrcnn.errors import UserError
from fastrcnn.names import NAME_BYTES

log = logging.getLogger(__name__)
MADE = ".fastrcnn-made.json"
ADVICE = "Make room there or choose another folder."
PATH_BYTES = 3500  # bytes of a run's path; Linux takes 4095, and what an evaluation writes is up to 520 longer


class BusyError(UserError):
    """Another process holds the lock."""


@contextmanager
def write_atomically(path: Path, advice: str = ADVICE) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its name, flushed to disk, when the body ends well, and goes else.

    Makes the folder. Raises UserError, which ends in `advice`, where the file cannot be written.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")  # not longer than a name may be
    try:
        with _say_what_fails(path, advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors lets nobody else read its files
            _flush(part)
            part.replace(path)
            with suppress(OSError):  # a folder that may not be read, or whose file system flushes files alone
                _flush(path.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> Path:
    """Writes the content to `path`, as `write_atomically` does, and returns `path`."""
    with write_atomically(path) as part:
        part.write_bytes(content)
    return path


def remove_parts(folder: Path) -> None:
    """Removes what processes that were killed while they wrote left in a folder, where no other process writes now."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def write_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A new folder beside `path`, which takes its name, flushed to disk, when the body ends well, and goes else.

    replace: take the place of a folder that is there. Raises UserError where the folder cannot be written.
    """
    mark = uuid.uuid4().hex[:8]
    new, old = path.with_name(f".{path.name}.new-{mark}"), path.with_name(f".{path.name}.old-{mark}")
    try:
        with _say_what_fails(path, ADVICE):
            new.mkdir(parents=True)
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    _flush(file)
            replaced = replace and path.exists()
            if replaced:
                path.rename(old)  # a folder that holds files cannot be renamed over
            try:
                new.rename(path)
            except BaseException:
                if replaced:
                    old.rename(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def lock(file: Path, name: str, busy: str, advice: str, shared: bool = False) -> Iterator[None]:
    """Makes `file` and its folder, and keeps other processes from locking it until the body ends, however it ends.

    shared: keeps out only those that do not share the lock. Messages: `name` is what is locked, `busy` says what
    another process does with it, `advice` where else to go. Raises BusyError, or UserError for a file that cannot be
    written or locked.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("ab+")  # a shared lock over NFS is for files that are read
    except OSError as error:
        raise UserError(f"{name}: cannot be written to ({error.strerror or error}); {advice}.") from error
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError:
            raise BusyError(f"{name}: {busy}. Wait for it to end, or {advice}.") from None
        except OSError as error:
            raise UserError(f"{name}: cannot be locked ({error.strerror or error}); {advice}.") from error
        yield


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_unusable(folder: Path, said: str) -> None:
    """Raises UserError, which begins with `said`, where the folder cannot be made or written to."""
    whole = folder.absolute()
    if (longest := max(len(os.fsencode(part)) for part in whole.parts)) > NAME_BYTES:
        raise UserError(f"{said}: a folder's name may have {NAME_BYTES} bytes, not {longest}. Choose a shorter one.")
    if (length := len(os.fsencode(whole))) > PATH_BYTES:
        raise UserError(f"{said}: a run's path may have {PATH_BYTES} bytes, not {length}. Choose a shorter one.")
    try:
        there = next(p for p in (whole, *whole.parents) if p.exists())
    except OSError as error:
        raise UserError(f"{said}: {folder} cannot be used ({error.strerror}). Choose another folder.") from None
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if there.is_dir() else "is not a folder"
        raise UserError(f"{said}: {there} {what}. Choose another folder.")


def refuse_existing(output: Path, source: str | None = None) -> None:
    """Raises UserError where `output` exists, unless this program made it of the same file.

    source: the digest of the file that `output` is made of; None: whatever exists is refused.
    """
    if not output.exists():
        return
    made_of = _made(output.parent).get(digest(output)) if output.is_file() else None
    if made_of is None or made_of != source:
        why = "" if made_of is None or source is None else ", made from another file"
        raise UserError(f"{output}: is there already{why}. Name another file with output=FILE, or remove it.")


@contextmanager
def write_derived(output: Path, source: str | None = None) -> Iterator[Path]:
    """As `write_atomically`, for a file made of another one; source and errors: see also refuse_existing."""
    refuse_existing(output, source)
    with write_atomically(output) as part:
        yield part
        if source is not None:  # before the file has its name: it is never there without
            made = _made(output.parent) | {digest(part): source}
            replace_file(output.parent / MADE, (json.dumps(made, indent=1) + "\n").encode())
        if output.exists():
            log.info("%s: replaces what was made of the same file before", output)


def _made(folder: Path) -> dict[str, str]:
    """What MADE in a folder says; nothing where it is not there or damaged."""
    try:
        made = json.loads((folder / MADE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return made if isinstance(made, dict) else {}


@contextmanager
def _say_what_fails(path: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}). {advice}") from error


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
