"""The data part of the configuration, first half: splits, classes, and pictures with their truth."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from fastrcnn.build import one_of
from fastrcnn.config import DataConfig, check_name
from fastrcnn.data.annotations import class_names, find_split, is_coco, load
from fastrcnn.data.coco import read_coco_file
from fastrcnn.data.dataset import picture_faults
from fastrcnn.data.truth import Problems, shortened
from fastrcnn.data.unannotated import load_unannotated, without_annotation
from fastrcnn.data.voc import pictures_without_annotation
from fastrcnn.errors import UserError
from fastrcnn.evaluation.metric import METRICS, Metric
from fastrcnn.structures import Sample

log = logging.getLogger(__name__)
CHOICES = ("refuse", "leave_out")
MEND_PICTURES = "Mend the files, or leave out what is wrong with data.skip_bad=true."


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
        raise UserError(
            "no split list is named: data.train, or to evaluate data.test or split=NAME, should have at least one, as "
            "data.train=[trainval]."
        )
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
    for split, (source, ids) in zip(splits, image_ids(config, splits), strict=True):
        if not training:
            refuse_without_truth(source, split, ids, config.skip_bad)
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


def refuse_without_truth(source: Path, split: str, ids: Sequence[str], skip_bad: bool) -> None:
    """Raises UserError where all images of a split lack an annotation, or most do and none may be left out."""
    lacking = without_annotation(source, ids)
    if lacking == len(ids) or (2 * lacking > len(ids) and not skip_bad):
        raise UserError(
            f"{source}: {lacking} of the {len(ids)} images of '{split}' have no annotation, as in test sets whose "
            "truth is not public. An AP needs the truth: choose another split, or write the detections for the "
            "evaluation server by `fastrcnn eval` with competition=true."
        )


def pictures_alone(config: DataConfig, splits: Sequence[str]) -> list[Sample]:
    """The pictures of the splits without truth, whether there is some or not, in sizes of their own."""
    found: list[Sample] = []
    bad: list[str] = []
    for source, ids in image_ids(config, splits):
        part, faults = load_unannotated(source, ids)
        found += part
        bad += faults
    if bad and (not config.skip_bad or not found):
        raise UserError(f"{len(bad)} pictures cannot be used:\n{shortened(bad)}\n{MEND_PICTURES}")
    if bad:
        log.warning("%d picture(s) left out (data.skip_bad):\n%s", len(bad), shortened(bad))
    return found


def category_ids(config: DataConfig, splits: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Numbers of the classes in COCO results: those of the splits' COCO file, as far as it has them, else labels."""
    files = [read_coco_file(source) for source, _ in image_ids(config, splits) if is_coco(source)]
    if not files:
        return {name: label for label, name in enumerate(names, 1)}
    if any(file.categories != files[0].categories for file in files):
        raise UserError(
            f"{', '.join(splits)}: their files number the categories differently. Take one split at a time."
        )
    return {name: number for number, name in files[0].categories.items() if name in names}


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


def split_name(splits: Sequence[str]) -> str:
    """A name for split lists that a file can bear: test, VOC2007-test, ... Raises UserError where there is none."""
    name = "+".join(splits).replace("/", "-")
    if name:  # data.test=[] has none
        check_name("split", name)
    return name


def metric(config: DataConfig, instead: str | None = None) -> Metric:
    """The AP that is asked for: `instead`, the key `metric` of a verb, or the data set's."""
    if instead is not None:
        return cast(Metric, one_of("metric", instead, METRICS))
    return cast(Metric, one_of("data.metric", config.metric, METRICS))


def test_splits(config: DataConfig, split: str | None) -> list[str]:
    """The split lists of an evaluation: data.test, or `split` in the same folders."""
    if split is None:
        return config.test
    if "/" in split:
        return [split]
    folders = dict.fromkeys(t.rpartition("/")[0] for t in config.test or config.train)
    return [f"{folder}/{split}" if folder else split for folder in folders]
