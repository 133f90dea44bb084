"""The training loop: sample RoIs, run the model, compute the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrcnn.data.loader import with_pixels
from fastrcnn.errors import UserError
from fastrcnn.inference.network import Inputs, autocast, full_precision, images_on
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.loss import fast_rcnn_loss
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel import distributed
from fastrcnn.structures import Batch, RoITargets
from fastrcnn.training.meter import Meter
from fastrcnn.training.optim import clip_gradients, set_rate
from fastrcnn.training.replay import evidence


@dataclass(frozen=True)
class Schedule:
    """When things happen, in steps.

    rate: the learning rate of a step, counted from 0. accumulate: batches in a step, see train. clip_gradients: the
    largest Euclidean norm of a step's gradient; a longer gradient is scaled down to it.
    """

    iterations: int
    rate: Callable[[int], float]
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 0  # 0: only at the end
    checkpoint_every: int = 1000
    pictures_every: int = 500
    accumulate: int = 1
    clip_gradients: float = math.inf

    def evaluates_after(self, done: int) -> bool:
        """Whether the model is evaluated after so many steps."""
        return done == self.iterations or (self.evaluate_every > 0 and done % self.evaluate_every == 0)


@dataclass(frozen=True)
class Step:
    """A step that was taken, and the last of its batches."""

    done: int  # steps, with this one
    batch: Batch
    rois: Tensor  # (K, 5)
    targets: RoITargets


class NotFiniteError(UserError):
    """The loss of a step is not finite. evidence: in the first process, all that went into the step (see replay.py)."""

    def __init__(self, step: int, text: str, evidence: dict[str, Any] | None) -> None:
        super().__init__(text)
        self.step = step
        self.evidence = evidence


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits that depends on all the numbers (splitmix64's finisher over their sequence)."""
    value = 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value ^= value >> 31
    return value >> 1


def train(
    model: FastRCNN,
    loader: Iterable[Batch],
    sampler: RoISampler,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    meter: Meter,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    box_weight: float = 1.0,
    inputs: Inputs | None = None,
) -> Iterator[Step]:
    """Trains `model` from step `start` to the schedule's end, and yields each step when it is taken. The
    loader has as many batches as that takes, or more.

    Everything random in a step, which RoIs are drawn and what dropout drops, follows from the seed and the step's
    number alone, so a run that is interrupted and resumed is the same run.

    A step takes `schedule.accumulate` batches, and its loss is the mean of theirs, each divided by its own number of
    RoIs: that of one batch of all their images, if every image gives as many RoIs. RoIs are drawn as from that batch
    too. What differs is batch normalisation, whose statistics are those of each batch; dropout, a draw for each; and
    padding, where images differ in size.

    In a group of processes (see distributed.py) each brings its own images of a step. The gradient is that of one
    process with all of them, with the same RoIs; each process draws dropout and pads images for itself.

    inputs: what the model is given of a batch; None: its images.

    Raises NotFiniteError, in all processes, before the weights are changed.
    """
    device = model.delta_mean.device
    network = distributed.parallel(model)
    inputs = inputs or images_on(device)
    batches = iter(meter.time(loader))
    for step in range(start, schedule.iterations):
        model.train()
        set_rate(optimizer, schedule.rate(step))
        optimizer.zero_grad(set_to_none=True)
        for part in range(schedule.accumulate):
            batch = next(batches)
            dropout_seed, roi_seeds = seeds_of(schedule.seed, step, part, len(batch.samples))
            torch.manual_seed(dropout_seed)
            rois, targets = sampler(batch.proposals, batch.boxes, batch.labels, roi_seeds)
            given = inputs(batch)
            sent_rois, sizes, scales = send(device, rois, batch.sizes, batch.scales)
            sent_targets = RoITargets(*send(device, targets.labels, targets.deltas))
            with distributed.keep_gradients(network, part + 1 < schedule.accumulate):
                with distributed.exchange(), autocast(device, dtype):  # of the statistics of batch normalisation
                    logits, deltas = network(given, sent_rois, sizes, scales)
                losses = fast_rcnn_loss(logits, deltas, sent_targets, box_weight)
                broken = not math.isfinite(losses.total.item())
                weight, any_broken = share_of_loss(len(rois), broken)
                if any_broken:
                    proof = evidence(with_pixels(batch), rois, targets, losses, dropout_seed, dtype, box_weight)
                    raise not_finite(step, schedule.rate(step), proof if broken else None)
                with distributed.exchange(), full_precision(dtype):  # of the gradients
                    (losses.total * (weight / schedule.accumulate)).backward()
            meter.add_batch(losses, logits.detach(), sent_targets, len(batch.samples), weight)
        norm = clip_gradients(optimizer, schedule.clip_gradients)
        optimizer.step()
        meter.add_step(norm)
        yield Step(step + 1, batch, rois, targets)


def seeds_of(seed: int, step: int, part: int, images: int) -> tuple[int, list[int]]:
    """The seed of dropout, and one for each image's RoIs, of this process's batch number `part` of a step."""
    processes, number = distributed.size(), distributed.rank()
    which = [part, number] if number else [part] if part else []
    first = (part * processes + number) * images  # the number, in the step, of the first image
    return seed_of(seed, step, 0, *which), [seed_of(seed, step, 1, first + i) for i in range(images)]


def send(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """The tensors on the device, which may still be computing the last step."""
    return [t.to(device=device, non_blocking=True) for t in tensors]


def share_of_loss(rois: int, broken: bool) -> tuple[float, bool]:
    """The factor on this process's loss, a mean over its RoIs, and whether the loss of any process is broken.

    The mean over the processes, which DistributedDataParallel takes, of losses times their factors is the mean over
    all RoIs.
    """
    all_rois, any_broken = distributed.total(torch.tensor([rois, broken], dtype=torch.float64)).tolist()
    return rois * distributed.size() / max(all_rois, 1), bool(any_broken)


def not_finite(step: int, rate: float, proof: dict[str, Any] | None) -> NotFiniteError:
    """The error for all processes; proof: the evidence of a process whose loss is not finite."""
    proofs = [p for p in distributed.gather(proof) if p is not None]
    text = ""
    if proofs:
        first = proofs[0]
        total = first["loss_cls"] + first["box_weight"] * first["loss_box"]
        text = (
            f"step {step}: the loss is {total}. The weights were not changed by this step; its pictures: "
            f"{', '.join(first['image_ids'])}. Try a lower rate (solver.lr is {rate:g} here), a longer "
            "solver.warmup, or a limit of the gradient's norm (solver.clip_gradients)."
        )
    return NotFiniteError(step, distributed.from_first(text), proofs[0] if proofs else None)
