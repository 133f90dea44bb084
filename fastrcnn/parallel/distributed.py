"""Several processes that do one job together, as torchrun starts them: which one this is, what they tell each other.

Everything here works in a process alone too, which is number 0 of 1. The group is torch.distributed's own: NCCL between
GPUs, gloo between processors. What all of them have to do, and in the same order, is to call these functions.
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

from fastrcnn.errors import UserError
from fastrcnn.parallel.launch import launch

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # for the others' shares of an evaluation or of proposals; of a death torchrun tells
GRACE = 1.0  # seconds in which the others come to the same error
GONE = "another process of this job is gone: killed, perhaps for want of memory. torchrun says below which it was."
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")


def rank() -> int:
    """The number of this process among those that have joined."""
    return dist.get_rank() if _several() else 0


def size() -> int:
    """How many processes have joined."""
    return dist.get_world_size() if _several() else 1


def leads() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return rank() == 0


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


class LostError(UserError):
    """Another process of the job is gone."""


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """While the body runs, the processes of the job are one group. Where there is only one, nothing happens.

    A UserError that leaves the body leaves one process alone of those that it is the same for; the others' is
    SystemExit, in silence. Raises LostError where another process is gone and has not said why.
    """
    if launch().size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, processes = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"start {launch().attempt}", store)  # else gloo finds addresses of processes that are gone
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=number, world_size=processes, timeout=PATIENCE)
    try:
        yield
    except UserError as error:
        raise _said_once(error, dist.PrefixStore("errors", store)) from None
    except RuntimeError as error:
        if not lost(error):
            raise
        raise _said_once(LostError(GONE), dist.PrefixStore("errors", store)) from None
    except Exception:
        raise  # the others do not know of it: not to be waited for
    except BaseException:  # an end that all have agreed on
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _said_once(error: UserError, store: dist.Store) -> BaseException:
    """What this process is to raise instead, when the others have had a moment to come to the same error."""
    try:
        kind = "lost" if isinstance(error, LostError) else "fault"
        store.set(f"{kind} {rank()}", str(error))
        time.sleep(GRACE)
        faults = {number: text for number in range(size()) if (text := _kept(store, f"fault {number}")) is not None}
        same = [number for number in range(size()) if _kept(store, f"{kind} {number}") == str(error)]
    except RuntimeError:  # the store was another process's, and went with it
        return error
    if (kind == "lost" and faults) or same[0] < rank():
        return SystemExit(1)
    if kind == "lost" or len(same) == size():
        return error
    return UserError(f"process {', '.join(map(str, same))} of {size()}: {error}")


def _kept(store: dist.Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None


def wait_for_all() -> None:
    """Returns when every process has called it."""
    summed(torch.zeros(1))


def summed(values: Tensor) -> Tensor:
    """The sum of the processes' tensors, at each of them."""
    if size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def any_of(flag: bool) -> bool:
    """Whether it is true at one of the processes."""
    return bool(summed(torch.tensor(float(flag)))) if size() > 1 else flag


def from_first(thing: T) -> T:
    """What the first process has."""
    if size() == 1:
        return thing
    box = [thing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(thing: T) -> list[T]:
    """The processes' things at the first, by number; at the others nothing."""
    if size() == 1:
        return [thing]
    things: list[T] | None = [thing] * size() if leads() else None
    dist.gather_object(thing, things, dst=0)
    return things or []


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the items: every so many-th."""
    return items[rank() :: size()]


def in_order(part: Sequence[T]) -> list[T]:
    """At the first process the items whose shares the processes have, in their order; at the others nothing."""
    parts = gathered(part)
    count = len(parts)
    return [parts[i % count][i // count] for i in range(sum(map(len, parts)))]


def parallel(model: nn.Module) -> nn.Module:
    """The model as training calls it: gradients become the mean of the processes', and on GPUs batch normalisation has
    the statistics of all their pictures. In a process alone it is the model."""
    if size() == 1:
        return model
    device = next(model.parameters()).device
    if device.type != "cuda":  # torch has it for GPUs alone
        return nn.parallel.DistributedDataParallel(model)
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index])


def unshared(network: nn.Module, when: bool) -> AbstractContextManager[None]:
    """While the body runs, and if `when`, what `parallel` gave adds up gradients without telling the others."""
    return network.no_sync() if when and isinstance(network, nn.parallel.DistributedDataParallel) else nullcontext()


def share_buffers(model: nn.Module) -> None:
    """Gives every process the first one's buffers: statistics of batch normalisation, which each has of its own."""
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def lost(error: Exception) -> bool:
    """Whether the error means that another process is gone."""
    return size() > 1 and isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST)
