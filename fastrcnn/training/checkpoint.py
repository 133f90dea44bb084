"""Checkpoint files: everything that a run needs to resume, as tensors, numbers, strings and containers only.

A checkpoint is written to a temporary file, flushed to disk and renamed, so it is never incomplete. The file ends with
the SHA-256 of its content, which makes later damage detectable.
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
from fastrcnn.training.tracking import newest_first
from fastrcnn.weights import torch_files
from fastrcnn.weights.fitting import unusable

log = logging.getLogger("fastrcnn")
FORMAT = 2  # format 1 had a single short side for evaluation
MAGIC = b"\nfastrcnn-sha256:"
TRAILER = len(MAGIC) + 64
NAME = re.compile(r"step-(\d+)\.pt$")
Check = Callable[[Path, dict[str, Any]], dict[str, Any]]
HELD = ("step", "best", "classes", "config", "model")  # every checkpoint has these; resuming also needs `optimizer`


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` and the format number to `path` atomically.

    Raises UserError if the disk is full or the folder is not writable.
    """
    data = pack(content)
    advice = "Existing checkpoints are unchanged. Free disk space, or choose another folder with run=PATH."
    with write_atomically(path, advice) as part:
        part.write_bytes(data)


def pack(content: dict[str, Any]) -> memoryview:
    """Return the bytes of a checkpoint file that contains `content`, the format number and a checksum."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.seek(0, os.SEEK_END)
    buffer.write(MAGIC + digest.encode())
    return buffer.getbuffer()


def load(path: Path, finite: bool = True) -> dict[str, Any]:
    """Read a checkpoint, and return its content with tensors on the CPU. Nothing in the file is executed.

    finite: also raise UserError if the weights or the optimiser state contain values that are not finite.
    Raises UserError if the file is missing, truncated, damaged or not a checkpoint, or if an entry is missing or
    invalid. build/checkpoints.py checks whether the weights fit the configuration.
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
        raise UserError(
            f"{path}: this is not a fastrcnn checkpoint, or the file is truncated (it does not end with a checksum)."
        )
    if digest.hexdigest().encode() != trailer[len(MAGIC) :]:
        raise UserError(f"{path}: the checkpoint is damaged (its checksum does not match). Use another checkpoint.")
    content = torch_files.read(path, size)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format", "missing") if isinstance(content, dict) else "missing"
        raise UserError(
            f"{path}: the format number of the checkpoint is {str(found)[:20]}. This version of fastrcnn reads only "
            f"format {FORMAT}."
        )
    _check(path, content, size, finite)
    return content


def _check(path: Path, content: dict[str, Any], size: int, finite: bool) -> None:
    """Raise UserError if an entry is missing or has an invalid type or value.

    size: number of bytes of the content. Tensors that together are larger, because they share a storage, are invalid.
    """
    if missing := [name for name in HELD if name not in content]:
        raise UserError(f"{path}: the checkpoint lacks these entries: {', '.join(missing)}. Use another checkpoint.")
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
        raise UserError(f"{path}: the checkpoint has invalid values for {', '.join(unsound)}. Use another checkpoint.")
    tensors = dict(model)
    for number, state in optimizer["state"].items():
        tensors |= {f"optimizer {number} {key}": v for key, v in state.items() if isinstance(v, Tensor)}
    if (total := sum(values.nbytes for values in tensors.values())) > size:
        raise UserError(
            f"{path}: the checkpoint has tensors of {total:,} bytes in a file of only {size:,} bytes. "
            "Use another checkpoint."
        )
    if finite and (problems := unusable(tensors)):
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{path}: the checkpoint's weights cannot be used: {'; '.join(problems[:3])}{more}. "
            "Use an earlier checkpoint."
        )


def in_order(folder: Path) -> list[Path]:
    """Return the `step-N.pt` files of a folder, highest step first."""
    return sorted((p for p in folder.glob("step-*.pt") if NAME.search(p.name)), key=_step, reverse=True)


def _step(path: Path) -> int:
    """Return N of a file step-N.pt."""
    found = NAME.search(path.name)
    assert found is not None
    return int(found[1])


def newest_sound(folder: Path, check: Check = lambda _, content: content) -> tuple[Path, dict[str, Any], list[str]]:
    """Find the usable checkpoint with the highest step in a folder, to resume a run.

    Returns its path, its content, and an error message for each skipped checkpoint with a higher step. check: a
    function that takes the path and the content of a checkpoint, and returns the content or raises UserError if the
    checkpoint is not usable. Raises UserError if no checkpoint is usable.
    """
    refused: list[str] = []
    for path in in_order(folder):
        try:
            content = load(path)
            if "optimizer" not in content:
                raise UserError(f"{path}: a run cannot resume from this checkpoint, because it has no optimiser state.")
            return path, check(path, content), refused
        except UserError as error:
            refused.append(str(error))
    why = "\n".join(refused) if refused else "The folder contains no step-N.pt file."
    raise UserError(f"{folder}: there is no checkpoint from which the run can resume. {why}")


def is_one(path: Path) -> bool:
    """Return whether a file can be read and ends with fastrcnn's checksum, which .pt files of other programs lack."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TRAILER))
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def resolve(where: Path, key: str = "checkpoint") -> Path:
    """Find the checkpoint for a path that a user gave: a file, a run's folder, or a folder of runs (outputs/NAME).

    A file is returned unchecked. In a run's folder, the checkpoint is best.pt or, if it does not exist, the step-N.pt
    with the highest step. In a folder of runs, the newest run is used.
    key: the configuration key of the path, for messages. Raises UserError if no checkpoint is found.
    """
    if where.is_file():
        return where
    if not where.exists():
        raise UserError(
            f"{key}: {where} does not exist. Specify the folder of a run, outputs/NAME for the newest run with that "
            "name, or a file."
        )
    runs = [run / "checkpoints" for run in newest_first(p.parent for p in where.glob("*/checkpoints"))]
    for folder in (where / "checkpoints", where, *runs):
        best = folder / "best.pt"
        found = best if best.is_file() else next(iter(in_order(folder)), None)
        if found is not None:
            if folder in runs:
                log.info("%s: using the newest run, %s", where, folder.parent.name)
            return found
    raise UserError(f"{key}: {where} contains no checkpoint (checkpoints/best.pt or step-N.pt).")


def keep_last(folder: Path, n: int, step: int) -> None:
    """Remove old step-N.pt files after the checkpoint of `step` was written: of those up to `step`, keep the last `n`.

    Files are ordered by their steps, because modification times depend on clocks and copies. Checkpoints with higher
    steps are not removed: a resumed run skipped them, for example because they are damaged, and will replace them.
    """
    written = [path for path in in_order(folder) if _step(path) <= step]
    for path in written[n:]:
        path.unlink(missing_ok=True)
