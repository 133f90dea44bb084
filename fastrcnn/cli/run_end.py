"""How a training ends that does not reach its last step: what is kept, what is said, how to resume."""

from __future__ import annotations

import errno
import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.errors import UserError
from fastrcnn.parallel.launch import launch
from fastrcnn.training.signals import Stop, Stopped

if TYPE_CHECKING:
    from fastrcnn.cli.run_state import RunState

log = logging.getLogger("fastrcnn")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def command(folder: Path) -> str:
    """What to type so that the run in the folder goes on."""
    program = "fastrcnn" if launch().size == 1 else "torchrun (its options as before) -m fastrcnn"
    return f"{program} train {shlex.quote(f'run={folder}')} resume=auto"


@dataclass
class Ending:
    """state: what there is to save, once there is something."""

    state: RunState | None = None


@contextmanager
def good_order(folder: Path, stop: Stop) -> Iterator[Ending]:
    """Holds the training of the run in the folder. Where a signal, the death of a loader's process or a full disk ends
    it, what can be saved is, and the exception that leaves says how to resume: Stopped, or UserError."""
    from fastrcnn.data.loader import WorkerDiedError
    from fastrcnn.training.loop import Interrupted

    ending = Ending()
    stop.advice = command(folder)
    try:
        yield ending
    except Interrupted as end:
        stopped = stop.stopped(f"step {end.step} is done and saved")
        log.info("%s", stopped)  # into the run's log too
        raise Stopped(stopped.status) from None
    except WorkerDiedError as error:
        from fastrcnn.parallel import distributed

        state = ending.state
        if state is not None and state.done > state.saved and distributed.leads():
            state.save(state.done)
        kept = f"Step {state.saved} is saved. " if state is not None and state.saved else ""
        raise UserError(f"{error} {kept}To resume: {command(folder)}") from None
    except RuntimeError as error:
        from fastrcnn.parallel import distributed

        if not distributed.lost(error):
            raise
        raise distributed.LostError(
            f"{distributed.GONE} To resume from the last checkpoint: {command(folder)}"
        ) from None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}). Checkpoints that are there already are "
            f"untouched; make room, then resume: {command(folder)}"
        ) from None
