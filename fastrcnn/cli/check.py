"""fastrcnn check"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import CheckConfig, DataConfig
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable, replace_file

if TYPE_CHECKING:
    from fastrcnn.audit.check import Record, Task
    from fastrcnn.audit.report import Report
    from fastrcnn.data.annotations.problems import Problem

EXAMPLES = [
    "fastrcnn check data=custom data.root=mydata",
    "fastrcnn check data=voc07 data.root=VOCdevkit proposals=voc07.proposals",
]
PICTURES = 6  # images shown in the page with their truth
PICTURE_SIDE = 640  # pixels


def main(arguments: list[str]) -> int:
    """Reads a data set and its proposals once, and reports to the console, report.json and report.html.

    Returns 0, or 1 where something is wrong that training would refuse or leave out.
    """
    config: CheckConfig = compose("check", arguments)
    from fastrcnn.audit.check import Settings, read_all
    from fastrcnn.audit.findings import file_problems, make_report
    from fastrcnn.build import annotations, training

    data, solver = config.data, config.solver
    training.check_solver(solver)
    if config.proposals is not None:
        data.proposals = config.proposals
    folder = default_folder(data) if config.output is None else Path(config.output).expanduser()
    refuse_unusable(folder, f"output={folder}")
    settings = Settings(
        max_proposals=data.max_proposals,
        use_difficult=data.use_difficult,
        first_pixel=data.first_pixel,
        leave_out_others=data.other_classes == "leave_out",
        leave_out_missing=data.missing_proposals == "leave_out",
        short_sides=tuple(data.short_sides),
        long_side=data.long_side,
        rois_per_image=solver.rois_per_image,
        fg_fraction=solver.fg_fraction,
        fg_iou=solver.fg_iou,
        bg_iou=(solver.bg_iou[0], solver.bg_iou[1]),
    )
    root = annotations.root(data)
    tasks, problems = find_tasks(data)
    records = read_all(tasks, settings, config.workers)
    problems += file_problems(records, root)
    names, faults = class_list(data, records, problems)
    report = make_report(records, problems + faults, data.name, str(root), names, settings)
    show(report, records, folder)
    print(f"{'fix the errors, then: ' if report.errors else 'next: '}{next_command(arguments, config, report)}")
    return 1 if report.errors else 0


def show(report: Report, records: Sequence[Record], folder: Path) -> None:
    """Prints the report, and writes report.json and report.html into the folder."""
    from fastrcnn.audit.page import page
    from fastrcnn.audit.report import to_json
    from fastrcnn.audit.text import summary

    print(summary(report))
    replace_file(folder / "report.json", (json.dumps(to_json(report), indent=2) + "\n").encode())
    html = page(report, truth_pictures(records, report.classes))
    replace_file(folder / "report.html", html.encode(errors="replace"))
    print(f"report: {folder / 'report.html'}")


def default_folder(config: DataConfig) -> Path:
    """A folder for the report of this data set and no other: those of one name differ in their root or split lists."""
    from fastrcnn.build import annotations

    root = annotations.root(config).resolve()
    which = json.dumps([str(root), config.train, config.test]).encode(errors="surrogateescape")
    return Path("outputs/check") / f"{config.name}-{root.stem[:20]}-{hashlib.sha256(which).hexdigest()[:8]}"


def find_tasks(config: DataConfig) -> tuple[list[Task], list[Problem]]:
    """All images of the training and the test lists, and what is wrong with lists and COCO files as a whole.

    Raises UserError where no list can be read.
    """
    from fastrcnn.audit.check import Task
    from fastrcnn.build import annotations
    from fastrcnn.data.annotations.problems import Problem
    from fastrcnn.data.annotations.splits import is_coco, read, source_problems
    from fastrcnn.data.annotations.unused import unused

    tasks: list[Task] = []
    problems: list[Problem] = []
    root = annotations.root(config)
    used: list[tuple[Path, list[str]]] = []
    for role, splits in (("train", config.train), ("test", config.test)):
        of_role: list[Task] = []
        for split in splits:
            try:
                ((source, ids),) = annotations.image_ids(config, [split])
            except UserError as error:
                problems.append(Problem("split", str(root), str(error)))
                continue
            if is_coco(source):
                of_role += [Task(role, split, source, i.image_id, None, i) for i in read(source, ids, root)]
            else:
                of_role += [Task(role, split, source, image_id) for image_id in ids]
            problems += source_problems(source) if all(source != other for other, _ in used) else []
            used.append((source, ids))
        store = find_store(config, of_role, annotations.split_name(splits))
        tasks += [replace(task, store=store) for task in of_role]
    problems += unused(root, used)
    if not tasks:
        texts = dict.fromkeys(p.what if p.kind == "split" else str(p) for p in problems)
        raise UserError("\n".join(texts) or "data.train and data.test are empty.")
    return tasks, problems


def find_store(config: DataConfig, tasks: Sequence[Task], name: str) -> Path | None:
    """The proposals that training or evaluation would use for these images, if they are there."""
    from fastrcnn.build import annotations, datasets
    from fastrcnn.data.unannotated import load_unannotated

    if config.proposals is not None:
        return Path(config.proposals).expanduser()
    cache = Path(config.proposal_cache).expanduser()
    prefix = datasets.store_prefix(config, name)
    if not cache.is_dir() or not any(p.name.startswith(prefix) for p in cache.iterdir()):
        return None  # without reading all images for the store's name
    ids: dict[Path, list[str]] = {}
    for task in tasks:
        ids.setdefault(task.source, []).append(task.image_id)
    samples = [s for source, own in ids.items() for s in load_unannotated(source, own, annotations.root(config))[0]]
    path = datasets.proposal_path(config, samples, name)
    return path if path.exists() else None


def class_list(
    config: DataConfig, records: Sequence[Record], problems: Sequence[Problem]
) -> tuple[list[str], list[Problem]]:
    """The names of the classes, those of the annotations where none are given, and what is wrong with them."""
    from fastrcnn.audit.findings import class_findings
    from fastrcnn.build import annotations
    from fastrcnn.data.annotations.problems import Problem

    root = str(annotations.root(config))
    names = sorted({n for r in records for n in r.names}) if config.classes is None else config.classes
    faults = class_findings(records, names, root, annotations.split_name(config.test))
    if not names and config.classes is None:
        if not any(p.error for p in problems):  # else they are the reason
            faults = [Problem("classes", root, "no usable object in any annotation.")]
    elif not faults:
        try:
            annotations.checked_names(names, config.test)
        except UserError as error:
            faults = [Problem("classes", root, str(error))]
    return names, faults


def truth_pictures(records: Sequence[Record], classes: Sequence[str]) -> list[tuple[str, bytes]]:
    """Captions and JPEG files of a few images with their truth drawn in."""
    import cv2
    import numpy as np

    from fastrcnn.data.images import read_image
    from fastrcnn.visualize import draw_boxes

    usable = [r for r in records if r.usable and r.size == r.image.size and r.objects]
    chosen = usable[:: max(1, -(-len(usable) // PICTURES))][:PICTURES]
    drawn = []
    label_of = {name: i for i, name in enumerate(classes, 1)}
    for record in chosen:
        image = read_image(record.image.path, record.turn)
        factor = min(1.0, PICTURE_SIDE / max(image.shape[:2]))
        size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = [label_of.get(name, len(classes) + 1) for name in record.names]
        texts = record.names if len(labels) <= 12 else None
        canvas = draw_boxes(small, record.boxes * np.float32(factor), labels, texts)
        jpeg = cv2.imencode(".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 80))[1]
        drawn.append((f"{record.task.image_id}, {len(labels)} object(s)", jpeg.tobytes()))
    return drawn


def next_command(arguments: Sequence[str], config: CheckConfig, report: Report) -> str:
    """What to run next, with the keys of the data set that were given here."""
    import torch

    given = [a for a in arguments if a.startswith(("data=", "data.")) and not a.startswith("data.proposals=")]
    unfit = {"no_proposals", "proposal_size", "bad_proposals"} & {p.kind for p in report.errors}
    having = report.proposals is not None and not unfit
    store = [f"data.proposals={config.data.proposals}"] if having and config.data.proposals else []
    if not having:
        return shlex.join(["fastrcnn", "propose", *given])
    small = [] if torch.cuda.is_available() else ["recipe=scratch"]  # the full network needs a GPU
    return shlex.join(["fastrcnn", "train", *given, *store, *small])
