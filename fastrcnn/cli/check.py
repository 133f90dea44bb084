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
    from fastrcnn.data.annotations.truth import Problem

EXAMPLES = [
    "fastrcnn check data=custom data.root=mydata",
    "fastrcnn check data=voc07 data.root=VOCdevkit proposals=voc07.proposals",
]
PICTURES = 6  # shown in the page with their truth
PICTURE_SIDE = 640  # pixels


def main(arguments: list[str]) -> int:
    """Reads a data set and its proposals once, and reports to the console, report.json and report.html.

    Returns 0, or 1 where something is wrong that training would refuse or leave out.
    """
    config: CheckConfig = compose("check", arguments)
    from fastrcnn.audit.check import Settings, read_all
    from fastrcnn.audit.page import page
    from fastrcnn.audit.report import to_json
    from fastrcnn.audit.text import summary
    from fastrcnn.build import training

    training.check_solver(config.solver)
    if config.proposals is not None:
        config.data.proposals = config.proposals
    folder = default_folder(config.data) if config.output is None else Path(config.output).expanduser()
    refuse_unusable(folder, f"output={folder}")
    tasks, problems = find_tasks(config.data)
    settings = Settings(
        max_proposals=config.data.max_proposals,
        use_difficult=config.data.use_difficult,
        first_pixel=config.data.first_pixel,
        fg_iou=config.solver.fg_iou,
        bg_iou=(config.solver.bg_iou[0], config.solver.bg_iou[1]),
    )
    records = read_all(tasks, settings, config.workers)
    report = make_report(config, records, problems)
    print(summary(report))
    replace_file(folder / "report.json", (json.dumps(to_json(report), indent=2) + "\n").encode())
    html = page(report, truth_pictures(records, report.classes))
    replace_file(folder / "report.html", html.encode(errors="replace"))
    print(f"report: {folder / 'report.html'}")
    print(f"{'mend the errors, then: ' if report.errors else 'next: '}{next_command(arguments, config, report)}")
    return 1 if report.errors else 0


def default_folder(config: DataConfig) -> Path:
    """A folder for the report of this data set and no other: those of one name differ in their root or split lists."""
    from fastrcnn.build import annotations

    root = annotations.root(config).resolve()
    which = json.dumps([str(root), config.train, config.test]).encode(errors="surrogateescape")
    return Path("outputs/check") / f"{config.name}-{root.stem[:20]}-{hashlib.sha256(which).hexdigest()[:8]}"


def find_tasks(config: DataConfig) -> tuple[list[Task], list[Problem]]:
    """All pictures of the training and the test lists, and what is wrong with lists and COCO files as a whole.

    Raises UserError where no list can be read.
    """
    from fastrcnn.audit.check import Task
    from fastrcnn.audit.truth import coco_problems, read_coco
    from fastrcnn.build import annotations
    from fastrcnn.data.annotations.splits import has_lists, is_coco, unused
    from fastrcnn.data.annotations.truth import Problem
    from fastrcnn.data.annotations.voc_layout import pictures_without_annotation

    tasks: list[Task] = []
    problems: list[Problem] = []
    root = str(annotations.root(config))
    used: list[tuple[Path, list[str]]] = []
    for role, splits in (("train", config.train), ("test", config.test)):
        of_role: list[Task] = []
        for split in splits:
            try:
                ((source, ids),) = annotations.image_ids(config, [split])
            except UserError as error:
                problems.append(Problem("split", root, str(error)))
                continue
            if is_coco(source):
                said = zip(ids, read_coco(source, ids, annotations.root(config), role == "train"), strict=True)
                of_role += [Task(role, split, source, image_id, None, a) for image_id, a in said]
                problems += coco_problems(source) if all(source != other for other, _ in used) else []
            else:
                of_role += [Task(role, split, source, image_id, None) for image_id in ids]
                if role == "train" and not has_lists(source) and (lone := pictures_without_annotation(source)):
                    what = f"{len(lone)} picture(s) have no annotation, and are not used."
                    problems.append(Problem("lone", str(lone[0]), what))
            used.append((source, ids))
        store = find_store(config, of_role, annotations.split_name(splits))
        tasks += [replace(task, store=store) for task in of_role]
    problems += unused(annotations.root(config), used)
    if not tasks:
        texts = dict.fromkeys(p.what if p.kind == "split" else str(p) for p in problems)
        raise UserError("\n".join(texts) or "data.train and data.test are empty.")
    return tasks, problems


def find_store(config: DataConfig, tasks: Sequence[Task], name: str) -> Path | None:
    """The proposals that training or evaluation would use for these pictures, if they are there."""
    import numpy as np

    from fastrcnn.build import datasets
    from fastrcnn.data.annotations.voc_layout import find_annotation, find_image
    from fastrcnn.data.frames import turn_for
    from fastrcnn.data.images import read_bytes, read_header
    from fastrcnn.data.unannotated import annotated_size
    from fastrcnn.structures import Sample

    if config.proposals is not None:
        return Path(config.proposals).expanduser()
    cache = Path(config.proposal_cache).expanduser()
    prefix = datasets.store_prefix(config, name)
    if not cache.is_dir() or not any(p.name.startswith(prefix) for p in cache.iterdir()):
        return None  # without reading all pictures for the store's name
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)

    def turn(task: Task, file: Path) -> int:
        try:
            stored = read_header(read_bytes(file), file)
        except UserError:  # said when it is checked
            return 1
        if stored.orientation == 1:
            return 1
        said = task.annotated
        size = said.truth.size if said else annotated_size(find_annotation(task.source, task.image_id))
        return turn_for(stored, size) or 1

    files = [(t, t.annotated.file if t.annotated else find_image(t.source, t.image_id)) for t in tasks]
    found = [
        Sample(task.image_id, file, 0, 0, *nothing, turn=turn(task, file))
        for task, file in files
        if file is not None and file.is_file()
    ]
    path = datasets.proposal_path(config, found, name)
    return path if path.exists() else None


def make_report(config: CheckConfig, records: Sequence[Record], problems: Sequence[Problem]) -> Report:
    """The report, with `problems` that are known already."""
    from fastrcnn.audit import report as statistics
    from fastrcnn.audit.findings import class_findings, findings, proposal_findings, report_findings
    from fastrcnn.audit.problems import UNREAD, is_error
    from fastrcnn.build import annotations
    from fastrcnn.data.annotations.coco import explain_missing as explain_missing_coco
    from fastrcnn.data.annotations.coco_file import read_coco_file
    from fastrcnn.data.annotations.splits import is_coco
    from fastrcnn.data.annotations.truth import Problem, by_cause
    from fastrcnn.data.annotations.voc import explain_missing
    from fastrcnn.proposals.store import ProposalStore

    data, solver = config.data, config.solver
    root = str(annotations.root(data))
    found = list(problems)
    for source in dict.fromkeys(r.task.source for r in records):
        of_source = [r for r in records if r.task.source == source]
        part = [p for r in of_source for p in r.problems]
        images = len(of_source)
        if is_coco(source):
            part = explain_missing_coco(part, read_coco_file(source), annotations.root(data), images)
            found += by_cause([p for p in part if is_error(p)], images)
            found += [p for p in part if not is_error(p)]  # each names an annotation of the one file
        else:
            found += by_cause(explain_missing(part, source, images), images)
    if data.missing_proposals == "leave_out":
        found = [replace(p, kind="left_out") if p.kind == "no_proposals" else p for p in found]
    names = data.classes
    if names is None:
        names = sorted({n for r in records for n in r.truth.names})
        if not names and not any(is_error(p) for p in found):  # else they are the reason
            found.append(Problem("classes", root, "no usable object in any annotation."))
    if unusable := class_findings(records, names, root, annotations.split_name(data.test)):
        found += unusable
    elif names or data.classes is not None:
        try:
            annotations.checked_names(names, data.test)
        except UserError as error:
            found.append(Problem("classes", root, str(error)))
    unread = any(p.kind in UNREAD for p in found)
    found += findings(records, names, root, data.other_classes == "leave_out", unread)
    known = [statistics.known_only(r, names) for r in records]
    stores = [ProposalStore(path) for path in dict.fromkeys(r.task.store for r in records) if path is not None]
    found += proposal_findings(known, stores)
    lists = dict.fromkeys((r.task.role, r.task.split) for r in records)
    report = statistics.Report(
        name=data.name,
        root=root,
        classes=list(names),
        splits=[statistics.split([r for r in known if (r.task.role, r.task.split) == key], names) for key in lists],
        pictures=statistics.pictures(known),
        boxes=statistics.boxes(known, data.short_sides, data.long_side),
        proposals=statistics.proposals(known, names, [str(s.path) for s in stores]),
        sampling=statistics.sampling(known, solver.rois_per_image, solver.fg_fraction),
        errors=[],
        notes=[],
    )
    found += report_findings(report)
    return replace(report, errors=[p for p in found if is_error(p)], notes=[p for p in found if not is_error(p)])


def truth_pictures(records: Sequence[Record], classes: Sequence[str]) -> list[tuple[str, bytes]]:
    """Captions and JPEG files of a few pictures with their truth drawn in."""
    import cv2
    import numpy as np

    from fastrcnn.data.images import read_image
    from fastrcnn.visualize import draw_boxes

    usable = [r for r in records if r.size and r.size == r.truth.size and r.truth.names]
    chosen = usable[:: max(1, -(-len(usable) // PICTURES))][:PICTURES]
    drawn = []
    label_of = {name: i for i, name in enumerate(classes, 1)}
    for record in chosen:
        image = read_image(record.file, record.turn)
        factor = min(1.0, PICTURE_SIDE / max(image.shape[:2]))
        size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = [label_of.get(name, len(classes) + 1) for name in record.truth.names]
        texts = list(record.truth.names) if len(labels) <= 12 else None
        canvas = draw_boxes(small, record.truth.boxes * np.float32(factor), labels, texts)
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
    small = [] if torch.cuda.is_available() else ["recipe=scratch"]  # the full network wants a GPU
    return shlex.join(["fastrcnn", "train", *given, *store, *small])
