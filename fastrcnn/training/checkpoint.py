"""Checkpoints: everything a run needs to go on, in files that hold only tensors, numbers, strings and containers.

A file is written under another name, flushed to disk and renamed, so that one that bears a checkpoint's name is
whole. It ends in a SHA-256 of what comes before, so that a later change is noticed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrcnn.errors import UserError
from fastrcnn.files import write_atomically
from fastrcnn.weights import torch_files
from fastrcnn.weights.fitting import unusable

log = logging.getLogger("fastrcnn")
FORMAT = 2  # 1 had one short side in evaluation
MAGIC = b"\nfastrcnn-sha256:"
TRAILER = len(MAGIC) + 64
NAME = re.compile(r"step-(\d+)\.pt$")
Check = Callable[[Path, dict[str, Any]], dict[str, Any]]
HELD = ("step", "best", "classes", "config", "model")  # by every checkpoint; of a run that can be resumed: `optimizer`


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes `content`, plus the format's number, to `path`; an existing file is replaced only by a whole one.

    Raises UserError where the disk is full or the folder cannot be written to.
    """
    data = pack(content)
    advice = "Earlier checkpoints are untouched; make room or choose another folder with run=PATH."
    with write_atomically(path, advice) as part:
        part.write_bytes(data)


def pack(content: dict[str, Any]) -> memoryview:
    """The bytes of a checkpoint with this content."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.seek(0, os.SEEK_END)
    buffer.write(MAGIC + digest.encode())
    return buffer.getbuffer()


def load(path: Path, finite: bool = True) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Nothing in the file is executed.

    finite: refuse weights that are not. Raises UserError where there is no checkpoint, or it is cut short, changed, not
    ours, or lacks what every checkpoint holds. Whether its weights fit its configuration, build/checkpoints.py checks.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = size = max(0, os.fstat(file.fileno()).st_size - TRAILER)
            while left and (part := file.read(min(left, 2**20))):
                digest.update(part)
                left -= len(part)
            trailer = file.read()
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be read ({error.strerror}).") from None
    if not trailer.startswith(MAGIC):
        raise UserError(f"{path}: not a checkpoint of this program, or cut short (no checksum at its end).")
    if digest.hexdigest().encode() != trailer[len(MAGIC) :]:
        raise UserError(f"{path}: the checkpoint has changed since it was written (its checksum does not fit).")
    content = torch_files.read(path, size)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise UserError(f"{path}: a checkpoint of format {str(found)[:20]}; this program reads format {FORMAT}.")
    _check(path, content, finite)
    return content


def _check(path: Path, content: dict[str, Any], finite: bool) -> None:
    """Raises UserError where the content lacks a part, or a part is of another kind than training writes."""
    if missing := [name for name in HELD if name not in content]:
        raise UserError(f"{path}: the checkpoint lacks {', '.join(missing)}. Use another checkpoint.")
    step, best, names, config, model = (content[name] for name in HELD)
    optimizer = content.get("optimizer", {"state": {}, "param_groups": []})
    states, groups = (optimizer.get(k) if type(optimizer) is dict else None for k in ("state", "param_groups"))

    def holds(values: Any, kind: type) -> bool:
        return all(isinstance(value, kind) for value in values)

    sound = {
        "step": type(step) is int and 0 <= step < 2**53,
        "best": type(best) in (int, float) and -1 <= best <= 1,
        "classes": type(names) is list and holds(names, str) and len(set(names)) == len(names) > 0,
        "config": type(config) is dict,
        "model": type(model) is dict and holds(model, str) and holds(model.values(), Tensor),
        "optimizer": type(states) is dict
        and type(groups) is list
        and holds(states.values(), dict)
        and holds(groups, dict),
    }
    if unsound := [name for name, is_sound in sound.items() if not is_sound]:
        raise UserError(f"{path}: {', '.join(unsound)} in the checkpoint is not what training writes. Use another one.")
    if finite:
        tensors = dict(model)
        for number, state in optimizer["state"].items():
            tensors |= {f"optimizer {number} {key}": v for key, v in state.items() if isinstance(v, Tensor)}
        if problems := unusable(tensors):
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"{path}: the checkpoint's weights cannot be used: {'; '.join(problems[:3])}{more}. Use an earlier one."
            )


def in_order(folder: Path) -> list[Path]:
    """The `step-N.pt` files of a folder, newest first."""
    numbered = [(int(m[1]), p) for p in folder.glob("step-*.pt") if (m := NAME.search(p.name))]
    return [p for _, p in sorted(numbered, reverse=True)]


def newest_sound(folder: Path, check: Check = lambda _, content: content) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint of a folder that a run can resume from, its content, and why newer ones were passed over.

    check: takes path and content, and returns the content; raises UserError where it cannot be used.
    Raises UserError where there is none.
    """
    refused: list[str] = []
    for path in in_order(folder):
        try:
            content = load(path)
            if "optimizer" not in content:
                raise UserError(f"{path}: no run can resume from it, as it lacks optimizer.")
            return path, check(path, content), refused
        except UserError as error:
            refused.append(str(error))
    why = "\n".join(refused) if refused else "There is no step-N.pt file."
    raise UserError(f"{folder}: no checkpoint to go on from. {why}")


def is_one(path: Path) -> bool:
    """Whether a file is a checkpoint of this program, whole or damaged; other programs' .pt files are not."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TRAILER))
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def resolve(where: Path, key: str = "checkpoint") -> Path:
    """The checkpoint file that a user means by a file, or by a run's folder: best.pt, else the newest. A folder of runs
    (outputs/NAME) means its newest run.

    key: what named it. Raises UserError where there is none.
    """
    if where.is_file():
        return where
    if not where.exists():
        raise UserError(
            f"{key}: there is no file or folder {where}. Give a run's folder, a .pt file, or a detector's .caffemodel."
        )
    runs = sorted(where.glob("*/checkpoints"), key=lambda p: (p.stat().st_mtime_ns, p))
    for folder in (where / "checkpoints", where, *runs[::-1]):
        best = folder / "best.pt"
        found = best if best.is_file() else next(iter(in_order(folder)), None)
        if found is not None:
            if folder in runs:
                log.info("%s: its newest run is %s", where, folder.parent.name)
            return found
    raise UserError(f"{key}: {where} holds no checkpoint (checkpoints/best.pt or step-N.pt).")


def keep_last(folder: Path, n: int) -> None:
    """Removes all but the `n` step-N.pt files written last.

    Not those of the highest steps: a broken one that a resumed run passed over would then outlive the sound ones.
    """
    by_time = sorted(in_order(folder), key=lambda p: p.stat().st_mtime_ns, reverse=True)  # of equals the higher step
    for path in by_time[n:]:
        path.unlink(missing_ok=True)
