"""What to do when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from fastrcnn.errors import UserError

# How errors read that have no separate class: torch's allocator on the CPU, libraries on a GPU, a loader's process
# that the system killed, or that found no shared memory.
SIGNS = ("DefaultCPUAllocator", "ALLOC_FAILED", "out of memory", "signal: Killed", "out of shared memory")


def ran_out(error: BaseException) -> bool:
    """Whether the error says that memory, the machine's or a GPU's, ran out."""
    named = isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    return named or isinstance(error, (MemoryError, torch.OutOfMemoryError))


@contextmanager
def advise(doing: str, device: torch.device, advice: Callable[[], str]) -> Iterator[None]:
    """Turns the end of memory in the body into a UserError.

    doing: what was being done; advice: gives the sizes in play, and which one to turn down by how much.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError(f"{doing}: {out_of_memory(error, device)}\n{advice()}") from None


def out_of_memory(error: BaseException, device: torch.device | None = None) -> str:
    """The error in a sentence, with the beginning of its text: how much was asked for, and what there is."""
    lines = str(error).strip().splitlines()
    said = ". ".join(lines[0].split(". ")[:3]).rstrip(".") if lines else ""
    return f"out of memory{f' on {device}' if device else ''}{f' ({said})' if said else ''}."


def training_advice(
    images: int, accumulate: int, short_sides: Sequence[int], long_side: int, rois: int, *, norm: bool, recompute: bool
) -> str:
    """For a training on batches of so many images, with so many RoIs of each, `accumulate` batches a step. norm: with
    batch normalisation; recompute: activations are computed twice already."""
    ways = []
    if images > 1:
        part = next(n for n in range(2, images + 1) if images % n == 0)
        same = "nearly the same gradient: batch normalisation sees fewer pictures" if norm else "the same gradient"
        ways.append(f"solver.images_per_batch={images // part} solver.accumulate={accumulate * part} ({same})")
    if not recompute:
        ways.append("runtime.checkpoint_activations=true (the same gradient; steps take longer)")
    halves = f"[{','.join(str(side // 2) for side in short_sides)}]"
    ways.append(f"data.short_sides={halves} data.long_side={long_side // 2} (a quarter of the pixels: less is learned)")
    return _text(
        f"solver.images_per_batch={images} pictures at a time, short side up to {max(short_sides)} and long side up to "
        f"{long_side} pixels, {rois} RoIs of each.",
        ways,
    )


def detection_advice(scales: Sequence[tuple[int, int]], images: int, rois: int, rois_per_chunk: int) -> str:
    """For a batch of so many images at each of the `scales` (height, width), with `rois` RoIs at most in one."""
    at_once = min(rois, rois_per_chunk)
    short, long = (size // 2 for size in max(sorted(scale) for scale in scales))
    return _text(
        f"{images} picture(s) at {', '.join(f'{h} x {w}' for h, w in scales)} pixels; {rois} RoIs, of which "
        f"detection.rois_per_chunk={rois_per_chunk} go through fc6 and fc7 at a time.",
        [
            f"detection.rois_per_chunk={max(at_once // 2, 1)} (the same result)",
            f"data.test_short_sides=[{short}] data.long_side={long} (a quarter of the pixels: small objects are lost)",
        ],
    )


def _text(sizes: str, ways: list[str]) -> str:
    return "\n".join([f"In memory: {sizes}", "What helps, what costs least first:", *(f"  {way}" for way in ways)])
