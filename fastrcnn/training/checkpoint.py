"""Checkpoints: everything a run needs to go on, in files that hold only tensors, numbers, strings and containers.

A file is written under another name, flushed to disk and renamed, so that one that bears a checkpoint's name is
whole. It ends in a SHA-256 of what comes before, so that a later change is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from fastrcnn.errors import UserError

FORMAT = 2  # 1 had one short side in evaluation
MAGIC = b"\nfastrcnn-sha256:"
NAME = re.compile(r"step-(\d+)\.pt$")


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes `content`, plus the format's number, to `path`; an existing file is replaced only by a whole one.

    Raises UserError where the disk is full or the folder cannot be written to.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    data = buffer.getbuffer()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.write(MAGIC + hashlib.sha256(data).hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(
            f"{path}: the checkpoint could not be written ({error.strerror}). "
            "Earlier checkpoints are untouched; make room or choose another folder with run=PATH."
        ) from error
    finally:  # an interruption too should leave no half-written gigabyte
        with contextlib.suppress(OSError):
            temporary.unlink()


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Nothing in the file is executed.

    Raises UserError where there is none, or it is cut short, changed, or not ours.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be read ({error.strerror}).") from None
    body, digest = data[: -len(MAGIC) - 64], data[-len(MAGIC) - 64 :]
    if not digest.startswith(MAGIC):
        raise UserError(f"{path}: not a checkpoint of this program, or cut short (no checksum at its end).")
    if hashlib.sha256(body).hexdigest().encode() != digest[len(MAGIC) :]:
        raise UserError(f"{path}: the checkpoint has changed since it was written (its checksum does not fit).")
    try:
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds
        raise UserError(f"{path}: the checkpoint cannot be read safely ({type(error).__name__}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise UserError(f"{path}: a checkpoint of format {found}; this program reads format {FORMAT}.")
    return content


def in_order(folder: Path) -> list[Path]:
    """The `step-N.pt` files of a folder, newest first."""
    numbered = [(int(m[1]), p) for p in folder.glob("step-*.pt") if (m := NAME.search(p.name))]
    return [p for _, p in sorted(numbered, reverse=True)]


def newest_sound(
    folder: Path, needed: Collection[str] = ("step", "model", "optimizer")
) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint of a folder that can be read, its content, and why newer ones were passed over.

    needed: what the content has to have, so that a run can go on from it.
    Raises UserError where there is none.
    """
    refused: list[str] = []
    for path in in_order(folder):
        try:
            content = load(path)
            if missing := sorted(set(needed) - content.keys()):
                raise UserError(f"{path}: no run can go on from it, as it lacks {', '.join(missing)}.")
            return path, content, refused
        except UserError as error:
            refused.append(str(error))
    why = "\n".join(refused) if refused else "There is no step-N.pt file."
    raise UserError(f"{folder}: no checkpoint to go on from. {why}")


def resolve(where: Path) -> Path:
    """The checkpoint file that a user means by a run's folder or a file: best.pt, else the newest.

    Raises UserError where there is none.
    """
    if where.is_file():
        return where
    if not where.exists():
        raise UserError(
            f"checkpoint: there is no file or folder {where}. Give a run's folder, a .pt file, or a detector's "
            ".caffemodel."
        )
    for folder in (where / "checkpoints", where):
        best = folder / "best.pt"
        if best.is_file():
            return best
        if newest := in_order(folder):
            return newest[0]
    raise UserError(f"checkpoint: {where} holds no checkpoint (checkpoints/best.pt or step-N.pt).")


def keep_last(folder: Path, n: int) -> None:
    """Removes all but the `n` step-N.pt files written last.

    Not those of the highest steps: a broken one that a resumed run passed over would then outlive the sound ones.
    """
    by_time = sorted(in_order(folder), key=lambda p: p.stat().st_mtime_ns, reverse=True)  # of equals the higher step
    for path in by_time[n:]:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what processes that were killed while they wrote a checkpoint left behind. Only for who holds the run's
    folder: another process may be writing."""
    for path in folder.glob(".*.pt.*.tmp"):
        path.unlink(missing_ok=True)
