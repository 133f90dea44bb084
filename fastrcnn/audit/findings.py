"""Problems and notes that show only when all pictures of a data set are seen together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fastrcnn.audit.check import Record
from fastrcnn.audit.report import CELL, Report
from fastrcnn.data.annotations.splits import is_coco
from fastrcnn.data.annotations.truth import Problem
from fastrcnn.data.frames import image_notes
from fastrcnn.errors import nearest
from fastrcnn.names import SAME_FILES, class_fault, comp4_id, same_files
from fastrcnn.proposals.store import ProposalStore

FEW_OBJECTS = 10  # of a class in training; a note is made of fewer
FEW_BACKGROUND = 0.1  # share of training pictures that cannot fill a step; a note is made of more


def findings(
    records: Sequence[Record], classes: Sequence[str], lists: str, leave_out_others: bool, unread: bool = False
) -> list[Problem]:
    """All of them but those about proposals.

    lists: the place of the split lists, for messages. leave_out_others: objects of classes that are not in `classes`
    are left out on purpose. unread: there are annotations that could not be read, which is why objects may be missing.
    """
    return [
        *_unknown_classes(records, classes, "other_classes" if leave_out_others else "unknown_class"),
        *_same_ids(records, lists),
        *_same_pictures(records),
        *_zero_based(records),
        *_letter_case(records),
        *_rare_classes(records, classes, lists, unread),
        *_without_truth(records, classes, lists, unread),
        *_counted(records),
    ]


def class_findings(records: Iterable[Record], classes: Sequence[str], lists: str, test: str) -> list[Problem]:
    """The classes that an evaluation on the split `test` cannot write files for, each at its first object."""
    places: dict[str, tuple[Record, int]] = {}
    for r in records:
        for number, name in zip(r.truth.numbers, r.truth.names, strict=True):
            places.setdefault(name, (r, number))
    problems = []
    for name in classes:
        if fault := class_fault(name, test):
            what = f"class {name[:40]!r} {fault}."
            if name in places:
                record, number = places[name]
                unit = "annotation" if is_coco(record.task.source) else "object"
                problems.append(Problem("classes", str(record.annotation), what, object=number, unit=unit))
            else:
                problems.append(Problem("classes", lists, what))
    return problems


def proposal_findings(records: Sequence[Record], stores: Iterable[ProposalStore]) -> list[Problem]:
    """What the proposals and the pictures say about each other."""
    problems = []
    ids = {r.task.image_id for r in records}
    for store in stores:
        foreign = [i for i in store.ids if i not in ids]
        if foreign:
            what = (
                f"{len(foreign)} of its {len(store)} pictures are in no list that was checked, such as '{foreign[0]}'."
            )
            problems.append(Problem("foreign_proposals", str(store.path), what))
        cleaning = store.meta.get("cleaning", {})
        dropped = {k: n for k, n in cleaning.items() if k in ("not_finite", "inverted", "outside") and n}
        if dropped:
            what = ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in dropped.items())
            problems.append(Problem("dropped_proposals", str(store.path), f"boxes dropped: {what}."))
    problems += _sum_up(
        "zero_proposals", records, lambda r: int(r.proposals == 0), "{n} picture(s) have no box in the store."
    )
    alone = [(r, int((r.best == 0).sum())) for r in records if r.proposals is not None]
    total = sum(n for _, n in alone)
    if total:
        first = next(r for r, n in alone if n)
        what = f"{total} object(s) in {sum(n > 0 for _, n in alone)} picture(s) are touched by no proposal at all."
        problems.append(Problem("missed", str(first.annotation), what))
    return problems


def _sum_up(kind: str, records: Iterable[Record], count: Callable[[Record], int], what: str) -> list[Problem]:
    """One problem for all records that `count` finds something in; it names the first of them."""
    found = [(r, n) for r in records if (n := count(r))]
    if not found:
        return []
    text = what.format(n=sum(n for _, n in found), pictures=len(found))
    return [Problem(kind, str(found[0][0].file), text)]


def _unknown_classes(records: Iterable[Record], classes: Sequence[str], kind: str) -> list[Problem]:
    known = set(classes)
    return [
        Problem(
            kind,
            str(r.annotation),
            f"unknown class '{name}'.{nearest(name, classes)} Known: {', '.join(classes) or 'none'}.",
            object=number,
            name=name,
        )
        for r in records
        for number, name in zip(r.truth.numbers, r.truth.names, strict=True)
        if name not in known
    ]


def _same_ids(records: Iterable[Record], lists: str) -> list[Problem]:
    places: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        places[r.task.image_id].append(r)
    problems = []
    both: list[str] = []
    for image_id, found in places.items():
        for role in ("train", "test"):
            named = [r.task.split for r in found if r.task.role == role]
            if len(named) > 1:
                problems.append(Problem("duplicate_id", lists, f"'{image_id}' is in {' and in '.join(named)}."))
        files = {r.file for r in found}
        if len({r.task.role for r in found}) == 1:
            continue
        if len(files) > 1:
            what = f"'{image_id}' is the id of {' and of '.join(sorted(map(str, files)))}."
            problems.append(Problem("duplicate_id", lists, what))
        else:
            both.append(image_id)
    if both:
        what = f"{len(both)} id(s) are both in the lists to train on and in those to test on, such as '{both[0]}'."
        problems.append(Problem("leak", lists, what))
    return problems


def _same_pictures(records: Iterable[Record]) -> list[Problem]:
    groups: dict[bytes, dict[Path, Record]] = defaultdict(dict)
    for r in records:
        if r.digest:
            groups[r.digest].setdefault(r.file, r)
    problems = []
    for group in groups.values():
        if len(group) > 1:
            first, *others = group.values()
            leak = len({r.task.role for r in group.values()}) > 1
            names = ", ".join(f"'{r.task.image_id}' ({r.task.split})" for r in others)
            what = f"'{first.task.image_id}' ({first.task.split}) is the same file, byte for byte, as {names}."
            problems.append(Problem("leak" if leak else "copies", str(first.file), what))
    return problems


def _zero_based(records: Sequence[Record]) -> list[Problem]:
    at_zero = [r for r in records if r.truth.at_zero]
    if not at_zero:
        return []
    boxes = sum(r.truth.at_zero for r in at_zero)
    at_end = sum(r.truth.at_end for r in records)
    if at_end:
        rest = (
            f"{at_end} box(es) reach xmax or ymax of the picture's full width or height as well, so that x2 and y2 may "
            "be meant as one past the last pixel, or files of two origins are mixed."
        )
    else:
        rest = "No box reaches the picture's last column or row: the whole data set seems to count from 0."
    what = f"{boxes} box(es) in {len(at_zero)} file(s) start at 0, before the first pixel, which is 1 in VOC. {rest}"
    return [Problem("zero_based", str(at_zero[0].annotation), what)]


def _letter_case(records: Iterable[Record]) -> list[Problem]:
    first: dict[str, Record] = {}
    for r in records:
        for name in r.truth.names:
            first.setdefault(name, r)
    return [
        Problem("letter_case", str(first[group[-1]].annotation), f"there are {_quoted(group)}, which {SAME_FILES}.")
        for group in same_files(first)
    ]


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"'{n}'" for n in names)


def _rare_classes(records: Iterable[Record], classes: Sequence[str], lists: str, unread: bool) -> list[Problem]:
    counts = {"train": Counter[str](), "test": Counter[str]()}
    for r in records:
        used = zip(r.truth.names, r.trained, strict=True) if r.task.role == "train" else ((n, 1) for n in r.truth.names)
        counts[r.task.role].update(name for name, counted in used if counted)
    problems = []
    if not any(counts["train"][name] for name in classes):
        shown = [r for r in records if r.task.role == "train"]
        objects = sum(len(r.truth.names) for r in shown)
        first = next((r for r in shown if r.truth.names or not objects), None)
        if first is not None and (objects or not unread):
            what = f"none of the {objects} objects in the training images is trained on."
            what = what if objects else f"none of the {len(shown)} training images has an object."
            return [Problem("no_objects", str(first.annotation), what)]
        if unread:
            return []
    for name in classes:
        train, test = counts["train"][name], counts["test"][name]
        if train == 0:
            what = f"'{name}' has {test} object(s) to test on and none to train on."
            problems.append(Problem("test_only", lists, what))
        elif train < FEW_OBJECTS:
            problems.append(Problem("few_objects", lists, f"'{name}' has {train} object(s) to train on."))
    return problems


def _without_truth(records: Sequence[Record], classes: Sequence[str], lists: str, unread: bool) -> list[Problem]:
    """Whether no test image has an object that counts."""
    test = [r for r in records if r.task.role == "test"]
    if (unread and not any(r.truth.names for r in test)) or not test:
        return []
    if any(n in classes and not d for r in test for n, d in zip(r.truth.names, r.truth.difficult, strict=True)):
        return []
    what = f"no class has an object in the {len(test)} image(s) to test on, so there will be no mAP and no best.pt."
    return [Problem("no_truth", lists, what)]


def _counted(records: Sequence[Record]) -> list[Problem]:
    problems = _sum_up(
        "clipped", records, lambda r: r.truth.clipped, "{n} box(es) in {pictures} picture(s) were clipped."
    )
    problems += _sum_up(
        "negative",
        records,
        lambda r: int(r.truth.size is not None and not r.truth.names and not r.problems),
        "{n} picture(s) have no object.",
    )
    problems += _sum_up(
        "escaped_id",
        records,
        lambda r: int(comp4_id(r.task.image_id) != r.task.image_id),
        "{n} id(s) hold a space or a %.",
    )
    for colour in sorted({r.colour for r in records} - {"RGB"}):
        problems += _sum_up(
            "colours", [r for r in records if r.colour == colour], lambda r: 1, f"{{n}} picture(s) are {colour}."
        )
    problems += image_notes([(r.file, r.stored, r.turn) for r in records if r.stored and r.size == r.truth.size])
    return problems


def report_findings(report: Report) -> list[Problem]:
    """What the statistics give reason to say."""
    problems = []
    objects = sum(report.boxes.sizes.values())
    side, below = next(iter(report.boxes.below_cell.items()), ("", 0))
    if below:
        what = f"{below} of {objects} boxes are lower or narrower than {CELL} pixels, one cell of conv5_3, when "
        problems.append(Problem("small_boxes", report.root, f"{what}the short side of the picture has {side} pixels."))
    s = report.sampling
    if s is not None and s.few_background > FEW_BACKGROUND:
        what = f"{100 * s.few_background:.0f} % of the training pictures have too few background RoIs to fill up to "
        problems.append(
            Problem("few_rois", report.root, f"{what}{s.rois_per_image}; {s.drawn:.0f} can be drawn on average.")
        )
    return problems
