"""Activation checkpointing: layers computed a second time on the way back, instead of keeping what they gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from torch import nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recompute(function: Callable[..., T], *arguments: object, norms: list[nn.BatchNorm2d]) -> T:
    """What the function, in which nothing is random, gives, keeping only its arguments for the way back.

    norms: the batch normalisations within, whose running statistics are to see each batch once.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _keep_statistics(norms)

    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _keep_statistics(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    """In training a batch normalisation moves its statistics by 0 and counts on a copy."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
