"""Files that are made of another file, such as exports of a checkpoint: written whole, and replaced where that is safe.

Beside them lies MADE, which maps the SHA-256 of each such file to that of the file it was made of. So the same command
can run again, after an interruption or not, and replaces what this program made of the same file, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from fastrcnn.errors import UserError
from fastrcnn.names import NAME_BYTES

log = logging.getLogger(__name__)
MADE = ".fastrcnn-made.json"
PATH_BYTES = 3500  # bytes of a run's path; Linux takes 4095, and what an evaluation writes is up to 520 longer


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


@contextlib.contextmanager
def written(output: Path, source: str | None = None) -> Iterator[Path]:
    """A path beside `output` that takes its name when the body ends well. source: see refuse_existing.

    Raises UserError where there is a file that must not be replaced, or none can be written.
    """
    refuse_existing(output, source)
    part = output.with_name(f".{uuid.uuid4().hex}.part")  # not longer than a name may be
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # safetensors lets nobody else read its files
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if source is not None:
            _note(output.parent, digest(part), source)  # before the file has its name: it is never there without
        if output.exists():
            log.info("%s: replaces what was made of the same file before", output)
        part.replace(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}).") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _made(folder: Path) -> dict[str, str]:
    """What MADE in a folder says; nothing where it is not there or damaged."""
    try:
        made = json.loads((folder / MADE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return made if isinstance(made, dict) else {}


def _note(folder: Path, made: str, source: str) -> None:
    part = folder / f"{MADE}.{uuid.uuid4().hex[:8]}.part"
    try:
        part.write_text(json.dumps(_made(folder) | {made: source}, indent=1) + "\n", encoding="utf-8")
        part.replace(folder / MADE)
    finally:
        part.unlink(missing_ok=True)


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
