"""Advice for out-of-memory errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from fastrcnn.errors import UserError

# Texts that identify out-of-memory errors raised as plain RuntimeError. These errors come from torch's CPU allocator,
# from GPU libraries, and from loader processes that the system killed or that ran out of shared memory.
SIGNS = ("DefaultCPUAllocator", "ALLOC_FAILED", "out of memory", "signal: Killed", "out of shared memory")


def ran_out(error: BaseException) -> bool:
    """Return whether the error means that host or GPU memory ran out."""
    named = isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    return named or isinstance(error, (MemoryError, torch.OutOfMemoryError))


@contextmanager
def advise(doing: str, device: torch.device, advice: Callable[[], str]) -> Iterator[None]:
    """Raise UserError instead of an out-of-memory error that occurs in the `with` block.

    doing: the activity, such as "training", with which the message starts. advice: a function that returns the end of
    the message, which tells the user how to reduce memory use.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError(f"{doing}: {out_of_memory(error, device)}\n{advice()}") from None


def out_of_memory(error: BaseException, device: torch.device | None = None) -> str:
    """Return "out of memory on DEVICE (TEXT).", where TEXT is the start of the error's message, usually with sizes."""
    lines = str(error).strip().splitlines()
    said = ". ".join(lines[0].split(". ")[:3]).rstrip(".") if lines else ""
    return f"out of memory{f' on {device}' if device else ''}{f' ({said})' if said else ''}."


def training_advice(
    images: int, accumulate: int, short_sides: Sequence[int], long_side: int, rois: int, *, norm: bool, recompute: bool
) -> str:
    """Return advice for a user whose training ran out of memory: what is in memory, and which keys to change.

    images: number of images per batch. accumulate: number of batches per step. short_sides, long_side: image sizes in
    pixels. rois: number of RoIs per image. norm: whether the model has batch normalisation. recompute: whether
    activations are already recomputed in the backward pass.
    """
    ways = []
    if images > 1:
        part = next(n for n in range(2, images + 1) if images % n == 0)
        same = "nearly the same gradient: batch normalisation uses fewer images" if norm else "the same gradient"
        ways.append(f"solver.images_per_batch={images // part} solver.accumulate={accumulate * part} ({same})")
    if not recompute:
        ways.append("runtime.checkpoint_activations=true (the same gradient, but slower steps)")
    halves = f"[{','.join(str(side // 2) for side in short_sides)}]"
    ways.append(f"data.short_sides={halves} data.long_side={long_side // 2} (a quarter of the pixels; lower accuracy)")
    return _text(
        f"batches of {images} image{'s' if images > 1 else ''} (short side up to {max(short_sides)} pixels, long side "
        f"up to {long_side} pixels) with {rois} RoIs per image.",
        ways,
    )


def detection_advice(scales: Sequence[tuple[int, int]], images: int, rois: int, rois_per_chunk: int) -> str:
    """Return advice for a user whose detection ran out of memory: what is in memory, and which keys to change.

    scales: the (height, width) in pixels of the padded images, for each scale. images: number of images per batch.
    rois: maximum number of RoIs per image. rois_per_chunk: number of RoIs that the network processes together.
    """
    at_once = min(rois, rois_per_chunk)
    short, long = (size // 2 for size in max(sorted(scale) for scale in scales))
    return _text(
        f"{images} image{'s' if images > 1 else ''} of {' and '.join(f'{h} x {w}' for h, w in scales)} pixels, with up "
        f"to {rois} RoIs per image in chunks of up to {rois_per_chunk} RoIs.",
        [
            f"detection.rois_per_chunk={max(at_once // 2, 1)} (the same result)",
            f"data.test_short_sides=[{short}] data.long_side={long} (a quarter of the pixels; misses small objects)",
        ],
    )


def _text(sizes: str, ways: list[str]) -> str:
    head = "To use less memory, change these keys (one line at a time, starting with the first):"
    return "\n".join([f"In memory: {sizes}", head, *(f"  {way}" for way in ways)])
