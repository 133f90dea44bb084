"""The training loop: sample RoIs, run the model, compute the loss, update the weights."""

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
    """The schedule of training, in steps.

    rate: a function that returns the learning rate of a step (counted from 0). accumulate: number of batches per step.
    clip_gradients: maximum Euclidean norm of a step's gradient; a gradient with a larger norm is scaled down.
    """

    iterations: int  # number of steps
    rate: Callable[[int], float]
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 0  # 0: only at the end
    checkpoint_every: int = 1000
    images_every: int = 500  # interval between drawings of RoIs for TensorBoard; 0: none
    accumulate: int = 1
    clip_gradients: float = math.inf

    def evaluates_after(self, done: int) -> bool:
        """Return whether the model is evaluated after `done` steps."""
        return done == self.iterations or (self.evaluate_every > 0 and done % self.evaluate_every == 0)

    def evaluations_left(self, done: int) -> int:
        """Return the number of evaluations after later steps, if `done` steps are complete."""
        last, every = self.iterations, self.evaluate_every
        regular = last // every - done // every if every else 0
        return regular + (done < last and not (every and last % every == 0))


@dataclass(frozen=True)
class Step:
    """A completed step, with the RoIs and targets of its last batch."""

    done: int  # number of completed steps, including this one
    batch: Batch
    rois: Tensor  # (K, 5): index in the batch, then half-open x1 y1 x2 y2 in pixels before scaling
    targets: RoITargets


class NotFiniteError(UserError):
    """The loss of a step is not finite. evidence: the inputs of the step in the first process, None in the others."""

    def __init__(self, step: int, text: str, evidence: dict[str, Any] | None) -> None:
        super().__init__(text)
        self.step = step
        self.evidence = evidence


def seed_of(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all the numbers (splitmix64's finalizer, applied to the sequence)."""
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
    """Train `model` from step `start` (counted from 0) to the end of the schedule, and yield each completed step.

    The loader must have enough batches. The random choices in a step (its RoIs and dropout) depend only on the seed and
    the step's number. A resumed run therefore takes the same steps as an uninterrupted one.

    A step uses `schedule.accumulate` batches. The loss of a batch is divided by its number of RoIs, and the loss of the
    step is the mean over its batches. If every image has the same number of RoIs, this equals the loss of one large
    batch of the same images, and the same RoIs are drawn. Three things differ: batch normalisation uses the statistics
    of each batch, dropout is drawn for each batch, and images are padded to the largest size in each batch.

    In a group of processes (see distributed.py), each process has its own share of the images of a step. The RoIs
    and the gradient equal those of a single process with all images, except that each process draws dropout and pads
    images separately.

    dtype: dtype of the forward pass, float32 or bfloat16. box_weight: weight of the box regression loss. inputs: a
    function that computes the model's input from a batch, by default the images of the batch.

    If the loss is not finite in any process, raises NotFiniteError in all processes, before the weights change.
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
                with distributed.exchange(), autocast(device, dtype):  # communicates batch normalisation statistics
                    logits, deltas = network(given, sent_rois, sizes, scales)
                losses = fast_rcnn_loss(logits, deltas, sent_targets, box_weight)
                broken = not math.isfinite(losses.total.item())
                weight, any_broken = share_of_loss(len(rois), broken)
                if any_broken:
                    proof = evidence(with_pixels(batch), rois, targets, losses, dropout_seed, dtype, box_weight)
                    raise not_finite(step, schedule.rate(step), proof if broken else None)
                with distributed.exchange(), full_precision(dtype):  # communicates gradients
                    (losses.total * (weight / schedule.accumulate)).backward()
            meter.add_batch(losses, logits.detach(), sent_targets, len(batch.samples), weight)
        norm = clip_gradients(optimizer, schedule.clip_gradients)
        optimizer.step()
        meter.add_step(norm)
        yield Step(step + 1, batch, rois, targets)


def seeds_of(seed: int, step: int, part: int, images: int) -> tuple[int, list[int]]:
    """Return the seed of dropout for a batch, and a list with the seed of the RoIs of each of its `images` images.

    part: index of the batch in the step and in this process.
    """
    processes, number = distributed.size(), distributed.rank()
    which = [part, number] if number else [part] if part else []
    first = (part * processes + number) * images  # index of the batch's first image in the step
    return seed_of(seed, step, 0, *which), [seed_of(seed, step, 1, first + i) for i in range(images)]


def send(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Return copies of the tensors on the device, without waiting until the device has finished its current work."""
    return [t.to(device=device, non_blocking=True) for t in tensors]


def share_of_loss(rois: int, broken: bool) -> tuple[float, bool]:
    """Return the factor for this process's loss, and whether the loss of any process is not finite.

    broken: whether the loss of this process is not finite. A process's loss is a mean over its `rois` RoIs, and
    DistributedDataParallel averages gradients over the processes. With these factors, the average is the mean over the
    RoIs of all processes.
    """
    all_rois, any_broken = distributed.total(torch.tensor([rois, broken], dtype=torch.float64)).tolist()
    return rois * distributed.size() / max(all_rois, 1), bool(any_broken)


def not_finite(step: int, rate: float, proof: dict[str, Any] | None) -> NotFiniteError:
    """Return the error that every process raises. proof: the step's inputs if this process's loss is not finite."""
    proofs = [p for p in distributed.gather(proof) if p is not None]
    text = ""
    if proofs:
        first = proofs[0]
        total = first["loss_cls"] + first["box_weight"] * first["loss_box"]
        text = (
            f"step {step}: the loss is {total}. This step did not change the weights. Its images are "
            f"{', '.join(first['image_ids'])}. Try a lower solver.lr (the learning rate of this step is {rate:g}), a "
            "longer solver.warmup, or a limit on the gradient norm (solver.clip_gradients)."
        )
    return NotFiniteError(step, distributed.from_first(text), proofs[0] if proofs else None)
