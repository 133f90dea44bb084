"""Measure the time of a batch, and write a profile of training for Perfetto and TensorBoard's profiler."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from fastrcnn.files import replace_file, write_atomically
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.sampling import RoISampler
from fastrcnn.structures import Batch
from fastrcnn.training.loop import Schedule, train
from fastrcnn.training.meter import Meter

log = logging.getLogger(__name__)
FIRST, LAST = 10, 20  # steps FIRST .. LAST - 1 are recorded; earlier steps are for warming up
TRIED = 2  # number of times that a batch is timed; the fastest time is used


def seconds_of_a_batch(
    model: FastRCNN,
    optimizer: torch.optim.Optimizer,
    sampler: RoISampler,
    batch: Batch,
    frozen: Callable[[Batch], Sequence[torch.Tensor]],
    plan: Schedule,
    done: int,
    dtype: torch.dtype,
    box_weight: float,
) -> tuple[float, float]:
    """Return two times in seconds: of the frozen layers for one batch, and of a training step that receives their maps.

    frozen: a function that computes the feature maps of the frozen layers for a batch. plan: the schedule of the run.
    done: number of steps that are already completed. The measured steps change only copies of the optimiser and of the
    trained layers. Raises NotFiniteError if a loss is not finite.
    """
    fixed = {id(p): p for p in model.parameters() if not p.requires_grad}
    model, optimizer = deepcopy((model, optimizer), fixed)
    given = frozen(batch)
    few = replace(plan, iterations=min(done + TRIED, plan.iterations))
    batches = [batch] * (TRIED * few.accumulate)
    steps = train(
        model, batches, sampler, optimizer, few, Meter(few.accumulate), done, dtype, box_weight, lambda _: given
    )
    return min(_seconds_between(frozen(batch) for _ in range(TRIED))), min(_seconds_between(steps))


def _seconds_between(events: Iterable[object]) -> list[float]:
    times = [time.monotonic()]
    for _ in events:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # otherwise the next event would include pending work
        times.append(time.monotonic())
    return [after - before for before, after in pairwise(times)]


@contextmanager
def profile_steps(batches: Iterable[Batch], folder: Path, accumulate: int = 1) -> Iterator[Iterable[Batch]]:
    """Yield an iterable of the same batches. While the training loop uses it, profile the steps 10 to 19.

    accumulate: number of batches per step. Step 0 is the first step of the run, or the first step after the run was
    resumed. The files in `folder` are steps-10-20.pt.trace.json, which contains every operation with its time, and
    steps-10-20.txt, which summarises the longest operations. If the loop ends earlier, they contain fewer steps.
    """
    written = []
    trace = folder / f"steps-{FIRST}-{LAST}.pt.trace.json"

    def write(found: profile) -> None:
        longest = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=longest, row_limit=30)
        name = f"steps-{FIRST}-{LAST}.txt"
        with write_atomically(trace) as part:
            try:
                found.export_chrome_trace(str(part))  # ignores a full disk, unlike the next line
                replace_file(folder / name, f"{table}\n".encode())
            finally:
                part.with_name(f"{part.name}.tmp").unlink(missing_ok=True)  # remains if the export failed
        log.info("Saved profile %s (open it in ui.perfetto.dev or TensorBoard) and its summary %s", trace, name)
        written.append(trace)

    def watch() -> Iterator[Batch]:
        source = iter(batches)
        while True:
            for _ in range(accumulate):
                with record_function("wait for data"):
                    batch = next(source, None)
                if batch is None:
                    return
                yield batch
            recorder.step()

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    phases = schedule(wait=FIRST - 1, warmup=1, active=LAST - FIRST, repeat=1)
    with profile(activities=activities, schedule=phases, on_trace_ready=write, record_shapes=True) as recorder:
        yield watch()
    if not written:
        log.warning("No profile was recorded, because the run ended after %d or fewer steps", FIRST)
