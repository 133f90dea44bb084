"""The data part of the configuration, first half: splits, classes, and images with their truth."""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fastrcnn.config.schema import DataConfig
from fastrcnn.config.values import check_name
from fastrcnn.data.annotations.formats.coco_file import Id, read_coco_file
from fastrcnn.data.annotations.layouts import is_annotation_file, is_coco
from fastrcnn.data.annotations.overview import describe_split, overview
from fastrcnn.data.annotations.splits import (
    annotated,
    class_names,
    explain_missing,
    find_split,
    load,
    read,
    source_problems,
)
from fastrcnn.data.frames import Look, image_notes, look_at, without_objects
from fastrcnn.data.sources import pictures, samples_of
from fastrcnn.data.truth.problems import ROUTINE, Problem, by_cause, by_kind, shorten
from fastrcnn.errors import UserError
from fastrcnn.names import SAME_FILES, class_fault, same_files
from fastrcnn.structures import Sample

log = logging.getLogger(__name__)
NO_TRUTH = "no mAP: no class has ground truth"
SPLIT_BYTES = 120  # of a name of split lists: names of classes and suffixes follow it in names of files


class EncodingError(UserError):
    """A name that files cannot have on this system, though it is sound elsewhere."""


def root(config: DataConfig) -> Path:
    """The data set's folder, or its only file of annotations."""
    if config.root is None:
        raise UserError(
            f"data.root is missing: the folder of the data set '{config.name}', as data.root=FOLDER. For VOC it is "
            "VOCdevkit; for your own set the folder with the images and their annotations."
        )
    folder = Path(config.root).expanduser()
    if not folder.is_dir() and not (folder.is_file() and is_annotation_file(folder)):
        raise UserError(f"data.root={config.root}: there is no such folder, and no such file of annotations.")
    return folder if folder.is_dir() else folder.absolute()  # its images may be in the folder above


def absolute_paths(config: DataConfig) -> None:
    """Makes the paths of a data set absolute, so that a run can be evaluated from any folder."""
    root(config)  # names a folder that is not there as it was given
    for name in ("root", "proposals", "proposal_cache"):
        if (path := getattr(config, name)) is not None:
            setattr(config, name, str(Path(path).expanduser().resolve()))


@functools.cache
def say_once(text: str, level: int = logging.INFO) -> None:
    """Puts a line into the log that would otherwise come every time the data set is looked at."""
    log.log(level, text)


@functools.cache
def say_overview(source: Path, folder: Path, made: bool) -> None:
    """Logs in one line what a data set is. Errors in parts of it that are not used do not matter here."""
    try:
        log.info("%s: %s", source, overview(source, folder, made))
    except UserError as error:
        log.debug("no overview of %s: %s", source, error)


# ------------------------------------------------------------------------------------------------ splits and classes


def image_ids(config: DataConfig, splits: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """For each split the source of its annotations, a folder in VOC layout or a file, and its image ids."""
    if not splits:
        raise UserError(
            "no split list is named: data.train, or to evaluate data.test or split=NAME, should have at least one, as "
            "data.train=[trainval]."
        )
    found = []
    for split in splits:
        source, ids, made = find_split(root(config), split)
        if not is_annotation_file(Path(split)):
            say_overview(source if source.is_dir() else root(config), root(config), made)
        if words := describe_split(source, split, ids):
            say_once(f"{source}: {words}")
        found.append((source, ids[: config.max_images]))
    return found


def split_name(splits: Sequence[str]) -> str:
    """A name for split lists that a file can have: test, VOC2007-test, ...; of many the beginning and a digest."""
    name = "+".join(splits).replace("/", "-")
    whole = name.encode(errors="surrogateescape")
    if len(whole) > SPLIT_BYTES:
        letters = hashlib.sha256(whole).hexdigest()[:8]
        name = f"{whole[: SPLIT_BYTES - 9].decode(errors='ignore')}-{letters}"
    if name:  # data.test=[] has none
        check_name("split", name)
    return name


def validation_splits(config: DataConfig) -> list[str]:
    """The splits to choose the best weights on: `data.val`; where that is null `val` beside each of the training
    splits, if all are there and have no image that is trained on or tested on."""
    if config.val is not None:
        return config.val
    whole = root(config)
    used = {i for split in (*config.train, *config.test) for i in find_split(whole, split)[1]}
    folders = dict.fromkeys("" if is_annotation_file(Path(t)) else t.rpartition("/")[0] for t in config.train)
    found = [f"{folder}/val" if folder else "val" for folder in folders]
    try:
        ids = [find_split(whole, split)[1] for split in found]
    except UserError as error:
        log.debug("no validation split: %s", error)
        return []
    return [] if used.intersection(i for own in ids for i in own) else found


def test_splits(config: DataConfig, split: str | None) -> list[str]:
    """The split lists of an evaluation: data.test, or `split` in the same folders."""
    if split is None:
        return config.test
    if "/" in split:
        return [split]
    folders = dict.fromkeys(t.rpartition("/")[0] for t in config.test or config.train)
    return [f"{folder}/{split}" if folder else split for folder in folders]


def classes(config: DataConfig, tests: Sequence[str] | None = None) -> list[str]:
    """Names of the classes, those of all splits where none are given; label i is number i - 1 of the list.

    tests: lists to evaluate on without a model, which must be there; by default the lists to train on must.
    """
    evaluated = config.test if tests is None else tests
    if config.classes is not None:
        return checked_names(config.classes, evaluated)
    needed, other = (config.train, config.test) if tests is None else (tests, config.train)
    needed = [*needed, *(validation_splits(config) if tests is None else [])]
    sources = image_ids(config, needed)
    try:
        sources += image_ids(config, other) if other else []
    except UserError as error:
        log.debug("no classes from %s: %s", ", ".join(other), error)
    found = [class_names(source, ids, root(config)) for source, ids in sources]
    names = list(dict.fromkeys(name for part, _ in found for name in part))
    if any(source.is_dir() for source, _ in sources):
        names.sort()  # the classes of a file have an order of their own
    if any(problems.found for _, problems in found[: len(needed)]) and not config.skip_bad:
        samples(config, needed, names, training=True)  # raises, naming all that is wrong
    if not names:
        raise UserError(f"{config.root}: no object in any annotation of {', '.join([*needed, *other])}.")
    return checked_names(names, evaluated)


def checked_names(names: list[str], test: Sequence[str]) -> list[str]:
    """The names of the classes. Raises UserError where there are none, one comes twice, or one cannot be part of the
    names of the files that an evaluation on the split lists `test` writes."""
    if not names:
        raise UserError("data.classes=[]: name at least one class, or say null for all that the annotations have.")
    for name in names:
        if fault := class_fault(name, split_name(test)):
            raise UserError(
                f"data.classes: {name[:40]!r} {fault}. Rename the class there and in the annotations; `fastrcnn check` "
                "lists the objects."
            )
        try:
            name.encode(sys.getfilesystemencoding())
        except UnicodeEncodeError:
            raise EncodingError(
                f"data.classes: {name!a} has characters that {sys.getfilesystemencoding()}, the encoding of file names "
                "here, lacks; the file of its detections is named so. Use UTF-8: set the environment variable "
                "PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8."
            ) from None
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise UserError(f"data.classes: '{twice[0]}' comes twice.")
    return list(names)


def warn_of_same_files(names: Sequence[str]) -> None:
    """Says which classes' detections are one file on some file systems."""
    for alike in same_files(names):
        log.warning("classes %s %s", " and ".join(map(repr, alike)), SAME_FILES)


def category_ids(config: DataConfig, splits: Sequence[str], names: Sequence[str]) -> dict[str, Id]:
    """Ids of categories in COCO results by name: all of the splits' COCO file, as they stand there, else the labels of
    the classes `names`."""
    files = [read_coco_file(source) for source, _ in image_ids(config, splits) if is_coco(source)]
    if any(file.category_ids != files[0].category_ids for file in files):
        raise UserError(
            f"{', '.join(splits)}: their files number the categories differently. Take one split at a time."
        )
    return files[0].category_ids if files else {name: label for label, name in enumerate(names, 1)}


# ------------------------------------------------------------------------------------------------ images and truth


def samples(
    config: DataConfig,
    splits: Sequence[str],
    names: Sequence[str],
    training: bool = False,
    need_pictures: bool = True,
) -> list[Sample]:
    """Images and truth of the splits.

    training: difficult objects as `data.use_difficult` says, and no crowds; else both are there, and marked.
    need_pictures: whether the images must be there and whole; the truth alone does for saved detections.
    """
    found: list[Sample] = []
    for split, (source, ids) in zip(splits, image_ids(config, splits), strict=True):
        if not training:
            refuse_without_truth(source, split, ids, config.skip_bad, root(config))
        part, problems = load(
            source,
            ids,
            names,
            root=root(config),
            training=training,
            use_difficult=config.use_difficult,
            skip_bad=config.skip_bad,
            need_pictures=need_pictures,
            first_pixel=config.first_pixel,
            leave_out_others=config.other_classes == "leave_out",
        )
        say_notes(problems.notes)
        if problems.errors:
            number = sum(p.error for p in problems.found)
            log.warning("%s: %d left out (data.skip_bad):\n%s", source, number, shorten(problems.lines))
        found += part
    if need_pictures:
        listed, (found, looks, bad) = len(found), look_at(found)
        report_images(looks, bad, listed, config.skip_bad)
    if not found:
        raise UserError(f"{config.root}: no image of {', '.join(splits) or 'an empty list of splits'} can be used.")
    twice = [i for i, n in Counter(s.image_id for s in found).items() if n > 1]
    if twice:
        raise UserError(
            f"{', '.join(splits)}: '{twice[0]}' is in more than one of these lists ({len(twice)} such ids). "
            "Ids must differ, also between folders: proposals and detections are kept by id."
        )
    return found


def refuse_without_truth(source: Path, split: str, ids: Sequence[str], skip_bad: bool, folder: Path) -> None:
    """Raises UserError where all images of a split lack an annotation, or most do and none may be left out."""
    lacking = annotated(source, ids, folder).count(False)
    if lacking == len(ids) or (2 * lacking > len(ids) and not skip_bad):
        raise UserError(
            f"{source}: {lacking} of the {len(ids)} images of '{split}' have no annotation, as in test sets whose "
            "truth is not public. An AP needs the truth: choose another split, or write the detections for the "
            "evaluation server by `fastrcnn eval` with competition=true."
        )


def load_unannotated(
    sources: Sequence[tuple[Path, Sequence[str]]], folder: Path
) -> tuple[list[Sample], list[Look], list[str]]:
    """Samples without objects of the images that sources name, whether annotations have some or not, with what each
    file says, and what is wrong with the other images. folder: the data set's.

    An image whose EXIF data ask for a rotation is used in the size that the COCO file or the XML file gives it, as with
    truth; without either upright, as `fastrcnn detect` does. Each file is read, so that nothing breaks hours later.
    """
    found: list[Sample] = []
    bad: list[Problem] = []
    for source, ids in sources:
        problems = source_problems(source, folder)
        for image in read(source, ids, folder):
            faults = [p for p in image.problems if p.kind in ("missing_picture", "link") or image.path == source]
            problems += faults
            if not faults:
                found.append(without_objects(image.image_id, image.path, image.size, image.number))
        bad += by_cause(explain_missing(problems, source, folder, len(ids)), len(ids))
    found, looks, broken = look_at(found, rotated_only=True)
    return found, looks, [*map(str, bad), *broken]


def pictures_alone(config: DataConfig, splits: Sequence[str]) -> list[Sample]:
    """What `load_unannotated` finds. Raises UserError where some are wrong and may not be left out."""
    sources = image_ids(config, splits)
    found, looks, bad = load_unannotated(sources, root(config))
    report_images(looks, bad, sum(len(ids) for _, ids in sources), config.skip_bad and bool(found))
    return found


def source_pictures(source: str, skip_bad: bool) -> list[Sample]:
    """Samples of the images that `source=` means. Raises UserError where some are broken and may not be left out."""
    named = samples_of(pictures(source))
    found, looks, bad = look_at(named)
    report_images(looks, bad, len(named), skip_bad and bool(found))
    return found


def report_images(looks: Sequence[Look], bad: Sequence[str], number: int, skip_bad: bool) -> None:
    """Says which of so many images are left out, rotated, or scaled by fewer bits; raises UserError where none may be
    left out."""
    if bad and not skip_bad:
        advice = "Fix the files, or leave out what is wrong with data.skip_bad=true."
        raise UserError(f"{len(bad)} of {number} images cannot be used:\n{shorten(bad)}\n{advice}")
    if bad:
        log.warning("%d image(s) left out (data.skip_bad):\n%s", len(bad), shorten(bad))
    say_notes(image_notes(looks))


def say_notes(notes: Sequence[Problem]) -> None:
    """Puts one line for each kind of notes into the log, once."""
    for kind, group in by_kind(notes).items():
        first = group[0]
        more = "" if len(group) == 1 else " `fastrcnn check` lists all of them."
        level = logging.INFO if kind in ROUTINE else logging.WARNING
        say_once(f"{first.title} ({len(group)}): {first} {first.advice}{more}", level)


def has_truth(found: Sequence[Sample]) -> bool:
    """Whether any object counts, so that there is a mAP."""
    return any(not sample.difficult.all() for sample in found)
