"""The training loop."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastrcnn.errors import UserError
from fastrcnn.inference import autocast
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.loss import fast_rcnn_loss
from fastrcnn.model.sampling import RoISampler
from fastrcnn.structures import Batch, RoITargets
from fastrcnn.training.meter import Meter, gradient_norm
from fastrcnn.training.optim import set_rate
from fastrcnn.training.replay import evidence
from fastrcnn.training.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """When things happen, in steps.

    iterations: steps in all; start: steps already done by the run that goes on.
    rate: the learning rate of a step, counted from 0.
    accumulate: batches in a step, see train.
    """

    iterations: int
    rate: Callable[[int], float]
    start: int = 0
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 0  # 0: only at the end
    checkpoint_every: int = 1000
    pictures_every: int = 500
    accumulate: int = 1


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits that depends on all the numbers (splitmix64's finisher over their sequence)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value ^= value >> 31
    return value >> 1


class Interrupted(Exception):  # noqa: N818 - no error
    """The run was asked to end, and did so after `step` steps, which are saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.step = step


def train(
    model: FastRCNN,
    loader: Iterable[Batch],
    sampler: RoISampler,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    tracker: Tracker,
    *,
    save: Callable[[int], None],
    evaluate: Callable[[int], None],
    draw: Callable[[int, Batch, torch.Tensor, RoITargets], None],
    failed: Callable[[int, dict[str, Any]], Path] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    dtype: torch.dtype = torch.float32,
    box_weight: float = 1.0,
) -> None:
    """Trains `model` from step `schedule.start` to its end.

    Everything random in a step, which RoIs are drawn and what dropout drops, follows from the seed and the step's
    number alone, so a run that was interrupted and goes on is the same run.

    A step takes `schedule.accumulate` batches from the loader, and its loss is the mean of theirs, each divided by its
    own number of RoIs: that of one batch of all their pictures, where every picture gives as many RoIs. RoIs are drawn
    as from that batch too. What differs is batch normalisation, whose statistics are those of each batch; dropout, a
    draw for each; and padding, where pictures differ in size.

    save, evaluate: called with the number of steps done; draw: with a batch, its RoIs and their targets as well.
    failed: where the loss is not finite, called with the step and all that went into it (see replay.py); returns the
        file that it was written to.
    interrupted: called once after each step, when all that belongs to it is done; where it is true, the run ends.
    Raises Interrupted, the step being saved, where it is to end before its last step; and UserError when the loss is
    no longer finite, before the weights are changed.
    """
    device = model.delta_mean.device
    model.train()
    meter = Meter(schedule.accumulate)
    for step, part, batch in _with_progress(loader, schedule, meter):
        dropout_seed = seed_of(schedule.seed, step, 0, *([part] if part else []))
        torch.manual_seed(dropout_seed)
        if part == 0:
            set_rate(optimizer, schedule.rate(step))
            optimizer.zero_grad(set_to_none=True)

        first = part * len(batch.images)  # number, in the step, of the batch's first picture
        seeds = [seed_of(schedule.seed, step, 1, first + i) for i in range(len(batch.images))]
        rois, targets = sampler(batch.proposals, batch.boxes, batch.labels, seeds)
        on_device = replace(targets, labels=targets.labels.to(device), deltas=targets.deltas.to(device))
        with autocast(device, dtype):
            logits, deltas = model(
                batch.images.to(device), rois.to(device), batch.sizes.to(device), batch.scales.to(device)
            )
        losses = fast_rcnn_loss(logits, deltas, on_device, box_weight)

        total = losses.total.item()
        if not math.isfinite(total):
            ids = ", ".join(s.image_id for s in batch.samples)
            where = ""
            if failed is not None:
                file = failed(step, evidence(batch, rois, targets, losses, dropout_seed, dtype, box_weight))
                where = f"\nThe step is kept; to look at it again: fastrcnn replay {file}"
            raise UserError(
                f"step {step}: the loss is {total}. The weights were not changed by this step; its pictures: {ids}. "
                f"Try a lower rate (solver.lr is {schedule.rate(step):g} here) or solver.warmup.{where}"
            )
        (losses.total / schedule.accumulate).backward()
        meter.add_batch(losses, logits.detach(), on_device, len(batch.images))
        if part + 1 < schedule.accumulate:
            continue
        norm = gradient_norm(optimizer)
        optimizer.step()

        done = step + 1
        meter.add_step(norm)
        if done % schedule.log_every == 0 or done == schedule.iterations:
            tracker.scalars(done, meter.read() | {"train/lr": schedule.rate(step)})
        if schedule.pictures_every and (done % schedule.pictures_every == 0 or step == schedule.start):
            draw(done, batch, rois, targets)
        last = done == schedule.iterations
        evaluation_due = last or (schedule.evaluate_every > 0 and done % schedule.evaluate_every == 0)
        saved = evaluation_due or done % schedule.checkpoint_every == 0  # an evaluation may be long, or abandoned
        if saved:
            save(done)
        if evaluation_due:
            evaluate(done)
            model.train()
        if interrupted() and not last:
            if not saved:
                save(done)
            raise Interrupted(done)


def _with_progress(loader: Iterable[Batch], schedule: Schedule, meter: Meter) -> Iterator[tuple[int, int, Batch]]:
    """Steps, numbers of a batch in its step, batches; with a bar on a terminal, else a line in the log now and then."""
    terminal = sys.stderr.isatty()
    steps = range(schedule.start, schedule.iterations)
    start = said = time.monotonic()
    with tqdm(
        total=schedule.iterations,
        initial=schedule.start,
        desc="train",
        unit="step",
        dynamic_ncols=True,
        disable=not terminal,
    ) as bar:
        places = ((step, part) for step in steps for part in range(schedule.accumulate))
        for (step, part), batch in zip(places, meter.timed(loader), strict=False):
            yield step, part, batch
            if part + 1 < schedule.accumulate:
                continue
            bar.update()
            now = time.monotonic()
            if not meter.latest or now - said < (1 if terminal else 15):
                continue
            said = now
            m = meter.latest
            text = f"loss {m['train/loss']:.3f} (class {m['train/loss_cls']:.3f}, box {m['train/loss_box']:.3f})"
            if terminal:
                bar.set_postfix_str(text)
            else:
                left = (now - start) / (step + 1 - schedule.start) * (schedule.iterations - step - 1)
                log.info("step %d/%d  %s  %.0f s left", step + 1, schedule.iterations, text, left)
