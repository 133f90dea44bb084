"""fastrcnn train"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.cli.compose import compose, help_text, to_dict, to_yaml
from fastrcnn.config import TrainConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.evaluation.evaluate import Evaluation

log = logging.getLogger("fastrcnn")
EXAMPLES = [
    "fastrcnn train experiment=demo",
    "fastrcnn train data=custom data.root=mydata model=vgg16_slim solver=scratch",
    "fastrcnn train data=voc07 data.root=VOCdevkit",
    "fastrcnn train run=outputs/train/... resume=auto",
]


def main(arguments: list[str]) -> int:
    """Trains, evaluates, and says where everything is."""
    if "-h" in arguments or "--help" in arguments:
        print(help_text("train", "train a detector", EXAMPLES))
        return 0
    config = compose("train", arguments)
    run(config)
    return 0


def run_folder(config: TrainConfig) -> tuple[Path, bool]:
    """The folder of the run, and whether it goes on there.

    Raises UserError where there is nothing to resume, or a run in the folder already.
    """
    if config.resume not in (None, "auto"):
        raise UserError(f"resume={config.resume}: should be 'auto' (with run=FOLDER to say which run).")
    if config.resume:
        if config.run:
            return Path(config.run), True
        runs = sorted((Path("outputs") / config.name).glob("*/checkpoints"), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise UserError(f"resume=auto: there is no run in outputs/{config.name}. Name one with run=FOLDER.")
        return runs[-1].parent, True
    if config.run is None:
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        return Path("outputs") / config.name / stamp, False
    folder = Path(config.run)
    if (folder / "checkpoints").is_dir() or (folder / "config.yaml").exists():
        raise UserError(
            f"run={folder}: there is a run in this folder already. Go on with it by resume=auto, or name a new one."
        )
    return folder, False


def log_to(folder: Path) -> None:
    """Messages go to stderr and to train.log."""
    file = logging.FileHandler(folder / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("fastrcnn").addHandler(file)


def run(config: TrainConfig) -> tuple[Path, Evaluation]:
    """The whole training that the configuration describes; returns the run's folder and the last evaluation."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    from fastrcnn import build

    build.check_solver(config.solver)
    folder, resumed = run_folder(config)
    import torch

    from fastrcnn.data.loader import detection_loader, training_loader
    from fastrcnn.evaluation.evaluate import evaluate, table, write_results
    from fastrcnn.model.sampling import RoISampler, delta_statistics
    from fastrcnn.model.vgg16 import parameter_count
    from fastrcnn.training import checkpoint
    from fastrcnn.training.loop import Schedule, seed_of, train
    from fastrcnn.training.optim import learning_rate, sgd
    from fastrcnn.training.tracking import Tracker, describe_run
    from fastrcnn.visualize import draw_batch

    device = build.device(config.runtime)
    dtype = build.precision(config.runtime, device)
    build.threads(config.runtime)
    workers = build.workers(config.runtime)
    solver, seed = config.solver, config.runtime.seed

    names = build.classes(config.data)
    train_set = build.training_set(config.data, names, seed)
    test_set = build.test_set(config.data, names)

    torch.manual_seed(seed_of(seed))
    model = build.model(config.model, len(names), load=not resumed)
    optimizer = sgd(model, solver.momentum, solver.weight_decay, solver.bias_lr_factor)
    start, best = 0, -1.0
    checkpoints = folder / "checkpoints"
    if resumed:
        path, state, refused = checkpoint.newest_sound(checkpoints)
        for reason in refused:
            log.warning("passed over: %s", reason)
        if state["classes"] != names:
            raise UserError(f"{path}: was trained on other classes ({', '.join(state['classes'])}).")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, best = state["step"], state["best"]
        log.info("going on from %s", path)
    else:
        log.info("%d training pictures; computing the statistics of their regression targets", len(train_set))
        pairs = (train_set.truth_and_proposals(i) for i in range(len(train_set)))
        mean, std = delta_statistics(pairs, len(names), solver.fg_iou, config.data.flip)
        model.delta_mean.copy_(mean)
        model.delta_std.copy_(std)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for values in optimizer.state.values():
        for name, value in values.items():
            values[name] = value.to(device) if isinstance(value, torch.Tensor) else value

    describe_run(folder, to_yaml(config))
    log_to(folder)
    log.info(
        "%s: %d classes, %d training and %d test pictures, %s parameters, %s, %s",
        folder,
        len(names),
        len(train_set),
        len(test_set),
        f"{parameter_count(model):,}",
        device,
        str(dtype).removeprefix("torch."),
    )
    tracker = Tracker(folder, start)
    outcome: list[Evaluation] = []

    def content(step: int) -> dict[str, Any]:
        return {
            "step": step,
            "best": best,
            "classes": names,
            "config": to_dict(config),
            "model": model.state_dict(),
        }

    def save(step: int) -> None:
        checkpoint.save(checkpoints / f"step-{step}.pt", content(step) | {"optimizer": optimizer.state_dict()})
        checkpoint.keep_last(checkpoints, config.runtime.keep_checkpoints)

    def evaluate_now(step: int) -> None:
        nonlocal best
        batches = detection_loader(test_set, workers=workers)
        result = evaluate(
            model,
            batches,
            len(test_set),
            names,
            build.metric(config.data),
            build.detection(config.detection),
            dtype,
        )
        outcome.append(result)
        mean_ap = result.ap.mean or 0.0
        tracker.scalars(step, {"eval/mAP": mean_ap} | {f"eval/ap/{n}": v or 0.0 for n, v in result.ap.ap.items()})
        log.info("step %d: mAP %.4f", step, mean_ap)
        if mean_ap > best:
            best = mean_ap
            checkpoint.save(checkpoints / "best.pt", content(step))

    def draw(step: int, batch: Any, rois: Any, targets: Any) -> None:
        tracker.picture(step, "train/rois", draw_batch(batch, rois, targets))

    schedule = Schedule(
        iterations=solver.iterations,
        rate=lambda step: learning_rate(
            step,
            solver.iterations,
            solver.lr,
            solver.schedule,
            solver.lr_steps,
            solver.lr_gamma,
            solver.warmup,
        ),
        start=start,
        seed=seed,
        log_every=config.runtime.log_every,
        evaluate_every=config.runtime.evaluate_every,
        checkpoint_every=config.runtime.checkpoint_every,
        pictures_every=config.runtime.pictures_every,
    )
    sampler = RoISampler(
        model.delta_mean.cpu(),
        model.delta_std.cpu(),
        solver.rois_per_image,
        solver.fg_fraction,
        solver.fg_iou,
        (solver.bg_iou[0], solver.bg_iou[1]),
    )
    if start >= solver.iterations:
        evaluate_now(start)
    else:
        loader = training_loader(train_set, solver.images_per_batch, workers, start)
        train(
            model,
            loader,
            sampler,
            optimizer,
            schedule,
            tracker,
            save=save,
            evaluate=evaluate_now,
            draw=draw,
            dtype=dtype,
            box_weight=solver.box_weight,
        )
    tracker.close()
    split = build.split_name(config.data.test)
    write_results(outcome[-1], folder / "eval" / split, split)
    print(table(outcome[-1]))
    print(f"run: {folder}")
    return folder, outcome[-1]
