"""A training run: initialise or resume it, train, evaluate and save at intervals, and end it cleanly."""

from __future__ import annotations

import errno
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from fastrcnn.config.values import as_yaml
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import WorkerDiedError, detection_loader, training_loader, with_pixels
from fastrcnn.errors import UserError
from fastrcnn.evaluation.evaluate import Evaluation
from fastrcnn.evaluation.voc_ap import best_threshold
from fastrcnn.files import remove_parts
from fastrcnn.inference.detect import detect
from fastrcnn.inference.evaluate import evaluate
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.memory import advise
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.head import parameter_count
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel import distributed
from fastrcnn.parallel.launch import launch
from fastrcnn.parallel.signals import Stop, Stopped
from fastrcnn.progress import duration
from fastrcnn.settings import DetectionSettings, Metric
from fastrcnn.structures import Batch, View
from fastrcnn.training import checkpoint
from fastrcnn.training.initial import initialise
from fastrcnn.training.loop import NotFiniteError, Schedule, Step, train
from fastrcnn.training.maps import Maps, open_maps
from fastrcnn.training.meter import Meter, show_progress
from fastrcnn.training.profiling import profile_steps, seconds_of_a_batch
from fastrcnn.training.resume import load_newest, log_changes
from fastrcnn.training.tracking import (
    EVALUATED,
    Silent,
    Tracker,
    claim,
    describe_run,
    hide_tensorboard_errors,
    log_to,
    refuse_used,
)
from fastrcnn.visualize import draw_batch

log = logging.getLogger(__name__)
TIMED = 2  # number of images that are timed to estimate the time of an evaluation
MAPS = "maps"  # subfolder of the run's folder for feature maps, see maps.py
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True)
class Settings:
    """The settings of a run that are not in its schedule.

    group_aspects: put landscape images and other images into separate batches. workers: number of loader processes.
    box_weight: weight of the box regression loss. dtype: dtype of the forward pass. profile: profile a few steps.
    patience: number of evaluations without a better mAP after which the run ends; 0: the run does not end early.
    advice: advice for the user, which is shown if memory runs out. cache: maximum size in bytes of the feature maps of
    frozen layers on disk, see maps.py; 0: they are not cached.
    """

    detection: DetectionSettings
    metric: Metric
    images_per_batch: int = 2
    group_aspects: bool = False
    workers: int = 0
    box_weight: float = 1.0
    dtype: torch.dtype = torch.float32
    keep_checkpoints: int = 3
    profile: bool = False
    patience: int = 0
    advice: str = ""
    cache: float = 0.0


@dataclass
class TrainingRun:
    """A training run. Each process of the job creates one and calls `run`.

    begun: whether the folder already contains this run. resumed: whether it also contains a checkpoint.
    started: whether the model has the output layers of another run. new_labels: labels of the classes that the other
        run did not have.
    config: the run's configuration as plain data, which is written to its folder and its checkpoints.
    check: a function that checks the content of a checkpoint, see checkpoint.newest_sound. names: class names.
    val_set: the images that decide which weights become best.pt. If None, the weights of the last step are used.
    test_set: the images for the evaluation at the end of the run; without a `val_set`, they are also used for the
        evaluations during training. If None, there is no evaluation on a test set.
    """

    folder: Path
    begun: bool
    resumed: bool
    started: bool
    config: dict[str, Any]
    check: checkpoint.Check
    names: list[str]
    model: FastRCNN
    optimizer: torch.optim.Optimizer
    train_set: DetectionDataset
    val_set: DetectionDataset | None
    test_set: DetectionDataset | None
    sampler: RoISampler
    schedule: Schedule
    settings: Settings
    stop: Stop
    new_labels: Sequence[int] = ()
    tracker: Tracker = field(default_factory=Silent)
    done: int = 0  # number of completed steps, including their evaluations and checkpoints
    saved: int = 0  # step of the last checkpoint
    best: float = -1.0  # mAP of best.pt
    best_step: int = 0  # step of best.pt, or the step from which evaluations without a better mAP are counted
    outcome: Evaluation | None = None  # the last evaluation
    threshold: float | None = None  # score threshold with the best F1 in the last evaluation
    maps: Maps | None = None  # feature maps of the frozen layers, if they are cached

    def run(self) -> Evaluation | None:
        """Train to the last step, or until the mAP on the validation set stops improving.

        Returns the last evaluation, if any, in the first process, and None in the others. Raises UserError if the run
        fails. Raises Stopped if a signal or the time limit ends the run, after saving a checkpoint of the last step.
        """
        if self.resumed:
            self.restore()
        else:
            initialise(self.model, self.train_set, self.sampler.settings.fg_iou, self.started, self.new_labels)
        self.sampler = replace(
            self.sampler, delta_mean=self.model.delta_mean.cpu(), delta_std=self.model.delta_std.cpu()
        )
        device = self.model.delta_mean.device
        with (
            self.hold_folder(),
            self.end_in_order(),
            advise("training", device, lambda: self.settings.advice),
        ):
            self.open_records()
            self.stop.finish_steps()
            over = self.done >= self.schedule.iterations or self.gains_no_more()
            if not over:
                self.keep_maps()
            late = self.schedule.evaluates_after(self.done) and not self.tracker.evaluated
            again = over and (self.val_set is None or self.test_set is None)  # the final report needs an evaluation
            if self.done and (late or again):  # the run was interrupted before its evaluation, or is complete
                self.evaluate(self.done)
            if not over:
                with self.batches() as batches:
                    self.fit(batches)
            if self.val_set is not None and self.test_set is not None:
                self.evaluate_chosen()
            self.tracker.close()
        distributed.wait_for_all()
        if distributed.leads():
            shutil.rmtree(self.folder / MAPS, ignore_errors=True)
        return self.outcome

    def restore(self) -> None:
        """Load the newest usable checkpoint of the run into the model and the optimiser."""
        checkpoints = self.folder / "checkpoints"
        self.done, self.best, self.best_step = load_newest(
            checkpoints, self.model, self.optimizer, self.names, self.config, self.check
        )
        self.saved = self.done
        self.stop.state = f"no step was trained after step {self.done}"

    @contextmanager
    def hold_folder(self) -> Iterator[None]:
        """In the first process, lock the run's folder and write the log to it while the `with` block runs.

        Raises UserError if another process has locked it, or if the processes found different checkpoints in it.
        """
        found = self.resumed, self.done
        if found != distributed.from_first(found):
            raise UserError(
                f"{self.folder}: this process and the first process found different checkpoints in this folder. All "
                "machines need the same folder. Choose one on a shared disk with run=FOLDER."
            )
        if not distributed.leads():
            yield
            return
        with claim(self.folder), log_to(self.folder), hide_tensorboard_errors():
            yield

    def open_records(self) -> None:
        """Write the run's description into its folder, and open the tracker for its metrics."""
        if distributed.leads():
            if not self.begun:
                refuse_used(self.folder)  # another run can have started here while this one read its data
            elif (self.folder / "config.yaml").exists():
                log_changes(self.folder, self.config)
            remove_parts(self.folder / "checkpoints")
            describe_run(self.folder, as_yaml(self.config))
            self.tracker = Tracker(self.folder, self.done)
        self.tracker.evaluated = distributed.from_first(self.tracker.evaluated)
        device = self.model.delta_mean.device
        made = sum(bool(s.tiles) for s in self.train_set.samples)
        mosaics = f" and {made} mosaic{'s' if made > 1 else ''} of them" if made else ""
        sizes = [f"{len(self.train_set) - made} training images{mosaics}"]
        sizes += [f"{len(self.val_set)} validation images"] if self.val_set else []
        sizes += [f"{len(self.test_set)} test images"] if self.test_set else []
        log.info("%s: %s; classes: %s", self.folder, ", ".join(sizes), ", ".join(self.names))
        where = f"{device}" if distributed.size() == 1 else f"{distributed.size()} processes, each on {device.type}"
        precision = str(self.settings.dtype).removeprefix("torch.")
        log.info("%s parameters, %s, %s", f"{parameter_count(self.model):,}", where, precision)

    def keep_maps(self) -> None:
        """Compute and cache the feature maps of the frozen layers for the remaining steps, if they can be reused."""
        settings, images = self.settings, self.train_set
        looks = self.schedule.accumulate * settings.images_per_batch
        begin, end = self.done * looks, self.schedule.iterations * looks
        if begin == end:
            return
        self.maps = open_maps(self.folder / MAPS, self.model, settings.dtype, settings.cache, images.augmentation)
        if self.maps is None:
            return
        self.train_set = replace(images, unneeded=self.maps.files.has)
        if self.schedule.evaluate_every:
            self.val_set, self.test_set = (
                some and replace(some, unneeded=self.maps.files.has) for some in (self.val_set, self.test_set)
            )
        chosen = images.views(range(begin // len(images), -(-end // len(images))))
        if len(chosen) >= end - begin:
            log.info(
                "Feature maps are not computed in advance: in the remaining steps, few images are used twice with the "
                "same augmentation, so runtime.cache would save little time"
            )
            return
        log.info(
            "Computing the feature maps of the frozen layers for %d inputs (the different augmented versions of the "
            "images that the remaining steps use)",
            len(chosen),
        )
        self.say_whole_time(self.maps, chosen)
        self.maps.fill(self.train_set, chosen, settings.workers, self.stop)
        if distributed.any_of(self.stop()):
            self.end(self.done, "the feature maps computed so far are kept")

    def say_whole_time(self, maps: Maps, chosen: Sequence[tuple[int, View]]) -> None:
        """Log the estimated time for computing feature maps, for the remaining steps, and for the evaluations.

        chosen: pairs of an image index and a view whose maps will be computed, which can take an hour. Nothing is
        logged with several processes, or if all these maps are already cached.
        """
        images, schedule, settings = self.train_set, self.schedule, self.settings
        views, steps = sum(not maps.files.has(images.samples[i], v) for i, v in chosen), schedule.iterations - self.done
        if distributed.size() > 1 or not views:
            return
        pictures = replace(images, unneeded=None)  # also load the pixels of images whose maps are cached
        first = self.done * schedule.accumulate
        loader = training_loader(pictures, settings.images_per_batch, 0, first, group_aspects=settings.group_aspects)
        batch = next(iter(loader))
        self.model.eval()  # the mode in which Maps.fill computes the maps
        tried = self.model, self.optimizer, self.sampler, batch, maps.fresh, schedule, self.done
        try:
            of_maps, of_step = seconds_of_a_batch(*tried, settings.dtype, settings.box_weight)
        except NotFiniteError:  # training will report it
            return
        of_view = of_maps / len(batch.samples)
        if schedule.evaluate_every:  # maps of evaluated images are cached too, so they are computed only once
            self.seconds_to_evaluate()  # computes the maps of the timed images
            views += sum(len(some) for some in (self.val_set, self.test_set) if some)
        times = views * of_view, steps * of_step, self.seconds_to_evaluate()(self.done)
        whole, *parts = (duration(seconds) for seconds in (sum(times), *times))
        text = "About %s left: %s for %d feature maps, %s for %d steps, %s for evaluation"
        log.info(text, whole, parts[0], views, parts[1], steps, parts[2])

    @contextmanager
    def batches(self) -> Iterator[Iterable[Batch]]:
        """Yield a loader of the remaining training batches. If `settings.profile` is set, profile steps 10 to 19."""
        settings, accumulate = self.settings, self.schedule.accumulate
        on_gpu = self.model.delta_mean.device.type == "cuda"
        loader = training_loader(
            self.train_set,
            settings.images_per_batch,
            settings.workers,
            self.done * accumulate,
            pin_memory=on_gpu,
            group_aspects=settings.group_aspects,
        )
        if settings.profile and distributed.leads():
            with profile_steps(loader, self.folder / "profile", accumulate) as watched:
                yield watched
        else:
            yield loader

    def fit(self, batches: Iterable[Batch]) -> None:
        """Train for the remaining steps. Log, draw RoIs, save and evaluate at the intervals in the schedule.

        If one process receives a signal or reaches the time limit, all processes raise Stopped after the same step.
        """
        schedule, settings, start = self.schedule, self.settings, self.done
        meter = Meter(schedule.accumulate)
        steps = train(
            self.model,
            batches,
            self.sampler,
            self.optimizer,
            schedule,
            meter,
            start,
            settings.dtype,
            settings.box_weight,
            self.maps,
        )
        try:
            for step in show_progress(steps, start, schedule.iterations, meter, self.seconds_to_evaluate()):
                done, last = step.done, step.done == schedule.iterations
                if last or done % schedule.log_every == 0:
                    self.tracker.scalars(done, meter.read() | {"train/lr": schedule.rate(done - 1)})
                    log.debug("step %d: %s", done, ", ".join(f"{n[6:]} {v:.4g}" for n, v in meter.latest.items()))
                if schedule.images_every and (done % schedule.images_every == 0 or done == start + 1):
                    self.draw(step)
                if schedule.evaluates_after(done) or done % schedule.checkpoint_every == 0:
                    self.save(done)  # before the evaluation, which can take long or be interrupted
                if schedule.evaluates_after(done):
                    distributed.share_buffers(self.model)
                    self.evaluate(done)
                if distributed.any_of(self.finish_step()) and not last:
                    if self.saved != done:
                        self.save(done)
                    self.end(done)
                if schedule.evaluates_after(done) and self.gains_no_more():
                    text = "step %d: ending early, because mAP has not improved since step %d (solver.patience=%d)"
                    log.info(text, done, self.best_step, settings.patience)
                    break
        except NotFiniteError as error:
            raise self.keep_evidence(error) from None

    def seconds_to_evaluate(self) -> Callable[[int], float]:
        """Measure the evaluation time of a few images.

        Returns a function that takes a number of completed steps and estimates the seconds of all later evaluations.
        """
        images, tests = self.val_set or self.test_set, self.test_set if self.val_set else None
        if images is None or not distributed.leads():
            return lambda _: 0.0
        few = replace(images, samples=images.samples[: TIMED * distributed.size()])  # each process evaluates its share
        begin = time.monotonic()
        number = sum(1 for _ in detect(self.network(), detection_loader(few), self.settings.detection))
        each = (time.monotonic() - begin) / max(number, 1) / distributed.size()

        def seconds(done: int) -> float:
            times = self.schedule.evaluations_left(done)
            return each * (times * len(images) + (len(tests) if tests else 0))

        return seconds

    def finish_step(self) -> bool:
        """Count a completed step. Return whether this process must end, because of a signal or the time limit."""
        self.done += 1
        return self.stop()

    def content(self, step: int) -> dict[str, Any]:
        """Return the content of a checkpoint after `step` steps, without the optimiser state."""
        described = {"step": step, "best": self.best, "classes": self.names, "config": self.config}
        return described | {"record": self.trained_on(), "model": self.model.state_dict()}

    def trained_on(self) -> dict[str, Any]:
        """Return the number of training images, of mosaics and of objects per class, and the best score threshold.

        The objects are those of the images, and not those of the mosaics again.
        """
        images = [s for s in self.train_set.samples if not s.tiles]
        labels = np.concatenate([np.zeros(0, np.int64), *(s.labels for s in images)])
        counts = np.bincount(labels, minlength=len(self.names) + 1)[1:]
        known: dict[str, Any] = {} if self.threshold is None else {"draw_threshold": self.threshold}
        if made := len(self.train_set) - len(images):
            known["mosaics"] = made
        return {"images": len(images), "objects": dict(zip(self.names, counts.tolist(), strict=True))} | known

    def save(self, step: int) -> None:
        """Write step-N.pt, from which the run can resume. Only the first process writes it."""
        if distributed.leads():
            folder = self.folder / "checkpoints"
            self.write(folder / f"step-{step}.pt", self.content(step) | {"optimizer": self.optimizer.state_dict()})
            checkpoint.keep_last(folder, self.settings.keep_checkpoints, step)
        self.saved = step

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """Write a checkpoint. Raises UserError if it cannot be written, or if the folder of the run was deleted."""
        self.refuse_deleted()
        checkpoint.save(path, content)

    def refuse_deleted(self) -> None:
        """Raise UserError if the folder of the run no longer exists. Only a part of it would be created again."""
        if not self.folder.is_dir():
            raise UserError(
                f"{self.folder}: the folder of the run was deleted or moved while the run used it. If it was moved, "
                "resume the run with run=NEW_PATH resume=auto. Otherwise, train again from the beginning."
            )

    def draw(self, step: Step) -> None:
        """Draw the step's RoIs for TensorBoard, in the first process only."""
        if distributed.leads():
            self.tracker.picture(step.done, "train/rois", draw_batch(with_pixels(step.batch), step.rois, step.targets))

    def evaluate(self, step: int) -> None:
        """Evaluate on the validation set, or on the test set if there is no validation set, and record the result."""
        watched = self.val_set or self.test_set
        if watched is None:
            return
        if (outcome := self.evaluate_on(watched, step)) is not None:  # only the first process has it
            self.record(step, outcome)

    def evaluate_chosen(self) -> None:
        """Evaluate the weights of best.pt on the test set, or the last weights if best.pt cannot be read."""
        assert self.test_set is not None
        best = self.folder / "checkpoints" / "best.pt"
        step = distributed.from_first(self.best_step if self.best >= 0 else self.done)
        if step != self.done:
            try:
                self.model.load_state_dict(self.check(best, checkpoint.load(best))["model"])
            except UserError as error:
                log.warning("Testing the last weights, because the best weights cannot be read: %s", error)
                step = self.done
        log.info("Testing the weights of step %d", step)
        if (outcome := self.evaluate_on(self.test_set, self.done)) is not None:
            self.outcome = outcome
            self.tracker.scalars(self.done, {"test/mAP": outcome.ap.mean})

    def gains_no_more(self) -> bool:
        """Return whether mAP has not improved in the last `settings.patience` evaluations (0: always return False)."""
        waited = self.settings.patience * self.schedule.evaluate_every
        return distributed.from_first(0 < waited <= self.done - self.best_step)

    def network(self) -> TorchNetwork:
        """Return the current network for detection. It uses cached feature maps if there are several evaluations."""
        return TorchNetwork(self.model, self.settings.dtype, self.maps if self.schedule.evaluate_every else None)

    def evaluate_on(self, images: DetectionDataset, step: int) -> Evaluation | None:
        """Evaluate on the images; return the result in the first process, and None in the others.

        Raises Stopped if a signal or the time limit ends the run. The process that received the signal stops at the
        next image, and waits until the other processes have completed their parts of the images.
        """
        settings = self.settings
        pyramids = takewhile(lambda _: not self.stop(), detection_loader(images, workers=settings.workers))

        def detected() -> None:
            if distributed.any_of(self.stop()):
                self.end(step)

        return evaluate(
            self.network(),
            pyramids,
            len(images),
            self.names,
            settings.metric,
            settings.detection,
            detected,
        )

    def record(self, step: int, outcome: Evaluation) -> None:
        """Record an evaluation after `step` steps. Write best.pt if the mAP is the best on the validation set so far.

        Without a validation set, best.pt is written at the last step. Without an mAP, best.pt is not written.
        """
        self.outcome = outcome
        mean_ap, self.threshold = outcome.ap.mean, best_threshold(outcome.curves().values())
        for name, curve in outcome.ap.classes.items():
            if curve.ap is not None:
                self.tracker.precision_recall(step, f"eval/pr/{name}", curve)
        chosen = step == self.schedule.iterations if self.val_set is None else (mean_ap or 0.0) > self.best
        if mean_ap is not None and chosen:
            self.best, self.best_step = mean_ap, step
            self.write(self.folder / "checkpoints" / "best.pt", self.content(step))
        values = outcome.ap.figures | {f"ap/{n}": v for n, v in outcome.ap.ap.items()}
        known = {f"eval/{n}": v for n, v in values.items() if v is not None}
        self.tracker.scalars(step, known | {EVALUATED: mean_ap})  # EVALUATED is last: it marks a complete evaluation
        if mean_ap is None:
            log.warning("step %d: no mAP because no class has ground truth; best.pt is not written", step)
        else:
            log.info("step %d: mAP %.4f", step, mean_ap)

    def keep_evidence(self, error: NotFiniteError) -> UserError:
        """Write failed-step-N.pt, with which `fastrcnn replay` can repeat the step. Return the error to raise."""
        kept = ""
        if error.evidence is not None:
            path = self.folder / f"failed-step-{error.step}.pt"
            checkpoint.save(path, self.content(error.step) | error.evidence)
            kept = f"\nThe step was saved. To inspect it: fastrcnn replay {path}"
        return UserError(f"{error}{distributed.from_first(kept)}")

    def end(self, step: int, also: str = "") -> NoReturn:
        """Raise Stopped to end the run after the checkpoint of `step`. also: text to add to its message."""
        states = [f"step {step} is saved"] if step else []
        stopped = self.stop.stopped(", ".join([*states, *([also] if also else [])]))
        log.info("%s", stopped)  # also written to the run's log
        raise Stopped(stopped.status)

    @contextmanager
    def end_in_order(self) -> Iterator[None]:
        """Raise UserError if a process dies or a file cannot be written.

        If a loader process dies, a checkpoint of the last step is saved first. The messages of UserError and Stopped
        contain the command that resumes the run.
        """
        program = "fastrcnn" if launch().size == 1 else "torchrun (same options) -m fastrcnn"
        command = f"{program} train {shlex.quote(f'run={self.folder}')} resume=auto"
        self.stop.advice = command
        try:
            yield
        except WorkerDiedError as error:
            if self.done > self.saved and distributed.leads():
                self.save(self.done)
            kept = f"Step {self.saved} is saved. " if self.saved else ""
            raise UserError(f"{error} {kept}To resume: {command}") from None
        except distributed.LostError as error:
            raise distributed.LostError(error.reason, f" To resume from the last checkpoint: {command}") from None
        except OSError as error:
            if distributed.leads():
                self.refuse_deleted()
            if error.errno not in NO_ROOM:
                raise
            raise UserError(
                f"{error.filename or self.folder}: cannot be written ({error.strerror}). Existing checkpoints are "
                f"unchanged. Free disk space or correct the permissions, then resume: {command}"
            ) from None
