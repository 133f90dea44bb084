"""Where the time of training goes, as a trace that Perfetto and TensorBoard's profiler plugin open."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from fastrcnn.structures import Batch

log = logging.getLogger(__name__)
FIRST, LAST = 10, 20  # steps from the first up to the last, which is not recorded; the earlier ones warm up


@contextmanager
def profile_steps(batches: Iterable[Batch], folder: Path, accumulate: int = 1) -> Iterator[Iterable[Batch]]:
    """The batches, for the training loop; what that does with the batches of steps 10 to 19 is recorded.

    accumulate: batches in a step. Steps are counted from 0, or from the one that a run resumes at. In the folder:
    steps-10-20.pt.trace.json, every operation with its time, and steps-10-20.txt, the longest ones summed up. A loop
    that ends earlier leaves what there is by then.
    """
    written = []
    trace = folder / f"steps-{FIRST}-{LAST}.pt.trace.json"

    def write(found: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(trace))
        longest = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=longest, row_limit=30)
        (folder / f"steps-{FIRST}-{LAST}.txt").write_text(table + "\n", encoding="utf-8")
        log.info("profile: %s (for ui.perfetto.dev or TensorBoard); summed up beside it, in .txt", trace)
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
        log.warning("profile: none, as the run was over before its step %d", FIRST)
