"""The training loop."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastrcnn.errors import UserError
from fastrcnn.inference.network import autocast, full_precision
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.loss import fast_rcnn_loss
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel import distributed
from fastrcnn.progress import silent
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

    In a group of processes (see distributed.py) each brings its own pictures of a step. The gradient is that of one
    process with all of them, with the same RoIs; dropout is drawn, and pictures are padded, by each for itself. All
    end after the same step, where one is to. `failed` is called in the first process alone, the other three in each.
    """
    device = model.delta_mean.device
    sent = partial(torch.Tensor.to, device=device, non_blocking=True)  # the GPU is still at work on the last step
    network = distributed.parallel(model)
    processes, number = distributed.size(), distributed.rank()
    model.train()
    meter = Meter(schedule.accumulate)
    for step, part, batch in _with_progress(loader, schedule, meter):
        which = [part, number] if number else [part] if part else []
        dropout_seed = seed_of(schedule.seed, step, 0, *which)
        torch.manual_seed(dropout_seed)
        if part == 0:
            set_rate(optimizer, schedule.rate(step))
            optimizer.zero_grad(set_to_none=True)

        first = (part * processes + number) * len(batch.images)  # the number, in the step, of the first picture
        seeds = [seed_of(schedule.seed, step, 1, first + i) for i in range(len(batch.images))]
        rois, targets = sampler(batch.proposals, batch.boxes, batch.labels, seeds)
        on_device = replace(targets, labels=sent(targets.labels), deltas=sent(targets.deltas))
        last_part = part + 1 == schedule.accumulate
        with distributed.unshared(network, not last_part), autocast(device, dtype):
            logits, deltas = network(sent(batch.images), sent(rois), sent(batch.sizes), sent(batch.scales))
        losses = fast_rcnn_loss(logits, deltas, on_device, box_weight)

        broken = not math.isfinite(losses.total.item())
        all_rois, any_broken = distributed.summed(torch.tensor([len(rois), broken], dtype=torch.float64)).tolist()
        if any_broken:
            proof = evidence(batch, rois, targets, losses, dropout_seed, dtype, box_weight) if broken else None
            _refuse(step, schedule.rate(step), proof, failed)
        # DDP takes the mean over the processes; the loss is that over all RoIs, of which another may have more.
        weight = len(rois) * processes / max(all_rois, 1)
        with distributed.unshared(network, not last_part), full_precision(dtype):
            (losses.total * (weight / schedule.accumulate)).backward()
        meter.add_batch(losses, logits.detach(), on_device, len(batch.images), weight)
        if not last_part:
            continue
        norm = gradient_norm(optimizer)
        optimizer.step()

        done = step + 1
        meter.add_step(norm)
        if done % schedule.log_every == 0 or done == schedule.iterations:
            tracker.scalars(done, meter.read() | {"train/lr": schedule.rate(step)})
            log.debug("step %d: %s", done, ", ".join(f"{n[6:]} {v:.4g}" for n, v in meter.latest.items()))
        if schedule.pictures_every and (done % schedule.pictures_every == 0 or step == schedule.start):
            draw(done, batch, rois, targets)
        last = done == schedule.iterations
        evaluation_due = last or (schedule.evaluate_every > 0 and done % schedule.evaluate_every == 0)
        saved = evaluation_due or done % schedule.checkpoint_every == 0  # an evaluation may be long, or abandoned
        if saved:
            save(done)
        if evaluation_due:
            distributed.share_buffers(model)
            evaluate(done)
            model.train()
        if distributed.any_of(interrupted()) and not last:
            if not saved:
                save(done)
            raise Interrupted(done)


def _refuse(
    step: int, rate: float, proof: dict[str, Any] | None, failed: Callable[[int, dict[str, Any]], Path] | None
) -> None:
    """Ends all processes over a loss that is not finite; proof: of those where it was, see replay.py."""
    proofs = [p for p in distributed.gathered(proof) if p is not None]
    text = ""
    if proofs:
        first = proofs[0]
        total = first["loss_cls"] + first["box_weight"] * first["loss_box"]
        text = (
            f"step {step}: the loss is {total}. The weights were not changed by this step; its pictures: "
            f"{', '.join(first['image_ids'])}. Try a lower rate (solver.lr is {rate:g} here) or solver.warmup."
        )
        if failed is not None:
            text += f"\nThe step is kept; to look at it again: fastrcnn replay {failed(step, first)}"
    raise UserError(distributed.from_first(text))


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
        disable=not terminal or silent(),
    ) as bar:
        places = ((step, part) for step in steps for part in range(schedule.accumulate))
        for (step, part), batch in zip(places, meter.timed(loader), strict=False):
            yield step, part, batch
            if part + 1 < schedule.accumulate:
                continue
            bar.update()
            now = time.monotonic()
            if silent() or not meter.latest or now - said < (1 if terminal else 15):
                continue
            said = now
            m = meter.latest
            text = f"loss {m['train/loss']:.3f} (class {m['train/loss_cls']:.3f}, box {m['train/loss_box']:.3f})"
            if terminal:
                bar.set_postfix_str(text)
            else:
                left = (now - start) / (step + 1 - schedule.start) * (schedule.iterations - step - 1)
                log.info("step %d/%d  %s  %.0f s left", step + 1, schedule.iterations, text, left)
