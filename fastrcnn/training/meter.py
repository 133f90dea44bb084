"""What is watched in training: losses, gradient, RoIs, speed, and the time that is lost waiting for pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastrcnn.model.loss import Losses
from fastrcnn.parallel import distributed
from fastrcnn.structures import Batch, RoITargets


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Euclidean length (), on the device, of the gradient of all that is trained."""
    slopes = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.nn.utils.get_total_norm(slopes)


class Meter:
    """Means over the steps since the last reading.

    accumulate: batches in a step.

    What the device computes is summed there and fetched when it is read, so that a GPU is not made to wait. The clock
    runs while a step is made, from asking for its first batch to its end: evaluations, checkpoints and pictures in
    between do not count.
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

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; each is waited for on the clock."""
        source = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(source, None)
            if batch is None:
                return
            self._since = asked if self._since is None else self._since
            self._waited += time.monotonic() - asked
            yield batch

    def add_batch(self, losses: Losses, logits: Tensor, targets: RoITargets, images: int, weight: float = 1.0) -> None:
        """What a batch of so many images gave; all on the device. weight: of its losses among the processes'."""
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
        loss, classification, box, foreground, right, norm = distributed.summed(self._sums).tolist()
        rois, images = distributed.summed(torch.tensor([self._rois, self._images])).tolist()
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
