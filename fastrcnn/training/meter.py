"""What is watched in training: losses, gradient, RoIs, speed, and the time that is lost waiting for images."""

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
FIRST = 5  # steps, and seconds, that an estimate is made of


class Meter:
    """Means over the steps since the last reading.

    accumulate: batches in a step. What the device computes is summed there and fetched when it is read, so that a GPU
    does not wait. The clock runs while a step is made, from asking for its first batch to its end: evaluations,
    checkpoints and drawings in between do not count.
    """

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate = accumulate
        self.latest: dict[str, float] = {}  # the last reading
        self._clear()

    def _clear(self) -> None:
        self._sums: Tensor | None = None  # (6,) float64: three losses, foreground, that classified rightly, gradient
        self._steps = self._images = self._rois = 0
        self._seconds = self._waited = 0.0
        self._since: float | None = None  # when the clock was started; None: it stands

    def _add(self, values: list[Tensor]) -> None:
        added = torch.stack([v.detach().double() for v in values])
        self._sums = added if self._sums is None else self._sums + added

    def time(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; waiting for them counts."""
        source = iter(batches)
        asked = time.monotonic()
        while (batch := next(source, None)) is not None:
            self._since = asked if self._since is None else self._since
            self._waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def add_batch(self, losses: Losses, logits: Tensor, targets: RoITargets, images: int, weight: float = 1.0) -> None:
        """Counts what a batch of so many images gave. weight: of its losses among the processes'."""
        foreground = targets.labels > 0
        right = foreground & (logits.argmax(dim=1) == targets.labels)
        shares = [v * (weight / self.accumulate) for v in (losses.total, losses.classification, losses.box)]
        self._add([*shares, foreground.sum(), right.sum(), losses.total.new_zeros(())])
        self._rois += len(targets.labels)
        self._images += images

    def add_step(self, norm: Tensor) -> None:
        """The end of a step with a gradient of this length."""
        zero = norm.new_zeros(())
        self._add([zero] * 5 + [norm])
        self._steps += 1
        assert self._since is not None
        self._seconds += time.monotonic() - self._since
        self._since = None

    def read(self) -> dict[str, float]:
        """The means, over all processes, by the names that they have in metrics.csv and TensorBoard; begins anew. The
        clock is this process's."""
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
    """The steps, of which `start` are done; with a bar on a terminal, else with a line in the log now and then.

    After a few steps the log says how long all of it will take, and again where that has changed by `unsure` of it.
    evaluations: the seconds that those take which come after so many steps.
    """
    terminal = sys.stderr.isatty()
    hidden = not terminal or silent()
    begun = said = asked = time.monotonic()
    stepping = 0.0  # seconds; evaluations and checkpoints come between steps
    expected: float | None = None  # seconds from beginning to end
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
                text = "about %s left: %d steps %s" if expected is None else "now about %s left: %d steps %s"
                later = evaluations(done)
                parts = duration(left + later), iterations - done, duration(left)
                with logging_redirect_tqdm([logging.getLogger("fastrcnn")]) if terminal else nullcontext():
                    log.info(f"{text}{f', evaluation {duration(later)}' if later >= 1 else ''}", *parts)
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
