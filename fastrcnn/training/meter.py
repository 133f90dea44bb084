"""Training metrics: losses, gradient norm, RoIs, speed, and the time spent waiting for images."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastrcnn.model.loss import Losses
from fastrcnn.parallel import distributed
from fastrcnn.progress import duration, silent
from fastrcnn.structures import Batch, RoITargets

log = logging.getLogger(__name__)
T = TypeVar("T")
FIRST = 5  # minimum number of steps, and of seconds, before the first estimate of the remaining time


class Meter:
    """Computes mean training metrics over the steps since the last call of `read`.

    accumulate: number of batches per step. Sums stay on the device until `read`, which avoids synchronising with a GPU.
    A step is timed from the request for its first batch to its end. Evaluations, checkpoints and drawing are not timed.
    """

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate = accumulate
        self.latest: dict[str, float] = {}  # the last result of `read`
        self._clear()

    def _clear(self) -> None:
        # (6,) float64: three losses, foreground RoIs, correctly classified foreground RoIs, gradient norm
        self._sums: Tensor | None = None
        self._steps = self._images = self._rois = 0
        self._seconds = self._waited = 0.0
        self._since: float | None = None  # start of the current step; None: between steps

    def _add(self, values: list[Tensor]) -> None:
        added = torch.stack([v.detach().double() for v in values])
        self._sums = added if self._sums is None else self._sums + added

    def time(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches and measure the time spent waiting for them."""
        source = iter(batches)
        asked = time.monotonic()
        while (batch := next(source, None)) is not None:
            self._since = asked if self._since is None else self._since
            self._waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def add_batch(self, losses: Losses, logits: Tensor, targets: RoITargets, images: int, weight: float = 1.0) -> None:
        """Add the results of a batch of `images` images. weight: factor by which its losses are multiplied."""
        foreground = targets.labels > 0
        right = foreground & (logits.argmax(dim=1) == targets.labels)
        shares = [v * (weight / self.accumulate) for v in (losses.total, losses.classification, losses.box)]
        self._add([*shares, foreground.sum(), right.sum(), losses.total.new_zeros(())])
        self._rois += len(targets.labels)
        self._images += images

    def add_step(self, norm: Tensor) -> None:
        """Record the end of a step. norm: the norm of its gradient, a scalar tensor."""
        zero = norm.new_zeros(())
        self._add([zero] * 5 + [norm])
        self._steps += 1
        assert self._since is not None
        self._seconds += time.monotonic() - self._since
        self._since = None

    def read(self) -> dict[str, float]:
        """Return the means over the steps of all processes, and reset the meter. Times are those of this process.

        The keys are the names in metrics.csv and TensorBoard, such as "train/loss".
        """
        assert self._sums is not None
        loss, classification, box, foreground, right, norm = distributed.total(self._sums).tolist()
        rois, images = distributed.total(torch.tensor([self._rois, self._images])).tolist()
        n, seconds = self._steps, max(self._seconds, 1e-9)
        each = n * distributed.size()
        self.latest = {
            "train/loss": loss / each,
            "train/loss_cls": classification / each,
            "train/loss_box": box / each,
            "train/accuracy_fg": right / max(foreground, 1),
            "train/rois": rois / n,
            "train/rois_fg": foreground / n,
            "train/fg_share": foreground / max(rois, 1),
            "train/grad_norm": norm / each,
            "train/steps_per_s": n / seconds,
            "train/images_per_s": images / seconds,
            "train/data_wait_share": self._waited / seconds,
        }
        self._clear()
        return self.latest


def show_progress(
    steps: Iterable[T],
    start: int,
    iterations: int,
    meter: Meter,
    evaluations: Callable[[int], float] = lambda _: 0.0,
    unsure: float = 0.25,
) -> Iterator[T]:
    """Yield the steps and show progress: a progress bar on a terminal, otherwise log lines at least 15 seconds apart.

    After a few steps, the estimated remaining time is logged. It is logged again if the estimate of the total time
    changes by more than the fraction `unsure`. start: number of steps that are already completed, of `iterations`.
    evaluations: a function that takes a number of completed steps and returns the seconds of all later evaluations.
    """
    terminal = sys.stderr.isatty()
    hidden = not terminal or silent()
    begun = said = asked = time.monotonic()
    stepping = 0.0  # seconds spent in steps, without evaluations and checkpoints
    expected: float | None = None  # estimated total time in seconds
    with tqdm(total=iterations, initial=start, desc="train", unit="step", dynamic_ncols=True, disable=hidden) as bar:
        for done, step in enumerate(steps, start + 1):
            stepping += time.monotonic() - asked
            yield step
            bar.update()
            asked = now = time.monotonic()
            if silent():
                continue
            left = stepping / (done - start) * (iterations - done)
            whole = now - begun + left + evaluations(done)
            if (
                done - start >= FIRST
                and now - begun >= FIRST
                and (expected is None or abs(whole - expected) > unsure * expected)
            ):
                text = "About %s left: %s for %d steps" if expected is None else "Now about %s left: %s for %d steps"
                later = evaluations(done)
                parts = duration(left + later), duration(left), iterations - done
                with logging_redirect_tqdm([logging.getLogger("fastrcnn")]) if terminal else nullcontext():
                    log.info(f"{text}{f', {duration(later)} for evaluation' if later >= 1 else ''}", *parts)
                expected = whole
            if not meter.latest or now - said < (1 if terminal else 15):
                continue
            said = now
            m = meter.latest
            text = f"loss {m['train/loss']:.3f} (class {m['train/loss_cls']:.3f}, box {m['train/loss_box']:.3f})"
            if terminal:
                bar.set_postfix_str(text)
            else:
                log.info("step %d/%d  %s  %s left", done, iterations, text, duration(left + evaluations(done)))
