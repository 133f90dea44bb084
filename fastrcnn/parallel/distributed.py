"""Several processes that do one job together, as torchrun starts them: which one this is, what they tell each other.

Everything here works in a single process too, which is number 0 of 1. The group is torch.distributed's own: NCCL
between GPUs, gloo between processors. All processes have to call these functions, in the same order.
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
PATIENCE = timedelta(hours=2)  # for the others' shares of an evaluation or of proposals; of a death torchrun tells
GRACE = 1.0  # seconds in which the others come to the same error
GONE = "another process of this job is gone: killed, perhaps because memory ran out. torchrun says below which it was."


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
    """Another process of the job is gone. reason: what torch says of it."""

    def __init__(self, reason: str, advice: str = "") -> None:
        self.reason = reason.partition("\n")[0]
        super().__init__(f"{GONE} (torch: {self.reason}){advice}")


@contextmanager
def exchange() -> Iterator[None]:
    """Raises LostError where what the body asks of the other processes fails. Its errors have no class in common:
    gloo's are RuntimeErrors. An end of memory passes."""
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or ran_out(error):
            raise
        raise LostError(str(error)) from error


@contextmanager
def join_processes(device: torch.device) -> Iterator[None]:
    """While the body runs, the processes of the job are one group. Where there is only one, nothing happens.

    A UserError that several of them raise leaves one process; the others raise SystemExit, without a message. Raises
    LostError where another process is gone and has not said why.
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
        raise _agree(error, dist.PrefixStore("errors", store)) from None
    except Exception:
        raise  # the others do not know of it, and would not answer
    except BaseException:  # an end that all have agreed on
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _agree(error: UserError, store: dist.Store) -> BaseException:
    """What this process is to raise instead, when the others have had a moment to come to the same error."""

    def said_by(kind: str) -> dict[int, str]:
        keys = {number: f"{kind} {number}" for number in range(size())}
        return {number: store.get(key).decode() for number, key in keys.items() if store.check([key])}

    kind = "lost" if isinstance(error, LostError) else "fault"
    try:
        store.set(f"{kind} {rank()}", str(error))
        time.sleep(GRACE)
        reason_known = kind == "lost" and bool(said_by("fault"))
        same = [number for number, text in said_by(kind).items() if kind == "lost" or text == str(error)]
    except RuntimeError:  # the store was another process's, and went with it
        return error
    if reason_known or same[0] < rank():
        return SystemExit(1)
    if kind == "lost" or len(same) == size():
        return error
    return UserError(f"process {', '.join(map(str, same))} of {size()}: {error}")


def wait_for_all() -> None:
    """Returns when every process has called it."""
    total(torch.zeros(1))


def total(values: Tensor) -> Tensor:
    """The sum of the processes' tensors, at each of them."""
    if size() == 1:
        return values
    result = values.clone()
    with exchange():
        dist.all_reduce(result)
    return result


def any_of(flag: bool) -> bool:
    """Whether it is true at one of the processes."""
    return bool(total(torch.tensor(float(flag)))) if size() > 1 else flag


def from_first(thing: T) -> T:
    """What the first process has."""
    if size() == 1:
        return thing
    box = [thing]
    with exchange():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(thing: T) -> list[T]:
    """The processes' things at the first, by number; at the others nothing."""
    if size() == 1:
        return [thing]
    things: list[T] | None = [thing] * size() if leads() else None
    with exchange():
        dist.gather_object(thing, things, dst=0)
    return things or []


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the items: every so many-th."""
    return items[rank() :: size()]


def in_order(part: Sequence[T]) -> list[T]:
    """At the first process the items whose shares the processes have, in their order; at the others nothing."""
    parts = gather(part)
    count = len(parts)
    return [parts[i % count][i // count] for i in range(sum(map(len, parts)))]


def parallel(model: nn.Module) -> nn.Module:
    """The model as training calls it: gradients become the mean of the processes', and on GPUs batch normalisation has
    the statistics of all their images. In a single process it is the model."""
    if size() == 1:
        return model
    device = next(model.parameters()).device
    gpus = None
    if device.type == "cuda":  # torch has it for GPUs alone
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        gpus = [device.index]
    with exchange():
        return DistributedDataParallel(model, gpus)


def keep_gradients(network: nn.Module, when: bool) -> AbstractContextManager[None]:
    """While the body runs, and if `when`, what `parallel` gave adds up gradients without telling the others."""
    return network.no_sync() if when and isinstance(network, DistributedDataParallel) else nullcontext()


def share_buffers(model: nn.Module) -> None:
    """Gives every process the first one's buffers: each has its own statistics of batch normalisation."""
    if size() > 1:
        with exchange():
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)
