"""Generate proposals, and build data sets and detectors, as the configuration specifies."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
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
from fastrcnn.data.frames import content_key
from fastrcnn.data.mosaics import mosaics
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
PREFIX_BYTES = 200  # maximum length of the prefix of a store's name; a complete file name can have 255
DRAWN_FROM = 0.5  # default draw_threshold if the network was not evaluated
LOW_RECALL = 0.5  # warn if the recall at IoU 0.5 is lower; selective search reaches 0.9 or more


def image_sources(config: DataConfig, splits: Sequence[str]) -> dict[str, tuple[Path, int | str | None]]:
    """Return a dict from each image id to the source of its annotations and its id in a COCO file (otherwise None)."""
    found: dict[str, tuple[Path, int | str | None]] = {}
    for source, ids in image_ids(config, list(dict.fromkeys(splits))):
        numbers = read_coco_file(source).numbers(root(config)) if is_coco(source) else {}
        for image_id in ids:
            found.setdefault(image_id, (source, numbers.get(image_id)))
    return found


def store_prefix(config: DataConfig, split: str) -> str:
    """Return the prefix of store names: the names of the data set and the split, truncated if they are long."""
    names = f"{config.name}-{split.replace('/', '-')}".encode(errors="surrogateescape")
    return names[:PREFIX_BYTES].decode(errors="ignore") + "-"


def proposal_path(config: DataConfig, pictures: Sequence[Sample], split: str) -> Path:
    """Return the path of the store for generated proposals of the images: an existing store, or one to write.

    The name contains a hash of the search settings, the version of selective search, and the bytes and orientations of
    all images, so an existing store is never out of date. split: a name for the images, which is a part of this name.
    """
    how = [searcher(config.selective_search), asdict(config.selective_search)]
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    for sample in sorted(pictures, key=lambda s: s.image_id):
        image_id = sample.image_id.encode(errors="surrogateescape")
        digest.update(image_id + b"\0" + content_key(sample))
    name = f"{store_prefix(config, split)}{digest.hexdigest()[:12]}.proposals"
    found = Path(config.proposal_cache).expanduser() / name
    if config.own_cache and distributed.any_of(not found.exists()):
        return Path(config.own_cache).expanduser() / name
    return found


def make_proposals(config: DataConfig, pictures: Sequence[Sample], path: Path, workers: int | None = None) -> Path:
    """Generate proposals for the images by selective search, write them to the store `path`, and return `path`.

    In distributed jobs each process handles a part of the images, and the first process writes the store.
    """
    settings = config.selective_search
    if distributed.size() > 1:
        check_order(pictures, path, settings)
        propose_some(distributed.share(pictures), path, settings, workers)
        distributed.wait_for_all()
    if distributed.leads():
        propose_all(pictures, path, settings, workers)
    distributed.wait_for_all()
    return path


def make_or_await(config: DataConfig, pictures: Sequence[Sample], path: Path) -> None:
    """Generate the proposals, or wait until another run (e.g. of a sweep) that generates the same ones has finished."""
    while True:
        try:
            make_proposals(config, pictures, path)
            return
        except BusyError:
            if distributed.size() > 1:
                raise
        say_once(f"Waiting for another run that is generating the same proposals: {path}")
        time.sleep(2)
        if path.exists():
            return


def proposals(config: DataConfig, pictures: Sequence[Sample], name: str) -> tuple[list[Sample], Proposals]:
    """Return the images to use, and a function that returns the proposals (P, 4) for the id of an image.

    The proposals are from data.proposals or selective search, which writes them to a store. Images without proposals
    are skipped if data.missing_proposals=leave_out. name: a name for the images, used in the name of the new store.
    Raises UserError if the store is invalid, or if proposals are missing or are for an image of another size.
    """
    pictures = list(pictures)
    if config.proposals is not None:
        path = Path(config.proposals).expanduser()
    else:
        path = proposal_path(config, pictures, name)
        if distributed.any_of(not path.exists()):
            kind = "mosaics" if any(s.tiles for s in pictures) else "images"
            log.info("Generating proposals for %d %s by selective search: %s", len(pictures), kind, path)
            make_or_await(config, pictures, path)
    store = ProposalStore(path)
    if config.missing_proposals == "leave_out" and (missing := set(store.missing([s.image_id for s in pictures]))):
        log.warning(
            "Skipping %d of %d images, because %s contains no proposals for them", len(missing), len(pictures), path
        )
        pictures = [s for s in pictures if s.image_id not in missing]
        if not pictures:
            raise UserError(f"{path}: none of the images has proposals in this store. Use the store of this data set.")
    store.check([s.image_id for s in pictures], [(s.height, s.width) for s in pictures])
    if len(store) > len(pictures):
        log.info("%s: using the proposals of %d of %d images", path, len(pictures), len(store))
    return pictures, store.boxes


def augmentation(config: DataConfig) -> Augmentation:
    """Return the random changes and sizes of training images that the configuration specifies."""
    sides = tuple(config.short_sides)
    turns = config.flip, config.flip_vertical, config.transpose
    return Augmentation(sides, config.long_side, *turns, config.colour, crop=config.crop)


def test_scaling(config: DataConfig) -> Augmentation:
    """Return the scaling of images in evaluation and detection, without random changes."""
    return Augmentation(tuple(config.test_short_sides), config.long_side, flip=False)


def training_samples(config: DataConfig, names: Sequence[str]) -> list[Sample]:
    """Return the images of data.train with their ground truth. Raises UserError if there is no object to train on."""
    found = samples(config, config.train, names, training=True)
    counts = np.bincount(np.concatenate([s.labels for s in found]), minlength=len(names) + 1)[1:]
    where = f"{config.root}, {', '.join(config.train)}"
    if not counts.any():
        left_out = " data.use_difficult=false excludes difficult objects." if not config.use_difficult else ""
        raise UserError(
            f"{where}: none of the {len(found)} images has an object to train on.{left_out} `fastrcnn check` lists the "
            "excluded objects and the reasons."
        )
    if lacking := [name for name, count in zip(names, counts, strict=True) if not count]:
        log.warning("%s: these classes have no training objects: %s", where, ", ".join(lacking))
    return found


def run_sets(
    config: DataConfig, names: Sequence[str], seed: int
) -> tuple[DetectionDataset, DetectionDataset | None, DetectionDataset | None]:
    """Return the data sets (images, ground truth and proposals) for training, validation and testing.

    The validation or test set is None if there is no such split. All files are checked before proposals are generated,
    which can take hours. Raises UserError if two different images have the same id, because proposals are stored by id.
    """
    val_splits = validation_splits(config)
    if distributed.leads():  # `unused` reads files that are not needed otherwise
        say_notes(unused(root(config), image_ids(config, [*config.train, *val_splits, *config.test])))
    train = training_samples(config, names)
    val, test = (samples(config, splits, names) if splits else [] for splits in (val_splits, config.test))
    report_shared(train, val, "data.train and data.val, so the mAP on data.val is too optimistic")
    report_shared(train, test, "data.train and data.test, so the mAP on data.test is too optimistic")
    report_shared(val, test, "data.val and data.test, so the best checkpoint is selected on test images")
    train_set = with_mosaics(config, with_proposals(config, train, config.train, augmentation(config), seed))
    val_set = with_proposals(config, val, val_splits, test_scaling(config)) if val else None
    return train_set, val_set, with_proposals(config, test, config.test, test_scaling(config)) if test else None


def report_shared(some: Sequence[Sample], others: Sequence[Sample], what: str) -> None:
    """Warn about images that two data sets share. Raises UserError if two different images have the same id.

    what: the end of the warning, with the names of the two data sets.
    """
    path_of = {s.image_id: s.path for s in some}
    shared = [s for s in others if s.image_id in path_of]
    if strangers := [s for s in shared if not s.path.samefile(path_of[s.image_id])]:
        first = strangers[0]
        raise UserError(
            f"Two images in different splits have the id '{first.image_id}': {path_of[first.image_id]} and "
            f"{first.path} (number of such ids: {len(strangers)}). Rename one of them. Image ids must be unique, "
            "because proposals and detections refer to images by id."
        )
    if shared:
        log.warning("%d image(s), such as '%s', are in both %s", len(shared), shared[0].image_id, what)


def with_proposals(
    config: DataConfig, pictures: Sequence[Sample], splits: Sequence[str], view: Augmentation, seed: int = 0
) -> DetectionDataset:
    """Return the data set of the images with their proposals. view: the scaling and augmentation of the images."""
    found, boxes = proposals(config, pictures, split_name(splits))
    return DetectionDataset(found, boxes, view, seed, config.max_proposals)


def with_mosaics(config: DataConfig, train_set: DetectionDataset) -> DetectionDataset:
    """Return the data set with data.mosaics mosaics per image added, and their proposals from selective search.

    Proposals that are moved from the images into the mosaics raise the AP less: see docs/notes.md. Therefore, no
    mosaics are added if data.proposals is set.
    """
    images = train_set.samples
    if not config.mosaics:
        return train_set
    if config.proposals is not None:
        log.warning(
            "data.mosaics: no mosaics are added, because data.proposals does not contain proposals for mosaics. To "
            "train on mosaics, omit data.proposals. To hide this warning, set data.mosaics=0"
        )
        return train_set
    made = mosaics(images, max(1, round(config.mosaics * len(images))))
    _, boxes = proposals(config, made, f"{split_name(config.train)}-mosaics")
    either = partial(_from_either, train_set.proposals, boxes, frozenset(mosaic.image_id for mosaic in made))
    return replace(train_set, samples=[*images, *made], proposals=either)


def _from_either(one: Proposals, other: Proposals, in_other: frozenset[str], image_id: str) -> np.ndarray:
    return (other if image_id in in_other else one)(image_id)


def plain_training_sets(config: DataConfig, names: Sequence[str]) -> list[DetectionDataset]:
    """Return a list with a data set of the training images without random augmentation.

    With data.flip, the list also contains a data set of their mirror images, as in the author's code.
    """
    plain = with_proposals(config, training_samples(config, names), config.train, test_scaling(config))
    return [plain, replace(plain, augmentation=replace(plain.augmentation, mirrored=True))] if config.flip else [plain]


def test_set(
    config: DataConfig, names: Sequence[str], split: str | None = None, truth: bool = True
) -> DetectionDataset:
    """Return the data set of data.test or `split`, with ground truth (including difficult objects) if `truth`."""
    splits = test_splits(config, split)
    found = samples(config, splits, names) if truth else pictures_alone(config, splits)
    return with_proposals(config, found, splits, test_scaling(config))


def detector(config: DetectConfig, network: Network, names: Sequence[str]) -> Detector:
    """Return the detector: the network with its preprocessing, proposals and postprocessing."""
    settings = detection(config.detection, network.classifier)
    search, limit = config.data.selective_search, config.data.max_proposals
    if config.data.proposals is None:
        searcher(search)
    threshold = DRAWN_FROM if config.draw_threshold is None else config.draw_threshold
    proposals = lambda image: propose(image, search)[:limit]  # noqa: E731
    return Detector(network, names, settings, test_scaling(config.data), proposals, threshold)


def say_recall(train_set: DetectionDataset, names: Sequence[str]) -> None:
    """Log the recall of the proposals on training objects, and warn if it is too low for training."""
    images = [i for i, sample in enumerate(train_set.samples) if not sample.tiles]
    chosen = images[:: max(1, len(images) // 300)]
    boxes = (train_set.proposal_boxes(i) for i in chosen)
    found = proposal_recall(boxes, [train_set.samples[i] for i in chosen], names)
    if (recall := found.all.at_50) is None:
        return
    what = "Proposals: %.0f per image on average, recall %.1f %% at IoU 0.5 (measured on %d images)"
    log.info(what, found.proposals, 100 * recall, found.images)
    if recall < LOW_RECALL:
        log.warning(
            "The recall of the proposals is low, and objects without an overlapping proposal cannot be detected. If "
            "another program generated the proposals, check their box convention with "
            "`fastrcnn proposals-check proposals=FILE data=... data.root=...`"
        )
