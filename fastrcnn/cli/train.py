"""fastrcnn train"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.build.run_folder import log_changes, log_to, refuse_used, run_folder, saved_config, warn_of_companions
from fastrcnn.cli import start
from fastrcnn.cli.run_end import good_order
from fastrcnn.cli.run_state import RunState, load_newest
from fastrcnn.cli.sweep import FLAGS, sweep
from fastrcnn.config.compose import compose, experiment_content, to_yaml
from fastrcnn.config.schema import TrainConfig
from fastrcnn.errors import UserError
from fastrcnn.parallel.launch import launch
from fastrcnn.training.signals import Stop, handle_signals

if TYPE_CHECKING:
    from fastrcnn.evaluation.evaluate import Evaluation
    from fastrcnn.structures import Batch

log = logging.getLogger("fastrcnn")
UNTRAINED = "nothing was trained yet"
EXAMPLES = [
    "fastrcnn train experiment=demo",
    "fastrcnn train recipe=scratch data=custom data.root=mydata",
    "fastrcnn train recipe=paper data=voc07 data.root=VOCdevkit",
    "fastrcnn train run=outputs/train/... resume=auto",
    "fastrcnn train -m experiment=demo solver.lr=0.02,0.05 runtime.seed=0,1      (every combination)",
    "fastrcnn train start=outputs/train/... data=custom data.root=mydata solver.lr=0.0001",
]


def main(arguments: list[str]) -> int:
    """Trains, evaluates, and says where everything is."""
    if any(argument in FLAGS for argument in arguments):
        return sweep(arguments)
    with handle_signals(UNTRAINED):
        run(configure(arguments))
    return 0


def configure(arguments: list[str]) -> TrainConfig:
    """The configuration for the arguments, and for the run that goes on or the checkpoint that is begun with."""
    config = compose("train", arguments)
    restart_in_place(config)
    if config.resume:  # what is not said again is as it was
        folder, _ = run_folder(config)
        fresh, config = config, compose("train", arguments, base=saved_config(folder))
        for group in ("model", "solver", "detection", "runtime"):
            if any(a.startswith("recipe=") for a in arguments) and getattr(fresh, group) != getattr(config, group):
                log.warning("recipe= changes nothing in a run that goes on: %s.* stays as it was", group)
        config.run, config.resume = str(folder), "auto"
    elif config.start:  # the model is as it was there, but for what is said again
        said = [experiment_content(a.partition("=")[2]) for a in arguments if a.startswith("experiment=")]
        model = start.read(config).config["model"]
        if said and config.model.network != model.get("network", "vgg16"):
            raise UserError(
                f"start={config.start}: is a {model.get('network', 'vgg16')}, but experiment={config.name} is of "
                f"{config.model.network}. Begin with a checkpoint of that network."
            )
        config = compose("train", arguments, base={"model": model | (said[0].get("model", {}) if said else {})})
    if not config.resume:  # of a run that resumes the run's log has it
        warn_of_companions([argument.partition("=")[0] for argument in arguments], config)
    return config


def restart_in_place(config: TrainConfig) -> None:
    """Where torchrun starts a run again whose process has died, the run goes on: with --max-restarts whatever run is in
    the folder does. Raises UserError where it could not.
    """
    here = launch()
    if not here.restarts:
        return
    if config.run is None:
        raise UserError("with torchrun --max-restarts name the run's folder, run=FOLDER: a restart goes on there.")
    if here.kept_store and here.size > here.local_size:  # each machine counts the restarts for itself
        raise UserError(
            "torchrun --max-restarts on several machines: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on "
            "each of them. Without it the processes of a restart may look for those that are gone, and wait for ever."
        )
    if (Path(config.run).expanduser() / "config.yaml").exists():
        config.resume = "auto"


def run(config: TrainConfig) -> tuple[Path, Evaluation | None]:
    """The whole training that the configuration describes; returns the run's folder and the last evaluation, which
    there is none of where `data.test` is empty.

    SIGTERM or SIGINT end it after a step, which is saved: Stopped.
    """
    with handle_signals(UNTRAINED) as stop:
        return run_until(config, stop)


def run_until(config: TrainConfig, stop: Stop) -> tuple[Path, Evaluation | None]:
    """See run."""
    from fastrcnn.build import datasets, machine, training
    from fastrcnn.parallel import distributed

    training.check_training(config)
    start.refuse_svm(config)
    training.detection(config.detection)  # mistakes show before the work
    if config.data.test:
        datasets.test_scaling(config.data)
    folder, begun = run_folder(config)
    with distributed.joined(machine.device(config.runtime)):
        return run_joined(config, stop, distributed.from_first(folder), begun)


def run_joined(config: TrainConfig, stop: Stop, folder: Path, begun: bool) -> tuple[Path, Evaluation | None]:
    """The run in its folder, in each process of the job; begun: whether it goes on there."""
    import torch

    from fastrcnn.build import annotations, datasets, machine, models, training
    from fastrcnn.data.loader import training_loader
    from fastrcnn.evaluation.evaluate import table
    from fastrcnn.files import remove_parts
    from fastrcnn.memory import advising
    from fastrcnn.model.head import parameter_count
    from fastrcnn.parallel import distributed
    from fastrcnn.report.report import run_title, training_texts, write_evaluation
    from fastrcnn.training import checkpoint, loop
    from fastrcnn.training.optim import sgd
    from fastrcnn.training.profiling import profiled
    from fastrcnn.training.tracking import Silent, Tracker, claim, describe_run, environment

    resumed = begun and bool(checkpoint.in_order(folder / "checkpoints"))
    if begun and not resumed:
        log.info("%s: it ended before its first checkpoint, and begins again", folder)
    detection, metric = training.detection(config.detection), config.data.metric
    device = machine.device(config.runtime)
    dtype = machine.precision(config.runtime, device)
    machine.threads(config.runtime)
    workers = machine.workers(config.runtime)
    solver, seed = config.solver, config.runtime.seed

    annotations.absolute_paths(config.data)
    begin = start.read(config) if config.start and not resumed else None
    if begin:
        start.take_classes(config.data, begin, str(config.start))
    names = annotations.classes(config.data)
    annotations.warn_of_same_files(names)
    if config.data.test:
        annotations.image_ids(config.data, config.data.test)  # a list that is missing shows before the work
    torch.manual_seed(loop.seed_of(seed))
    model = models.model(config.model, len(names), load=not (resumed or begin))  # before the data: it may lack weights
    if begin:
        start.put_weights(model, begin, str(config.start))
    train_set, test_set = datasets.both_sets(config.data, names, seed)
    if test_set and distributed.leads() and not annotations.has_truth(test_set.samples):
        log.warning("%s: %s; there will be no best.pt", ", ".join(config.data.test), annotations.NO_TRUTH)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    models.freeze_unused(model, solver)
    machine.speed_and_memory(model, config.runtime, device)
    optimizer = sgd(model, solver.momentum, solver.weight_decay, solver.bias_lr_factor, solver.optimizer)
    done, best = 0, -1.0
    if resumed:
        done, best = load_newest(folder / "checkpoints", model, optimizer, names, config)
        stop.state = f"nothing was trained after step {done}"
    else:
        if distributed.leads():
            datasets.say_recall(train_set, names)
        if begin:  # the weights of bbox_pred were trained for the statistics that came with them
            log.info("beginning with the weights of %s", config.start)
            start.say_margins(begin)
            start.statistics(model, train_set, config)
        else:
            log.info("%d training pictures; computing the statistics of their regression targets", len(train_set))
            training.set_delta_statistics(model, train_set, config)

    if (resumed, done) != distributed.from_first((resumed, done)):
        raise UserError(
            f"{folder}: this process does not find there what the first one does. All machines need the same folder; "
            "name one on a disk that they share: run=FOLDER."
        )
    with (
        claim(folder) if distributed.leads() else nullcontext(),
        log_to(folder) if distributed.leads() else nullcontext(),
        good_order(folder, stop) as ending,
        advising("training", device, lambda: training.training_memory(config)),
        ExitStack() as during,
    ):
        tracker: Tracker
        if distributed.leads():
            if not begun:
                refuse_used(folder)  # one that began while this one was looking at its data
            elif (folder / "config.yaml").exists():
                log_changes(folder, config)
            remove_parts(folder / "checkpoints")
            describe_run(folder, to_yaml(config))
            tracker = Tracker(folder, done)
            distributed.from_first(tracker.evaluated)
        else:
            tracker = Silent(distributed.from_first(False))
        log.info(
            "%s: %d training and %d test pictures, classes %s",
            folder,
            len(train_set),
            len(test_set) if test_set else 0,
            ", ".join(names),
        )
        where = f"{device}" if distributed.size() == 1 else f"{distributed.size()} processes, each on {device.type}"
        log.info("%s parameters, %s, %s", f"{parameter_count(model):,}", where, str(dtype).removeprefix("torch."))
        state = RunState(config, folder, names, model, optimizer, tracker, best, done, saved=done)
        state.interrupted, ending.state = stop, state

        def evaluate(step: int) -> None:
            if test_set is not None:
                state.evaluate(step, test_set, workers, detection, metric, dtype)

        stop.finish_steps()
        every = config.runtime.evaluate_every
        if done >= solver.iterations or (done and every and done % every == 0 and not state.tracker.evaluated):
            evaluate(done)  # the run was interrupted there
        if done < solver.iterations:
            batches: Iterable[Batch] = training_loader(
                train_set,
                solver.images_per_batch,
                workers,
                done * solver.accumulate,
                pin_memory=device.type == "cuda",
                group_aspects=solver.group_aspects,
            )
            if config.runtime.profile and distributed.leads():
                batches = during.enter_context(profiled(batches, folder / "profile", solver.accumulate))
            loop.train(
                model,
                batches,
                training.sampler(solver, model),
                optimizer,
                training.schedule(config, done),
                state.tracker,
                save=state.save,
                evaluate=evaluate,
                draw=state.draw,
                failed=state.failed,
                interrupted=state.step_over,
                dtype=dtype,
                box_weight=solver.box_weight,
            )
    state.tracker.close()
    if state.outcome is not None:
        print(table(state.outcome))
        split = annotations.split_name(config.data.test)
        title, about = run_title(folder, split), training_texts(folder)
        report = write_evaluation(state.outcome, folder / "eval" / split, split, title, about, environment())
        print(f"report: {report}")
    if distributed.leads():
        print(f"run: {folder}")
    return folder, state.outcome
