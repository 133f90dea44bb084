"""The data part of the configuration, second half: proposals, and what training and detection read."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from fastrcnn.build.annotations import (
    image_ids,
    pictures_alone,
    root,
    samples,
    say_notes,
    say_once,
    split_name,
    test_splits,
    validation_splits,
)
from fastrcnn.build.models import detection
from fastrcnn.config.schema import DataConfig, DetectConfig
from fastrcnn.data.annotations.formats.coco_file import read_coco_file
from fastrcnn.data.annotations.layouts import is_coco
from fastrcnn.data.annotations.unused import unused
from fastrcnn.data.dataset import DetectionDataset, Proposals
from fastrcnn.data.images import pixels_key
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.evaluation.recall import proposal_recall
from fastrcnn.files import BusyError
from fastrcnn.inference.detector import Detector
from fastrcnn.inference.network import Network
from fastrcnn.parallel import distributed
from fastrcnn.proposals.generate import check_order, propose_all, propose_some
from fastrcnn.proposals.selective_search import propose, searcher
from fastrcnn.proposals.store import ProposalStore
from fastrcnn.structures import Sample

log = logging.getLogger(__name__)
PREFIX_BYTES = 200  # of the name of a store, which may have 255 with what follows and those of its temporary files
DRAWN_FROM = 0.5  # a score, where no evaluation of the network is known
LOW_RECALL = 0.5  # of the proposals at IoU .5; selective search has .9 and more


def image_sources(config: DataConfig, splits: Sequence[str]) -> dict[str, tuple[Path, int | str | None]]:
    """The source of the annotations of each image of the splits, and its number in a COCO file, by its id."""
    found: dict[str, tuple[Path, int | str | None]] = {}
    for source, ids in image_ids(config, list(dict.fromkeys(splits))):
        numbers = read_coco_file(source).numbers(root(config)) if is_coco(source) else {}
        for image_id in ids:
            found.setdefault(image_id, (source, numbers.get(image_id)))
    return found


def store_prefix(config: DataConfig, split: str) -> str:
    """How the names of the kept stores of a data set's split begin: with the names of both, cut if they are long."""
    names = f"{config.name}-{split.replace('/', '-')}".encode(errors="surrogateescape")
    return names[:PREFIX_BYTES].decode(errors="ignore") + "-"


def proposal_path(config: DataConfig, pictures: Sequence[Sample], split: str) -> Path:
    """Where generated proposals of the pictures are kept: a name that depends on the settings, the program, every byte
    of the pictures and how they are rotated, so that what is found there is never out of date."""
    how = [searcher(config.selective_search), asdict(config.selective_search)]
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    for sample in sorted(pictures, key=lambda s: s.image_id):
        image_id = sample.image_id.encode(errors="surrogateescape")
        digest.update(image_id + b"\0" + pixels_key(sample.path.read_bytes(), sample.turn))
    name = f"{store_prefix(config, split)}{digest.hexdigest()[:12]}.proposals"
    return Path(config.proposal_cache).expanduser() / name


def make_proposals(config: DataConfig, pictures: Sequence[Sample], path: Path, workers: int | None = None) -> Path:
    """Proposals of the pictures by selective search, in the store `path`. In a group of processes each makes a share,
    and the first puts the store together."""
    images, settings = [(s.image_id, s.path, s.turn) for s in pictures], config.selective_search
    if distributed.size() > 1:
        check_order(images, path, config.selective_search)
        propose_some(distributed.share(images), path, settings, workers)
        distributed.wait_for_all()
    if distributed.leads():
        propose_all(images, path, settings, workers)
    distributed.wait_for_all()
    return path


def make_or_await(config: DataConfig, pictures: Sequence[Sample], path: Path) -> None:
    """Makes the proposals, or waits where another run, of a sweep for one, is making the same."""
    while True:
        try:
            make_proposals(config, pictures, path)
            return
        except BusyError:
            if distributed.size() > 1:
                raise
        say_once(f"{path}: another run is making these proposals; waiting for it")
        time.sleep(2)
        if path.exists():
            return


def proposals(config: DataConfig, pictures: Sequence[Sample], name: str) -> tuple[list[Sample], Proposals]:
    """The pictures that are used, and their boxes: from the store `data.proposals`, or made by selective search and
    kept. Pictures that the store lacks are left out where `data.missing_proposals` says so.

    name: what the pictures are, for the name of the kept store.
    """
    pictures = list(pictures)
    if config.proposals is not None:
        path = Path(config.proposals).expanduser()
    else:
        path = proposal_path(config, pictures, name)
        if distributed.any_of(not path.exists()):
            log.info("making proposals of %d pictures by selective search: %s", len(pictures), path)
            make_or_await(config, pictures, path)
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


def augmentation(config: DataConfig) -> Augmentation:
    """What training does to pictures."""
    sides = tuple(config.short_sides)
    turns = config.flip, config.flip_vertical, config.transpose
    return Augmentation(sides, config.long_side, *turns, config.colour, crop=config.crop)


def test_scaling(config: DataConfig) -> Augmentation:
    """What evaluation and detection do to pictures: the scales, nothing random."""
    return Augmentation(tuple(config.test_short_sides), config.long_side, flip=False)


def training_samples(config: DataConfig, names: Sequence[str]) -> list[Sample]:
    """Images and truth to train on. Raises UserError where there is no object, and reports classes that have none."""
    found = samples(config, config.train, names, training=True)
    counts = np.bincount(np.concatenate([s.labels for s in found]), minlength=len(names) + 1)[1:]
    where = f"{config.root}, {', '.join(config.train)}"
    if not counts.any():
        left_out = " Difficult objects are left out by data.use_difficult=false." if not config.use_difficult else ""
        raise UserError(
            f"{where}: none of the {len(found)} images has an object to train on, so there is nothing to learn."
            f"{left_out} `fastrcnn check` lists what is left out, and why."
        )
    if lacking := [name for name, count in zip(names, counts, strict=True) if not count]:
        log.warning("%s: no object to train on of the classes %s", where, ", ".join(lacking))
    return found


def run_sets(
    config: DataConfig, names: Sequence[str], seed: int
) -> tuple[DetectionDataset, DetectionDataset | None, DetectionDataset | None]:
    """Images, truth and proposals to train on; to choose the best weights on, and to evaluate on, where there are such
    splits. All files are read before proposals are made, which can take hours.

    Raises UserError for one id of two different images, which would get each other's proposals.
    """
    val_splits = validation_splits(config)
    if distributed.leads():  # it reads files that are not needed otherwise
        say_notes(unused(root(config), image_ids(config, [*config.train, *val_splits, *config.test])))
    train = training_samples(config, names)
    val, test = (samples(config, splits, names) if splits else [] for splits in (val_splits, config.test))
    report_shared(train, val, "trained on and in data.val, which should show images that training has not seen")
    report_shared(train, test, "trained on and tested on")
    report_shared(val, test, "in data.val and data.test, so that the best weights are chosen on what is tested")
    train_set = with_proposals(config, train, config.train, augmentation(config), seed)
    val_set = with_proposals(config, val, val_splits, test_scaling(config)) if val else None
    return train_set, val_set, with_proposals(config, test, config.test, test_scaling(config)) if test else None


def report_shared(some: Sequence[Sample], others: Sequence[Sample], what: str) -> None:
    """Warns of images that two sets share. Raises UserError for one id of two different images."""
    path_of = {s.image_id: s.path for s in some}
    shared = [s for s in others if s.image_id in path_of]
    if strangers := [s for s in shared if not s.path.samefile(path_of[s.image_id])]:
        first = strangers[0]
        raise UserError(
            f"'{first.image_id}' is the id of two images in different splits, {path_of[first.image_id]} and "
            f"{first.path} ({len(strangers)} such ids). Proposals and detections are kept by id: rename one of them."
        )
    if shared:
        log.warning("%d images are both %s, such as '%s'", len(shared), what, shared[0].image_id)


def with_proposals(
    config: DataConfig, pictures: Sequence[Sample], splits: Sequence[str], view: Augmentation, seed: int = 0
) -> DetectionDataset:
    """The pictures of the splits with their proposals, as `view` shows them."""
    found, boxes = proposals(config, pictures, split_name(splits))
    return DetectionDataset(found, boxes, view, seed, config.max_proposals)


def plain_training_sets(config: DataConfig, names: Sequence[str]) -> list[DetectionDataset]:
    """Pictures, truth and proposals to train on as detection sees pictures; then, with data.flip, all of
    them mirrored, as the author's code appends them."""
    plain = with_proposals(config, training_samples(config, names), config.train, test_scaling(config))
    return [plain, replace(plain, augmentation=replace(plain.augmentation, mirrored=True))] if config.flip else [plain]


def test_set(
    config: DataConfig, names: Sequence[str], split: str | None = None, truth: bool = True
) -> DetectionDataset:
    """Pictures, proposals, and unless `truth` is false the truth (difficult objects too), to evaluate on."""
    splits = test_splits(config, split)
    found = samples(config, splits, names) if truth else pictures_alone(config, splits)
    return with_proposals(config, found, splits, test_scaling(config))


def detector(config: DetectConfig, network: Network, names: Sequence[str]) -> Detector:
    """The network with all that stands around it when it detects."""
    settings = detection(config.detection, network.classifier)
    search, limit = config.data.selective_search, config.data.max_proposals
    if config.data.proposals is None:
        searcher(search)
    threshold = DRAWN_FROM if config.draw_threshold is None else config.draw_threshold
    proposals = lambda image: propose(image, search)[:limit]  # noqa: E731
    return Detector(network, names, settings, test_scaling(config.data), proposals, threshold)


def say_recall(train_set: DetectionDataset, names: Sequence[str]) -> None:
    """Says what share of the training objects the proposals find, and warns where that is too little to learn from."""
    chosen = range(0, len(train_set), max(1, len(train_set) // 300))
    boxes = (train_set.proposal_boxes(i) for i in chosen)
    found = proposal_recall(boxes, [train_set.samples[i] for i in chosen], names)
    if (recall := found.all.at_50) is None:
        return
    what = "proposals: %.0f of a picture on average; they find %.1f %% of the objects (IoU .5), in %d pictures"
    log.info(what, found.proposals, 100 * recall, found.images)
    if recall < LOW_RECALL:
        log.warning(
            "that is little: what has no proposal cannot be learned. If the proposals came from elsewhere, "
            "`fastrcnn proposals-check proposals=FILE data=... data.root=...` says whether their boxes mean "
            "something else"
        )
