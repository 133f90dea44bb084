"""Communication between the processes of a job that torchrun starts.

All functions also work in a single process, which has rank 0 and size 1. The process group is torch.distributed's: NCCL
between GPUs, gloo between CPUs. All processes must call the functions that communicate, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastrcnn.errors import UserError
from fastrcnn.memory import ran_out
from fastrcnn.parallel.launch import launch

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # longer than one process's part of an evaluation; torchrun detects dead processes
GRACE = 1.0  # seconds to wait for the other processes to report the same error
GONE = "It may have been killed because memory ran out. torchrun reports below which process it was."


def rank() -> int:
    """Return the rank of this process in the process group; 0 in a single process."""
    return dist.get_rank() if _several() else 0


def size() -> int:
    """Return the number of processes in the group; 1 in a single process."""
    return dist.get_world_size() if _several() else 1


def leads() -> bool:
    """Return whether this is the first process, which writes the files and the log."""
    return rank() == 0


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


class LostError(UserError):
    """Another process of the job ended unexpectedly. reason: torch's message (only its first line is used)."""

    def __init__(self, reason: str, advice: str = "") -> None:
        self.reason = reason.partition("\n")[0]
        super().__init__(f"another process of this job ended unexpectedly (torch: {self.reason}). {GONE}{advice}")


@contextmanager
def exchange() -> Iterator[None]:
    """Raise LostError if communication with other processes fails inside the `with` block.

    torch has no separate class for these errors (gloo raises RuntimeError). Every RuntimeError is therefore converted
    to a LostError, except for out-of-memory errors and errors in a single process.
    """
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or ran_out(error):
            raise
        raise LostError(str(error)) from error


@contextmanager
def join_processes(device: torch.device) -> Iterator[None]:
    """Create a process group of all processes of the job while the `with` block runs. A single process needs no group.

    If several processes raise the same UserError, only the one with the lowest rank raises it here; the others raise
    SystemExit without a message. Raises LostError if another process ended without reporting an error.
    """
    if launch().size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, processes = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"start {launch().attempt}", store)  # otherwise, gloo finds old addresses after a restart
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=number, world_size=processes, timeout=PATIENCE)
    try:
        yield
    except UserError as error:
        raise _agree(error, dist.PrefixStore("errors", store)) from None
    except Exception:
        raise  # the other processes continue, so destroying the group would wait for them
    except BaseException:  # such as Stopped, which all processes raise together
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _agree(error: UserError, store: dist.Store) -> BaseException:
    """Wait GRACE seconds for reports of this error from others; return the exception that this process should raise."""

    def reports(kind: str) -> dict[int, str]:
        keys = {number: f"{kind} {number}" for number in range(size())}
        return {number: store.get(key).decode() for number, key in keys.items() if store.check([key])}

    kind = "lost" if isinstance(error, LostError) else "fault"
    try:
        store.set(f"{kind} {rank()}", str(error))
        time.sleep(GRACE)
        reason_known = kind == "lost" and bool(reports("fault"))
        same = [number for number, text in reports(kind).items() if kind == "lost" or text == str(error)]
    except RuntimeError:  # the process that hosted the store has ended
        return error
    if reason_known or same[0] < rank():
        return SystemExit(1)
    if kind == "lost" or len(same) == size():
        return error
    return UserError(f"rank{'s' * (len(same) > 1)} {', '.join(map(str, same))} of {size()} processes: {error}")


def wait_for_all() -> None:
    """Wait until every process has called this function."""
    total(torch.zeros(1))


def total(values: Tensor) -> Tensor:
    """Return the elementwise sum of the tensors of all processes, in every process."""
    if size() == 1:
        return values
    result = values.clone()
    with exchange():
        dist.all_reduce(result)
    return result


def any_of(flag: bool) -> bool:
    """Return whether `flag` is true in at least one process; the result is the same in every process."""
    return bool(total(torch.tensor(float(flag)))) if size() > 1 else flag


def from_first(thing: T) -> T:
    """Return the `thing` of the first process, in every process."""
    if size() == 1:
        return thing
    box = [thing]
    with exchange():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(thing: T) -> list[T]:
    """Return a list of the `thing` of every process, ordered by rank, in the first process; return [] in the others."""
    if size() == 1:
        return [thing]
    things: list[T] | None = [thing] * size() if leads() else None
    with exchange():
        dist.gather_object(thing, things, dst=0)
    return things or []


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's share of the items: every size()-th item, starting at the index rank()."""
    return items[rank() :: size()]


def in_order(part: Sequence[T]) -> list[T]:
    """Merge the shares of all processes (see `share`) into the original order, in the first process.

    The other processes return an empty list.
    """
    parts = gather(part)
    count = len(parts)
    return [parts[i % count][i // count] for i in range(sum(map(len, parts)))]


def parallel(model: nn.Module) -> nn.Module:
    """Wrap the model for training, so that gradients are averaged over the processes.

    On GPUs, batch normalisation then uses the statistics of the images of all processes. In a single process, the model
    is returned unchanged.
    """
    if size() == 1:
        return model
    device = next(model.parameters()).device
    gpus = None
    if device.type == "cuda":  # SyncBatchNorm supports only GPUs
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        gpus = [device.index]
    with exchange():
        return DistributedDataParallel(model, gpus)


def keep_gradients(network: nn.Module, when: bool) -> AbstractContextManager[None]:
    """In the `with` block, do not average gradients over processes if `when` is true. network: result of `parallel`."""
    return network.no_sync() if when and isinstance(network, DistributedDataParallel) else nullcontext()


def share_buffers(model: nn.Module) -> None:
    """Copy the model's buffers, such as batch normalisation statistics, from the first process to all others."""
    if size() > 1:
        with exchange():
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)
