"""Read the splits, classes and ground truth of a data set, as the configuration group `data` specifies."""

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
NO_TRUTH = "no mAP because no class has ground truth"
SPLIT_BYTES = 120  # maximum length of a split name; file names also contain class names and suffixes


class EncodingError(UserError):
    """A valid name contains characters that the file name encoding of this system cannot represent."""


def root(config: DataConfig) -> Path:
    """Return the folder of the data set, or its single annotation file. Raises UserError if it does not exist."""
    if config.root is None:
        raise UserError(
            f"data.root is missing. Set data.root=FOLDER to the folder of the data set '{config.name}'. For VOC, "
            "this is VOCdevkit. For your own data, it is the folder with the images and their annotations."
        )
    folder = Path(config.root).expanduser()
    if not folder.is_dir() and not (folder.is_file() and is_annotation_file(folder)):
        raise UserError(f"data.root={config.root}: no such folder or annotation file. Check this path.")
    return folder if folder.is_dir() else folder.absolute()  # because images can be in a file's parent folder


def absolute_paths(config: DataConfig) -> None:
    """Make the paths in `config` absolute, so that a run can be evaluated from any folder."""
    root(config)  # reports a missing folder with the path that the user gave
    for name in ("root", "proposals", "proposal_cache"):
        if (path := getattr(config, name)) is not None:
            setattr(config, name, str(Path(path).expanduser().resolve()))


@functools.cache
def say_once(text: str, level: int = logging.INFO) -> None:
    """Log a line only once per process, even if the data set is read several times."""
    log.log(level, text)


@functools.cache
def say_overview(source: Path, folder: Path, made: bool) -> None:
    """Log a one-line description of a data set once. If a part of it cannot be read, only a debug message is logged."""
    try:
        log.info("%s: %s", source, overview(source, folder, made))
    except UserError as error:
        log.debug("no overview of %s: %s", source, error)


# ------------------------------------------------------------------------------------------------ splits and classes


def image_ids(config: DataConfig, splits: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """Return for each split the source of its annotations (a VOC folder or a file) and its image ids.

    Raises UserError if `splits` is empty or a split cannot be read.
    """
    if not splits:
        raise UserError(
            "No split is given. Set data.train for training (e.g. data.train=[trainval]), and data.test or split=NAME "
            "for evaluation."
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
    """Join the names of splits to one name for file names, such as VOC2007-test. A digest shortens a long name."""
    name = "+".join(splits).replace("/", "-")
    whole = name.encode(errors="surrogateescape")
    if len(whole) > SPLIT_BYTES:
        letters = hashlib.sha256(whole).hexdigest()[:8]
        name = f"{whole[: SPLIT_BYTES - 9].decode(errors='ignore')}-{letters}"
    if name:  # empty for data.test=[]
        check_name("split", name)
    return name


def validation_splits(config: DataConfig) -> list[str]:
    """Return the splits to select the best checkpoint on.

    These are the splits in `data.val`. If it is null, they are the splits named `val` in the folders of the training
    splits, provided that all of them exist and share no image with the training and test splits. Otherwise, the result
    is empty.
    """
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
    """Return the splits to evaluate on: data.test or, if set, `split` (FOLDER/NAME, or NAME in data.test's folders)."""
    if split is None:
        return config.test
    if "/" in split:
        return [split]
    folders = dict.fromkeys(t.rpartition("/")[0] for t in config.test or config.train)
    return [f"{folder}/{split}" if folder else split for folder in folders]


def classes(config: DataConfig, tests: Sequence[str] | None = None) -> list[str]:
    """Return data.classes. If it is null, return all classes that occur in the splits.

    tests: the splits to evaluate saved detections on. If data.classes is null, these splits must exist, and the classes
        in data.train are added if data.train exists. If `tests` is None, the training and validation splits must exist,
        and the classes in data.test are added if data.test exists.
    The name of label i is element i - 1. With data.skip_bad, invalid class names in the annotations are excluded, so
    that `samples` skips their objects. Raises UserError if a required split cannot be read, or if class names are
    missing or invalid.
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
        names.sort()  # the classes of an annotation file have a defined order
    if any(problems.found for _, problems in found[: len(needed)]) and not config.skip_bad:
        samples(config, needed, names, training=True)  # raises an error with all problems
    if not names:
        every = ", ".join([*needed, *other])
        raise UserError(f"{config.root}: the annotations in the splits {every} contain no objects.")
    if config.skip_bad:
        names = [name for name in names if not class_fault(name, split_name(evaluated))] or names
    return checked_names(names, evaluated)


def checked_names(names: list[str], test: Sequence[str]) -> list[str]:
    """Check the class names and return them.

    Raises UserError if the list is empty, if a name occurs twice, or if a name cannot be part of the file names
    that an evaluation on the splits `test` uses.
    """
    if not names:
        raise UserError("data.classes=[]: specify at least one class, or null to use all classes in the annotations.")
    for name in names:
        if fault := class_fault(name, split_name(test)):
            raise UserError(
                f"class {name[:40]!r} {fault}. Rename the class in the annotations, and in data.classes if that key is "
                "set. `fastrcnn check` lists the objects of the class."
            )
        try:
            name.encode(sys.getfilesystemencoding())
        except UnicodeEncodeError:
            raise EncodingError(
                f"class {name!a} contains characters that the file name encoding of this system "
                f"({sys.getfilesystemencoding()}) cannot represent. The class name is part of a file name. Use UTF-8: "
                "set the environment variable PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8."
            ) from None
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise UserError(f"data.classes: '{twice[0]}' occurs more than once. Remove the duplicates.")
    return list(names)


def warn_of_same_files(names: Sequence[str]) -> None:
    """Warn about classes whose detection files have the same name on some file systems."""
    for alike in same_files(names):
        log.warning("The classes %s %s", " and ".join(map(repr, alike)), SAME_FILES)


def category_ids(config: DataConfig, splits: Sequence[str], names: Sequence[str]) -> dict[str, Id]:
    """Return the category id of each class name for COCO results.

    If the splits have a COCO file, these are the ids of all categories in the file. Otherwise, they are the labels 1,
    2, ... of the classes `names`. Raises UserError if the splits have COCO files with different ids.
    """
    files = [read_coco_file(source) for source, _ in image_ids(config, splits) if is_coco(source)]
    if any(file.category_ids != files[0].category_ids for file in files):
        raise UserError(
            f"{', '.join(splits)}: the files of these splits have different category ids. Evaluate one split at a time "
            "with split=NAME."
        )
    return files[0].category_ids if files else {name: label for label, name in enumerate(names, 1)}


# ------------------------------------------------------------------------------------------ images and ground truth


def samples(
    config: DataConfig,
    splits: Sequence[str],
    names: Sequence[str],
    training: bool = False,
    need_pictures: bool = True,
) -> list[Sample]:
    """Return a Sample (image path, size, ground-truth boxes and labels) for each image of the splits.

    names: the class names. training: whether to exclude crowds, and difficult objects unless data.use_difficult is
        true. Without `training`, both are included.
    need_pictures: whether the image files must exist and be complete. Saved detections can be evaluated without them.
    Raises UserError if there are errors in the data and data.skip_bad is false, or if no image can be used.
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
            log.warning(
                "%s: skipped %d invalid item(s) (data.skip_bad=true):\n%s", source, number, shorten(problems.lines)
            )
        found += part
    if need_pictures:
        listed, (found, looks, bad) = len(found), look_at(found)
        report_images(looks, bad, listed, config.skip_bad)
    if not found:
        raise UserError(
            f"{config.root}: no image of {', '.join(splits)} can be used. Run `fastrcnn check` to list the errors."
        )
    twice = [i for i, n in Counter(s.image_id for s in found).items() if n > 1]
    if twice:
        raise UserError(
            f"{', '.join(splits)}: '{twice[0]}' is in more than one of these splits (number of such image ids: "
            f"{len(twice)}). Image ids must be unique, also across folders, because proposals and detections are "
            "stored by id. Rename the images, or remove them from one of the splits."
        )
    return found


def refuse_without_truth(source: Path, split: str, ids: Sequence[str], skip_bad: bool, folder: Path) -> None:
    """Raise UserError if no image of a split has an annotation, or if most have none and skip_bad is false."""
    lacking = annotated(source, ids, folder).count(False)
    if lacking == len(ids) or (2 * lacking > len(ids) and not skip_bad):
        raise UserError(
            f"{source}: {lacking} of the {len(ids)} images of '{split}' have no annotation. AP requires ground truth, "
            "which is not public for some test sets. Choose another split, or write the detections for the evaluation "
            "server with `fastrcnn eval` and competition=true."
        )


def load_unannotated(
    sources: Sequence[tuple[Path, Sequence[str]]], folder: Path
) -> tuple[list[Sample], list[Look], list[str]]:
    """Return samples without objects for the usable images, their file properties, and errors of unusable images.

    sources: for each split, the source of its annotations and its image ids. folder: the folder of the data set. An
    image with an EXIF rotation is used in the orientation whose size is in the COCO or XML file. If no size is given,
    the image is rotated upright, as in `fastrcnn detect`. All image files are read, so that a damaged file is reported
    now and not hours later.
    """
    found: list[Sample] = []
    bad: list[Problem] = []
    for source, ids in sources:
        problems = source_problems(source, folder)
        for image in read(source, ids, folder):
            faults = [p for p in image.problems if p.kind in ("missing_image", "link") or image.path == source]
            problems += faults
            if not faults:
                found.append(without_objects(image.image_id, image.path, image.size, image.number))
        bad += by_cause(explain_missing(problems, source, folder, len(ids)), len(ids))
    found, looks, broken = look_at(found, rotated_only=True)
    return found, looks, [*map(str, bad), *broken]


def pictures_alone(config: DataConfig, splits: Sequence[str]) -> list[Sample]:
    """Return samples without objects for the images of the splits.

    Raises UserError if an image cannot be used and data.skip_bad is false.
    """
    sources = image_ids(config, splits)
    found, looks, bad = load_unannotated(sources, root(config))
    report_images(looks, bad, sum(len(ids) for _, ids in sources), config.skip_bad and bool(found))
    return found


def source_pictures(source: str, skip_bad: bool) -> list[Sample]:
    """Return samples without objects for the images of `source=`.

    Raises UserError if an image cannot be used and `skip_bad` is false.
    """
    named = samples_of(pictures(source))
    found, looks, bad = look_at(named)
    report_images(looks, bad, len(named), skip_bad and bool(found))
    return found


def report_images(looks: Sequence[Look], bad: Sequence[str], number: int, skip_bad: bool) -> None:
    """Log which images are skipped or rotated, and which 16-bit images use fewer bits.

    looks: properties of the usable images. bad: messages about the unusable ones. number: the number of all images.
    Raises UserError if there are unusable images and skip_bad is false.
    """
    if bad and not skip_bad:
        advice = "Fix the files. With data.skip_bad=true, such images are skipped if other images can be used."
        raise UserError(f"{len(bad)} of {number} images cannot be used:\n{shorten(bad)}\n{advice}")
    if bad:
        log.warning("Skipped %d image(s) because of data.skip_bad=true:\n%s", len(bad), shorten(bad))
    say_notes(image_notes(looks))


def say_notes(notes: Sequence[Problem]) -> None:
    """Log one line for each kind of note, with the first note of this kind. The same line is logged only once."""
    for kind, group in by_kind(notes).items():
        first = group[0]
        more = "" if len(group) == 1 else " `fastrcnn check` lists all of them."
        level = logging.INFO if kind in ROUTINE else logging.WARNING
        say_once(f"{first.title} ({len(group)}): {first} {first.advice}{more}", level)


def has_truth(found: Sequence[Sample]) -> bool:
    """Return whether at least one object in the samples is not difficult. Without such an object, there is no mAP."""
    return any(not sample.difficult.all() for sample in found)
