"""The life of a run: restore or initialise, fit, evaluate and save on the way, end in order."""

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
from fastrcnn.training.tracking import EVALUATED, Silent, Tracker, claim, describe_run, log_to, refuse_used
from fastrcnn.visualize import draw_batch

log = logging.getLogger(__name__)
TIMED = 2  # images that an evaluation's time is estimated from
MAPS = "maps"  # the folder in the run's for what maps.py keeps
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True)
class Settings:
    """How a run works, beside its schedule.

    images_per_batch, group_aspects, workers: see data/loader.py. box_weight: see model/loss.py.
    advice: what helps where memory runs out. cache: bytes of maps that are kept, see maps.py. patience: evaluations
    without a better mAP after which the run ends, 0 for never.
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
    """A run, in each process of its job; `run` does all of it.

    begun: whether the run is in its folder already; resumed: whether with a checkpoint. started: whether the model has
    the outputs of another run; new_labels: the classes that that run did not have. config: of the run, as plain data,
    for its folder and its checkpoints. check: see checkpoint.newest_sound. val_set: what best.pt is chosen on during
    training; None: it is the last step's. test_set: what the chosen weights are evaluated on at the end, and without a
    val_set during training too; None where nothing is.
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
    done: int = 0  # steps that are over, with all that belongs to them
    saved: int = 0  # the step saved last
    best: float = -1.0  # mAP of best.pt
    best_step: int = 0  # of best.pt, or where counting evaluations without a better one began
    outcome: Evaluation | None = None  # the last one
    threshold: float | None = None  # of the score, at which F1 was best in the last evaluation
    maps: Maps | None = None  # of the frozen layers, where they are kept

    def run(self) -> Evaluation | None:
        """Trains to the last step, or until the validation set shows no more gain; returns the last evaluation, which
        the first of several processes has.

        Raises Stopped, after a step that is saved, where a signal ends it; and UserError.
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
            again = over and (self.val_set is None or self.test_set is None)  # for its report
            if self.done and (late or again):  # the run was interrupted there, or is over
                self.evaluate(self.done)
            if not over:
                with self.batches() as batches:
                    self.fit(batches)
            if self.val_set is not None and self.test_set is not None:
                self.evaluate_chosen()
        distributed.wait_for_all()
        if distributed.leads():
            shutil.rmtree(self.folder / MAPS, ignore_errors=True)
        self.tracker.close()
        return self.outcome

    def restore(self) -> None:
        """Resumes from the newest sound checkpoint."""
        checkpoints = self.folder / "checkpoints"
        self.done, self.best, self.best_step = load_newest(
            checkpoints, self.model, self.optimizer, self.names, self.config, self.check
        )
        self.saved = self.done
        self.stop.state = f"nothing was trained after step {self.done}"

    @contextmanager
    def hold_folder(self) -> Iterator[None]:
        """The folder is held, and has the log, while the body runs. Of several processes the first does that.

        Raises UserError where the processes see different folders.
        """
        found = self.resumed, self.done
        if found != distributed.from_first(found):
            raise UserError(
                f"{self.folder}: this process does not find there what the first one does. All machines need the same "
                "folder; name one on a disk that they share: run=FOLDER."
            )
        if not distributed.leads():
            yield
            return
        with claim(self.folder), log_to(self.folder):
            yield

    def open_records(self) -> None:
        """Writes what the run is into its folder, and opens the record of its numbers."""
        if distributed.leads():
            if not self.begun:
                refuse_used(self.folder)  # one that began while this one was looking at its data
            elif (self.folder / "config.yaml").exists():
                log_changes(self.folder, self.config)
            remove_parts(self.folder / "checkpoints")
            describe_run(self.folder, as_yaml(self.config))
            self.tracker = Tracker(self.folder, self.done)
        self.tracker.evaluated = distributed.from_first(self.tracker.evaluated)
        device = self.model.delta_mean.device
        sizes = [f"{len(self.train_set)} training"]
        sizes += [f"{len(self.val_set)} validation"] if self.val_set else []
        sizes += [f"{len(self.test_set)} test"] if self.test_set else []
        log.info("%s: %s images, classes %s", self.folder, " and ".join(sizes), ", ".join(self.names))
        where = f"{device}" if distributed.size() == 1 else f"{distributed.size()} processes, each on {device.type}"
        precision = str(self.settings.dtype).removeprefix("torch.")
        log.info("%s parameters, %s, %s", f"{parameter_count(self.model):,}", where, precision)

    def keep_maps(self) -> None:
        """Computes what the frozen layers make of the images that are still to come, where that is kept."""
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
            log.info("runtime.cache: hardly any view of an image comes twice, so maps are computed as they are needed")
            return
        log.info("computing once what the frozen layers make of the images: %d views of them", len(chosen))
        self.say_whole_time(self.maps, chosen)
        self.maps.fill(self.train_set, chosen, settings.workers, self.stop)
        if distributed.any_of(self.stop()):
            self.end(self.done, "the maps that are computed are kept")

    def say_whole_time(self, maps: Maps, chosen: Sequence[tuple[int, View]]) -> None:
        """Logs how long the maps of the chosen views, the steps and the evaluations will take, since the maps alone may
        take an hour. Several processes log nothing here."""
        images, schedule, settings = self.train_set, self.schedule, self.settings
        views, steps = sum(not maps.files.has(images.samples[i], v) for i, v in chosen), schedule.iterations - self.done
        if distributed.size() > 1 or not views:
            return
        pictures = replace(images, unneeded=None)  # with the pixels of those whose maps are kept
        first = self.done * schedule.accumulate
        loader = training_loader(pictures, settings.images_per_batch, 0, first, group_aspects=settings.group_aspects)
        batch = next(iter(loader))
        self.model.eval()  # as where the maps are computed
        tried = self.model, self.optimizer, self.sampler, batch, maps.fresh, schedule, self.done
        try:
            of_maps, of_step = seconds_of_a_batch(*tried, settings.dtype, settings.box_weight)
        except NotFiniteError:  # which the training itself will report
            return
        of_view = of_maps / len(batch.samples)
        if schedule.evaluate_every:  # their maps are kept too; those of the images that are timed are computed here
            self.seconds_to_evaluate()
            views += sum(len(some) for some in (self.val_set, self.test_set) if some)
        times = views * of_view, steps * of_step, self.seconds_to_evaluate()(self.done)
        whole, *parts = (duration(seconds) for seconds in (sum(times), *times))
        text = "about %s left: %d maps %s, %d steps %s, evaluation %s"
        log.info(text, whole, views, parts[0], steps, parts[1], parts[2])

    @contextmanager
    def batches(self) -> Iterator[Iterable[Batch]]:
        """The training batches that are left; with a profile of the first steps, where it is asked for."""
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
        """Takes the steps that are left, and after each what is due: records, a drawing, a checkpoint, an evaluation.

        Several processes end after the same step, where one is to.
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
                if schedule.pictures_every and (done % schedule.pictures_every == 0 or done == start + 1):
                    self.draw(step)
                if schedule.evaluates_after(done) or done % schedule.checkpoint_every == 0:
                    self.save(done)  # before an evaluation, which may be long, or abandoned
                if schedule.evaluates_after(done):
                    distributed.share_buffers(self.model)
                    self.evaluate(done)
                if distributed.any_of(self.finish_step()) and not last:
                    if self.saved != done:
                        self.save(done)
                    self.end(done)
                if schedule.evaluates_after(done) and self.gains_no_more():
                    log.info("step %d: no better mAP in %d evaluations (solver.patience)", done, settings.patience)
                    break
        except NotFiniteError as error:
            raise self.keep_evidence(error) from None

    def seconds_to_evaluate(self) -> Callable[[int], float]:
        """How long the evaluations take that come after so many steps, from the time that an image takes now."""
        images, tests = self.val_set or self.test_set, self.test_set if self.val_set else None
        if images is None or not distributed.leads():
            return lambda _: 0.0
        few = replace(images, samples=images.samples[: TIMED * distributed.size()])  # each process has its share
        begin = time.monotonic()
        number = sum(1 for _ in detect(self.network(), detection_loader(few), self.settings.detection))
        each = (time.monotonic() - begin) / max(number, 1) / distributed.size()
        last, every = self.schedule.iterations, self.schedule.evaluate_every

        def seconds(done: int) -> float:
            times = last // every - done // every + bool(last % every) if every else 1
            return each * (times * len(images) + (len(tests) if tests else 0))

        return seconds

    def finish_step(self) -> bool:
        """Counts a step, when all that belongs to it is done; returns whether the run is to end."""
        self.done += 1
        return self.stop()

    def content(self, step: int) -> dict[str, Any]:
        """What every checkpoint holds."""
        described = {"step": step, "best": self.best, "classes": self.names, "config": self.config}
        return described | {"record": self.trained_on(), "model": self.model.state_dict()}

    def trained_on(self) -> dict[str, Any]:
        """How many images, and objects by class, it is trained on, and the best threshold of the last evaluation."""
        labels = np.concatenate([np.zeros(0, np.int64), *(s.labels for s in self.train_set.samples)])
        counts = np.bincount(labels, minlength=len(self.names) + 1)[1:]
        known = {} if self.threshold is None else {"draw_threshold": self.threshold}
        return {"images": len(self.train_set), "objects": dict(zip(self.names, counts.tolist(), strict=True))} | known

    def save(self, step: int) -> None:
        """Writes step-N.pt, from which the run can resume. Of several processes the first writes."""
        if distributed.leads():
            folder = self.folder / "checkpoints"
            checkpoint.save(folder / f"step-{step}.pt", self.content(step) | {"optimizer": self.optimizer.state_dict()})
            checkpoint.keep_last(folder, self.settings.keep_checkpoints)
        self.saved = step

    def draw(self, step: Step) -> None:
        """Draws the step's RoIs, of several processes those of the first, for TensorBoard."""
        if distributed.leads():
            self.tracker.picture(step.done, "train/rois", draw_batch(with_pixels(step.batch), step.rois, step.targets))

    def evaluate(self, step: int) -> None:
        """Evaluates on the validation set, else on the test set, and records it."""
        watched = self.val_set or self.test_set
        if watched is None:
            return
        if (outcome := self.evaluate_on(watched, step)) is not None:  # else the first process has it
            self.record(step, outcome)

    def evaluate_chosen(self) -> None:
        """Evaluates, on the test set, the weights that were best on the validation set."""
        assert self.test_set is not None
        best = self.folder / "checkpoints" / "best.pt"
        step = distributed.from_first(self.best_step if self.best >= 0 else self.done)
        if step != self.done:
            try:
                self.model.load_state_dict(self.check(best, checkpoint.load(best))["model"])
            except UserError as error:
                log.warning("the last weights are tested, as those that were best cannot be read: %s", error)
                step = self.done
        log.info("testing the weights of step %d", step)
        if (outcome := self.evaluate_on(self.test_set, self.done)) is not None:
            self.outcome = outcome
            self.tracker.scalars(self.done, {"test/mAP": outcome.ap.mean})

    def gains_no_more(self) -> bool:
        """Whether the last `patience` evaluations gave no better mAP, as the first of several processes knows."""
        waited = self.settings.patience * self.schedule.evaluate_every
        return distributed.from_first(0 < waited <= self.done - self.best_step)

    def network(self) -> TorchNetwork:
        """The network as it is, for detection; with the maps of images that are evaluated more than once."""
        return TorchNetwork(self.model, self.settings.dtype, self.maps if self.schedule.evaluate_every else None)

    def evaluate_on(self, images: DetectionDataset, step: int) -> Evaluation | None:
        """The evaluation on the images, which the first of several processes has.

        Where the run is to end, it ends at the next image; with several processes all end, each when its share is done
        or it is itself to end.
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
        """Records an evaluation, and writes best.pt where there is a mAP, and it is the best on the validation set so
        far; without such a set, at the last step."""
        self.outcome = outcome
        mean_ap, self.threshold = outcome.ap.mean, best_threshold(outcome.curves().values())
        for name, curve in outcome.ap.classes.items():
            if curve.ap is not None:
                self.tracker.precision_recall(step, f"eval/pr/{name}", curve)
        chosen = step == self.schedule.iterations if self.val_set is None else (mean_ap or 0.0) > self.best
        if mean_ap is not None and chosen:
            self.best, self.best_step = mean_ap, step
            checkpoint.save(self.folder / "checkpoints" / "best.pt", self.content(step))
        values = outcome.ap.figures | {f"ap/{n}": v for n, v in outcome.ap.ap.items()}
        known = {f"eval/{n}": v for n, v in values.items() if v is not None}
        self.tracker.scalars(step, known | {EVALUATED: mean_ap})  # last
        if mean_ap is None:
            log.warning("step %d: no mAP: no class has ground truth, so no best.pt is chosen", step)
        else:
            log.info("step %d: mAP %.4f", step, mean_ap)

    def keep_evidence(self, error: NotFiniteError) -> UserError:
        """Writes failed-step-N.pt, from which the step can be replayed; returns the error to raise."""
        kept = ""
        if error.evidence is not None:
            path = self.folder / f"failed-step-{error.step}.pt"
            checkpoint.save(path, self.content(error.step) | error.evidence)
            kept = f"\nThe step is kept; to look at it again: fastrcnn replay {path}"
        return UserError(f"{error}{distributed.from_first(kept)}")

    def end(self, step: int, also: str = "") -> NoReturn:
        """Ends the run after a step that is saved, or before the first: Stopped."""
        states = [f"step {step} is done and saved"] if step else []
        stopped = self.stop.stopped(", ".join([*states, *([also] if also else [])]))
        log.info("%s", stopped)  # into the run's log too
        raise Stopped(stopped.status)

    @contextmanager
    def end_in_order(self) -> Iterator[None]:
        """Where the death of a process or a full disk ends the body, saves what can be saved, and says how to resume:
        UserError. A signal's Stopped says so too."""
        program = "fastrcnn" if launch().size == 1 else "torchrun (its options as before) -m fastrcnn"
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
            if error.errno not in NO_ROOM:
                raise
            raise UserError(
                f"{error.filename or self.folder}: cannot be written ({error.strerror}). Checkpoints that are there "
                f"already are untouched; make room, then resume: {command}"
            ) from None
