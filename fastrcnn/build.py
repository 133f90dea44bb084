"""The only reader of the configuration: turns it into objects made of plain arguments."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from fastrcnn.config import (
    DataConfig,
    DetectionConfig,
    ModelConfig,
    RuntimeConfig,
    SelectiveSearchConfig,
    SolverConfig,
    TrainConfig,
)
from fastrcnn.data.annotations import class_names, find_split, is_coco, load
from fastrcnn.data.dataset import DetectionDataset, Proposals, picture_faults
from fastrcnn.data.images import image_size, read_bytes
from fastrcnn.data.proposals import ProposalStore
from fastrcnn.data.selective_search import SelectiveSearchSettings, propose_all
from fastrcnn.data.transforms import Augmentation
from fastrcnn.data.truth import Problems, shortened
from fastrcnn.data.voc import IMAGE_SUFFIXES, pictures_without_annotation
from fastrcnn.errors import UserError, nearest
from fastrcnn.evaluation.recall import proposal_recall
from fastrcnn.evaluation.voc_ap import METRICS, Metric
from fastrcnn.inference import DetectionSettings
from fastrcnn.model import caffe, weights
from fastrcnn.model.fast_rcnn import ROI_OPS, FastRCNN
from fastrcnn.model.pixels import PIXELS
from fastrcnn.model.sampling import RoISampler, delta_statistics
from fastrcnn.model.vgg16 import (
    CONV_NAMES,
    FINETUNE_FROM,
    channels_of,
    freeze_before,
    head_shapes,
    largest_rank,
)
from fastrcnn.structures import Sample
from fastrcnn.training.loop import Schedule
from fastrcnn.training.optim import OPTIMIZERS, learning_rate

log = logging.getLogger(__name__)
CHOICES = ("refuse", "leave_out")
LOW_RECALL = 0.5  # of the proposals at IoU .5; selective search has .9 and more
MEND_PICTURES = "Mend the files, or leave out what is wrong with data.skip_bad=true."


def one_of(key: str, value: str, known: Sequence[str]) -> str:
    """The value, or a UserError with the values there are."""
    if value not in known:
        raise UserError(f"{key}={value}: should be one of {', '.join(known)}.{nearest(value, known)}")
    return value


# Machine ---------------------------------------------------------------------------------------------------------


def device(config: RuntimeConfig) -> torch.device:
    """The device to run on."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(config.device)
    except RuntimeError:
        raise UserError(f"runtime.device={config.device}: should be auto, cpu, cuda or cuda:N.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"runtime.device={config.device}: torch sees {torch.cuda.device_count()} CUDA device(s) here.")
    return chosen


def precision(config: RuntimeConfig, on: torch.device) -> torch.dtype:
    """float32, or bfloat16 where it is asked for or, with `auto`, where the device computes in it natively."""
    one_of("runtime.precision", config.precision, ("auto", "float32", "bfloat16"))
    if config.precision != "auto":
        return getattr(torch, config.precision)
    if on.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Instructions for bfloat16, not mere support: without them oneDNN is slower than float32. torch knows, but
        # has no public question for it yet.
        known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        fast = any(ask() for ask in known if ask is not None)
    return torch.bfloat16 if fast else torch.float32


def threads(config: RuntimeConfig) -> None:
    """Sets the number of threads that torch uses."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def workers(config: RuntimeConfig) -> int:
    """Loader processes: one for every two cores, four at most, unless said."""
    if config.workers is not None:
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores // 2)


# Data ------------------------------------------------------------------------------------------------------------


def root(config: DataConfig) -> Path:
    """The data set's folder, or its COCO file."""
    if config.root is None:
        raise UserError(
            f"data.root is missing: the folder of the data set '{config.name}', as data.root=FOLDER. For VOC it is "
            "VOCdevkit; for a set of your own the folder with JPEGImages and Annotations, or a COCO annotation file."
        )
    folder = Path(config.root).expanduser()
    if not folder.is_dir() and not (folder.is_file() and is_coco(folder)):
        raise UserError(f"data.root={config.root}: there is no such folder.")
    return folder


def absolute_paths(config: DataConfig) -> None:
    """Makes the paths of a data set absolute, so that a run can be evaluated from any folder.

    Raises UserError where the data set's folder is not there, with the path as it was given.
    """
    root(config)
    for name in ("root", "proposals", "proposal_cache"):
        if (path := getattr(config, name)) is not None:
            setattr(config, name, str(Path(path).expanduser().resolve()))


def image_ids(config: DataConfig, splits: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """For each split the source of its annotations, a folder in VOC layout or a COCO file, and its image ids."""
    if not splits:
        raise UserError("data.train and data.test name at least one split list each, as data.train=[trainval].")
    found = []
    for split in splits:
        source, ids, made = find_split(root(config), split)
        if made:
            say_once(
                f"{source}: has no split lists, so {len(ids)} images, chosen by their ids, are its '{split}'"
                f"{unannotated(source)}"
            )
        found.append((source, ids[: config.max_images]))
    return found


def unannotated(source: Path) -> str:
    """Words about pictures without an annotation in a folder that has no split lists."""
    number = 0 if is_coco(source) else len(pictures_without_annotation(source))
    return f"; {number} picture(s) without an annotation are not used" if number else ""


@functools.cache
def say_once(text: str) -> None:
    """Puts a line into the log that would otherwise come every time the data set is looked at."""
    log.info(text)


def classes(config: DataConfig) -> list[str]:
    """Names of the classes; label i is number i - 1 of the list."""
    if config.classes is not None:
        return checked_names(config.classes)
    found = [class_names(source, ids) for source, ids in image_ids(config, config.train)]
    names = list(dict.fromkeys(name for part, _ in found for name in part))
    if len(found) > 1 or not any(is_coco(source) for source, _ in image_ids(config, config.train)):
        names.sort()
    if any(problems.found for _, problems in found) and not config.skip_bad:
        samples(config, config.train, names)  # raises, naming all that is wrong
    if not names:
        raise UserError(f"{config.root}: no object in any annotation of {', '.join(config.train)}.")
    return checked_names(names)


def checked_names(names: list[str]) -> list[str]:
    """The names of the classes; UserError where there are none, one comes twice, or a file cannot be named so."""
    if not names:
        raise UserError("data.classes=[]: name at least one class, or say null for all that the annotations have.")
    for name in names:
        if not name or name != Path(name).name or "\\" in name:
            raise UserError(
                f"data.classes: '{name}' cannot be part of a file's name, as the detections' names need it."
            )
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise UserError(f"data.classes: '{twice[0]}' comes twice.")
    return list(names)


def samples(
    config: DataConfig,
    splits: Sequence[str],
    names: Sequence[str],
    training: bool = False,
    need_pictures: bool = True,
) -> list[Sample]:
    """Pictures and truth of the splits.

    training: difficult objects as `data.use_difficult` says, and no crowds; else both are there, and marked.
    need_pictures: whether the pictures must be there and whole; the truth alone does for saved detections.
    """
    one_of("data.other_classes", config.other_classes, CHOICES)
    found: list[Sample] = []
    for source, ids in image_ids(config, splits):
        part, problems = load(
            source,
            ids,
            names,
            training=training,
            use_difficult=config.use_difficult,
            skip_bad=config.skip_bad,
            need_pictures=need_pictures,
            first_pixel=config.first_pixel,
            leave_out_others=config.other_classes == "leave_out",
        )
        report(source, problems)
        found += part
    if need_pictures:
        found = whole_pictures(found, config.skip_bad)
    if not found:
        raise UserError(f"{config.root}: no picture of {', '.join(splits) or 'an empty list of splits'} can be used.")
    twice = [i for i, n in Counter(s.image_id for s in found).items() if n > 1]
    if twice:
        raise UserError(
            f"{', '.join(splits)}: '{twice[0]}' is in more than one of these lists ({len(twice)} such ids). "
            "Ids must differ, also between folders: proposals and detections are kept by id."
        )
    return found


def report(source: Path, problems: Problems) -> None:
    """Says what was done about things that are wrong, but no reason to stop."""
    if problems.at_zero:
        log.warning(
            "%s: %d box(es) begin at 0, before the first pixel, which is 1 in VOC. If the whole data set counts from "
            "0, say data.first_pixel=0; otherwise they are clipped",
            source,
            problems.at_zero,
        )
    if problems.clipped > problems.at_zero:
        log.info("%s: %d box(es) a pixel out of their picture were clipped", source, problems.clipped)
    if problems.other_classes:
        others = ", ".join(f"{name} ({n})" for name, n in problems.other_classes.most_common(10))
        log.info("%s: objects of other classes left out: %s", source, others)
    if problems.found:
        log.warning("%d left out (data.skip_bad):\n%s", len(problems.found), problems.text())


def whole_pictures(found: list[Sample], skip_bad: bool) -> list[Sample]:
    """Those samples whose picture is whole and of the size that its annotation gives.

    Raises UserError, naming all that are not, unless `skip_bad`.
    """
    faults = picture_faults(found)
    bad = [fault for fault in faults if fault]
    if bad and not skip_bad:
        lines = shortened(bad)
        raise UserError(f"{len(bad)} of {len(found)} pictures cannot be used:\n{lines}\n{MEND_PICTURES}")
    if bad:
        log.warning("%d picture(s) left out (data.skip_bad):\n%s", len(bad), shortened(bad))
    return [sample for sample, fault in zip(found, faults, strict=True) if not fault]


def selective_search(config: SelectiveSearchConfig) -> SelectiveSearchSettings:
    """How proposals are made."""
    return SelectiveSearchSettings(**{**asdict(config), "k": tuple(config.k)})


def proposal_path(config: DataConfig, pictures: Sequence[Sample], split: str) -> Path:
    """Where generated proposals of the pictures are kept: a name that depends on the settings and every byte of
    the pictures, so that what is found there is never out of date."""
    digest = hashlib.sha256(json.dumps(asdict(config.selective_search), sort_keys=True).encode())
    for sample in sorted(pictures, key=lambda s: s.image_id):
        digest.update(sample.image_id.encode() + b"\0" + hashlib.sha256(sample.path.read_bytes()).digest())
    name = f"{config.name}-{split.replace('/', '-')}-{digest.hexdigest()[:12]}.proposals"
    return Path(config.proposal_cache).expanduser() / name


def make_proposals(config: DataConfig, pictures: Sequence[Sample], path: Path, workers: int | None = None) -> Path:
    """Proposals of the pictures by selective search, in the store `path`."""
    propose_all([(s.image_id, s.path) for s in pictures], path, selective_search(config.selective_search), workers)
    return path


def proposals(config: DataConfig, pictures: Sequence[Sample], name: str) -> tuple[list[Sample], Proposals]:
    """The pictures that are used, and their boxes: from the store `data.proposals`, or made by selective search and
    kept. Pictures that the store lacks are left out where `data.missing_proposals` says so.

    name: what the pictures are, for the name of the kept store.
    """
    one_of("data.missing_proposals", config.missing_proposals, CHOICES)
    pictures = list(pictures)
    if config.proposals is not None:
        path = Path(config.proposals).expanduser()
    else:
        path = proposal_path(config, pictures, name)
        if not path.exists():
            log.info("making proposals of %d pictures by selective search: %s", len(pictures), path)
            make_proposals(config, pictures, path)
    store = ProposalStore(path)
    if config.missing_proposals == "leave_out" and (missing := set(store.missing([s.image_id for s in pictures]))):
        log.warning("%s has nothing for %d of %d pictures, which are left out", path, len(missing), len(pictures))
        pictures = [s for s in pictures if s.image_id not in missing]
        if not pictures:
            raise UserError(f"{path}: the proposals belong to other images: there is none for any of these.")
    store.check([s.image_id for s in pictures], [(s.height, s.width) for s in pictures])
    if len(store) > len(pictures):
        log.info("%s: %d of its %d images are used here", path, len(pictures), len(store))
    return pictures, store.boxes


def split_name(splits: Sequence[str]) -> str:
    """A name for split lists that a file can bear: test, VOC2007-test, ..."""
    return "+".join(splits).replace("/", "-")


def metric(config: DataConfig) -> Metric:
    """The AP that is asked for."""
    return cast(Metric, one_of("data.metric", config.metric, METRICS))


def augmentation(config: DataConfig) -> Augmentation:
    """What training does to pictures."""
    if not config.short_sides:
        raise UserError("data.short_sides is empty: give at least one length, as data.short_sides=[600].")
    return Augmentation(
        tuple(config.short_sides),
        config.long_side,
        config.flip,
        config.flip_vertical,
        config.transpose,
        config.colour,
    )


def test_scaling(config: DataConfig) -> Augmentation:
    """What evaluation and detection do to pictures: one scale, nothing random."""
    return Augmentation((config.test_short_side,), config.long_side, flip=False)


def training_set(config: DataConfig, names: Sequence[str], seed: int) -> DetectionDataset:
    """Pictures, truth and proposals to train on."""
    varied = augmentation(config)  # a mistake shows before hours of proposals
    found, boxes = proposals(config, samples(config, config.train, names, training=True), split_name(config.train))
    return DetectionDataset(found, boxes, varied, seed, config.max_proposals)


def test_splits(config: DataConfig, split: str | None) -> list[str]:
    """The split lists of an evaluation: data.test, or `split` in the same folders."""
    if split is None:
        return config.test
    if "/" in split:
        return [split]
    folders = dict.fromkeys(t.rpartition("/")[0] for t in config.test)
    return [f"{folder}/{split}" if folder else split for folder in folders]


def test_set(config: DataConfig, names: Sequence[str], split: str | None = None) -> DetectionDataset:
    """Pictures, truth (difficult objects too) and proposals to evaluate on."""
    splits = test_splits(config, split)
    found, boxes = proposals(config, samples(config, splits, names), split_name(splits))
    return DetectionDataset(found, boxes, test_scaling(config), 0, config.max_proposals)


def pictures(source: str) -> list[Path]:
    """The pictures that `source` means: a file, a folder, or a pattern. Raises UserError where there is none."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        what = "the folder has no picture" if path.is_dir() else "there is no such file, folder or pattern"
        raise UserError(f"source={source}: {what} ({', '.join(IMAGE_SUFFIXES)}).")
    return found


def without_truth(paths: Sequence[Path]) -> list[Sample]:
    """Samples of pictures that nothing is known about; an id is the file's name, with its folder where two agree.

    Raises UserError naming all files that are no pictures.
    """
    stems = Counter(p.stem for p in paths)
    taken: Counter[str] = Counter()
    found, bad = [], []
    for path in paths:
        try:
            width, height = image_size(read_bytes(path), path)
        except UserError as error:
            bad.append(str(error))
            continue
        image_id = path.stem if stems[path.stem] == 1 else f"{path.parent.name}_{path.name}"
        taken[image_id] += 1
        if taken[image_id] > 1:  # folders of one name in different places
            image_id = f"{image_id}_{taken[image_id]}"
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        found.append(Sample(image_id, path, width, height, *nothing))
    if bad:
        raise UserError(f"{len(bad)} of {len(paths)} files cannot be used:\n  " + "\n  ".join(bad))
    return found


def picture_set(config: DataConfig, paths: Sequence[Path]) -> DetectionDataset:
    """Pictures to detect on, with proposals."""
    found, boxes = proposals(config, without_truth(paths), "pictures")
    return DetectionDataset(found, boxes, test_scaling(config), 0, config.max_proposals)


# Model -----------------------------------------------------------------------------------------------------------


def model(config: ModelConfig, num_classes: int, load: bool = True) -> FastRCNN:
    """The network; `load`: with the weights that the configuration names (not needed before a checkpoint's)."""
    one_of("model.roi_op", config.roi_op, ROI_OPS)
    one_of("model.finetune_from", config.finetune_from, FINETUNE_FROM)
    one_of("model.pixels", config.pixels, ("auto", *PIXELS))
    for name in config.roi_features or [""]:
        one_of("model.roi_features", name, CONV_NAMES)
    ranks = {"fc6": config.fc6_rank, "fc7": config.fc7_rank}
    for name, shape in head_shapes(channels_of("conv5_3", config.width), config.roi_size, config.width).items():
        check_rank(f"model.{name}_rank", ranks[name], *shape)
    built = FastRCNN(
        num_classes,
        config.width,
        config.batch_norm,
        config.roi_size,
        config.roi_op,
        config.roi_features,
        config.dropout,
        fc6_rank=config.fc6_rank,
        fc7_rank=config.fc7_rank,
    )
    if load and config.weights is not None:
        if config.weights == "imagenet":
            state, source = weights.torchvision_vgg16(), "ImageNet weights"
        else:
            state, source = weights.read_state_dict(Path(config.weights).expanduser()), config.weights
        weights.load_vgg16(built, state, source, config.pixels)
    freeze_before(built.trunk, config.finetune_from)
    return built


def check_rank(key: str, rank: int | None, rows: int, columns: int) -> None:
    """Raises UserError for a rank whose two factors are no smaller than the layer of rows x columns."""
    if rank is not None and rank > largest_rank(rows, columns):
        raise UserError(
            f"{key}={rank}: two layers of this rank have {rank * (rows + columns):,} weights, no fewer than the "
            f"{rows * columns:,} of the one layer. At most {largest_rank(rows, columns)} makes it smaller."
        )


def trained_model(config: dict[str, Any], num_classes: int) -> FastRCNN:
    """The network of a run's configuration, its weights yet to be loaded."""
    known = {f.name for f in fields(ModelConfig)}
    return model(ModelConfig(**{k: v for k, v in config["model"].items() if k in known}), num_classes, load=False)


def caffe_detector(path: Path, names: Sequence[str]) -> FastRCNN:
    """A detector that the author's Caffe code trained, with its weights. Raises UserError where it is none of VGG16,
    or not of as many classes."""
    state = caffe.read(path)
    width, num_classes, ranks = weights.detector_layout(state, str(path))
    if num_classes != len(names):
        raise UserError(
            f"{path}: a detector of {num_classes} classes, but data.classes has {len(names)} "
            f"({', '.join(names[:5])}{' ...' if len(names) > 5 else ''}). It needs the names, in the order of training."
        )
    config = ModelConfig(width=width, fc6_rank=ranks["fc6"], fc7_rank=ranks["fc7"])
    built = model(config, num_classes, load=False)
    weights.load_detector(built, state, str(path))
    return built


def check_solver(config: SolverConfig) -> None:
    """Raises UserError for values that cannot be trained with."""
    one_of("solver.schedule", config.schedule, ("step", "cosine"))
    one_of("solver.optimizer", config.optimizer, OPTIMIZERS)
    if len(config.bg_iou) != 2 or not config.bg_iou[0] < config.bg_iou[1]:
        raise UserError(f"solver.bg_iou={config.bg_iou}: should be two overlaps, the first below the second.")


def say_recall(train_set: DetectionDataset, names: Sequence[str]) -> None:
    """Says what share of the training objects the proposals find, and warns where that is too little to learn from."""
    chosen = range(0, len(train_set), max(1, len(train_set) // 300))
    found = proposal_recall(
        (train_set.proposal_boxes(i) for i in chosen), [train_set.samples[i] for i in chosen], names
    )
    if found.all.at_50 is None:
        return
    log.info(
        "proposals: %.0f of a picture on average; they find %.1f %% of the objects (IoU .5), in %d pictures",
        found.proposals,
        100 * found.all.at_50,
        found.images,
    )
    if found.all.at_50 < LOW_RECALL:
        log.warning(
            "that is little: what has no proposal cannot be learned. If the proposals came from elsewhere, "
            "`fastrcnn proposals-check proposals=FILE data=... data.root=...` says whether their boxes mean "
            "something else"
        )


def set_delta_statistics(model: FastRCNN, train_set: DetectionDataset, config: TrainConfig) -> None:
    """Computes mean and deviation of the regression targets over the training set into the model's buffers."""
    pairs = (train_set.truth_and_proposals(i) for i in range(len(train_set)))
    mean, std = delta_statistics(pairs, model.num_classes, config.solver.fg_iou, config.data.flip)
    model.delta_mean.copy_(mean)
    model.delta_std.copy_(std)


def sampler(config: SolverConfig, model: FastRCNN) -> RoISampler:
    """Draws a step's RoIs; targets are normalised by the model's statistics."""
    return RoISampler(
        model.delta_mean.cpu(),
        model.delta_std.cpu(),
        config.rois_per_image,
        config.fg_fraction,
        config.fg_iou,
        (config.bg_iou[0], config.bg_iou[1]),
    )


def schedule(config: TrainConfig, start: int) -> Schedule:
    """What happens at which step."""
    s, r = config.solver, config.runtime
    return Schedule(
        iterations=s.iterations,
        rate=lambda step: learning_rate(step, s.iterations, s.lr, s.schedule, s.lr_steps, s.lr_gamma, s.warmup),
        start=start,
        seed=r.seed,
        log_every=r.log_every,
        evaluate_every=r.evaluate_every,
        checkpoint_every=r.checkpoint_every,
        pictures_every=r.pictures_every,
    )


def detection(config: DetectionConfig) -> DetectionSettings:
    """How scores become detections."""
    return DetectionSettings(**asdict(config))
