"""Collect the data for `fastrcnn check`: all images of the splits, their proposals, and the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fastrcnn.audit.check import Record, Settings, Task, read_all
from fastrcnn.audit.findings import class_findings, file_problems, make_report
from fastrcnn.audit.report import Report
from fastrcnn.build.annotations import (
    checked_names,
    image_ids,
    load_unannotated,
    root,
    split_name,
    validation_splits,
)
from fastrcnn.build.datasets import proposal_path, store_prefix
from fastrcnn.config.schema import CheckConfig, DataConfig
from fastrcnn.data.annotations.splits import read, source_problems
from fastrcnn.data.annotations.unused import unused
from fastrcnn.data.images import read_image
from fastrcnn.data.truth.problems import Problem
from fastrcnn.errors import UserError
from fastrcnn.names import file_of
from fastrcnn.visualize import draw_boxes

PICTURES = 6  # number of images with ground truth in the report
PICTURE_SIDE = 640  # maximum side of these images, in pixels


def audit(config: CheckConfig) -> tuple[Report, list[Record]]:
    """Read the data set and its proposals once, and return the report and the results for each image.

    Raises UserError if data.root does not exist or no split can be read.
    """
    data, folder = config.data, root(config.data)
    settings = Settings(
        max_proposals=data.max_proposals,
        use_difficult=data.use_difficult,
        first_pixel=data.first_pixel,
        leave_out_others=data.other_classes == "leave_out",
        leave_out_missing=data.missing_proposals == "leave_out",
        short_sides=data.short_sides,
        long_side=data.long_side,
        solver=config.solver,
    )
    tasks, problems = find_tasks(data)
    records = read_all(tasks, settings, config.workers)
    problems += file_problems(records, folder)
    names, faults = class_list(data, records, problems)
    return make_report(records, problems + faults, data.name, str(folder), names, settings), records


def find_tasks(config: DataConfig) -> tuple[list[Task], list[Problem]]:
    """Return a Task (an image to read) for each image of all splits, and the problems of splits and annotation files.

    Raises UserError if no split can be read.
    """
    folder = root(config)
    tasks: list[Task] = []
    problems: list[Problem] = []
    used: list[tuple[Path, list[str]]] = []
    val = validation_or_none(config)
    for role, splits in (("train", config.train), ("val", val), ("test", config.test)):
        store = find_store(config, splits)
        for split in splits:
            try:
                ((source, ids),) = image_ids(config, [split])
            except UserError as error:
                problems.append(Problem("split", str(folder), str(error).removeprefix(f"{folder}: ")))
                continue
            said = {image.image_id: image for image in read(source, ids, folder)} if source.is_file() else {}
            tasks += [Task(role, split, source, image_id, store, said.get(image_id)) for image_id in ids]
            problems += source_problems(source, folder) if all(source != other for other, _ in used) else []
            used.append((source, ids))
    if not tasks:
        texts = dict.fromkeys(p.what if p.what.startswith(str(folder)) else str(p) for p in problems)
        raise UserError("\n".join(texts) or "data.train and data.test are empty.")
    return tasks, [*problems, *unused(folder, used)]


def validation_or_none(config: DataConfig) -> list[str]:
    """Return the validation splits, or [] if they cannot be determined because another split has an error."""
    try:
        return validation_splits(config)
    except UserError:
        return []


def find_store(config: DataConfig, splits: Sequence[str]) -> Path | None:
    """Return the path of the splits' proposal store: data.proposals, the generated store if it exists, or None."""
    if config.proposals is not None:
        return Path(config.proposals).expanduser()
    name = split_name(splits)
    cache, prefix = Path(config.proposal_cache).expanduser(), store_prefix(config, name)
    if not cache.is_dir() or not any(p.name.startswith(prefix) for p in cache.iterdir()):
        return None  # avoids reading all images to compute the name of the store
    try:
        samples, _, _ = load_unannotated(image_ids(config, splits), root(config))
    except UserError:  # a split that cannot be read
        return None
    path = proposal_path(config, samples, name)
    return path if path.exists() else None


def class_list(
    config: DataConfig, records: Sequence[Record], problems: Sequence[Problem]
) -> tuple[list[str], list[Problem]]:
    """Return the class names (data.classes, or those in the annotations if it is null) and errors in these names."""
    folder = str(root(config))
    names = sorted({n for r in records for n in r.names}) if config.classes is None else config.classes
    if not names and config.classes is None:
        lacking = [Problem("classes", folder, "The annotations contain no usable objects.")]
        return [], [] if any(p.error for p in problems) else lacking  # other errors already explain this
    if faults := class_findings(records, names, folder, split_name(config.test)):
        return names, faults
    try:
        return checked_names(names, config.test), []
    except UserError as error:
        return names, [Problem("classes", folder, str(error))]


def truth_pictures(records: Sequence[Record], classes: Sequence[str]) -> list[tuple[str, bytes]]:
    """Draw the ground truth of up to PICTURES images. Return the caption and the bytes of a JPEG file of each."""
    usable = [r for r in records if r.usable and r.size == r.image.size and r.objects]
    drawn = []
    label_of = {name: i for i, name in enumerate(classes, 1)}
    for record in usable[:: max(1, -(-len(usable) // PICTURES))][:PICTURES]:
        image = read_image(record.image.path, record.turn)
        factor = min(1.0, PICTURE_SIDE / max(image.shape[:2]))
        size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = [label_of.get(name, len(classes) + 1) for name in record.names]
        texts = record.names if len(labels) <= 12 else None
        canvas = draw_boxes(small, record.boxes * np.float32(factor), labels, texts)
        jpeg = cv2.imencode(".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 80))[1]
        file = file_of(record.task.image_id, record.image.path)
        drawn.append((f"{file}, {len(labels)} object(s)", jpeg.tobytes()))
    return drawn
