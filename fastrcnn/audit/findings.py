"""Build the report of a data set, including the problems that are found only by comparing several images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from fastrcnn.audit import report as statistics
from fastrcnn.audit.check import Record, Settings
from fastrcnn.audit.report import CELL, Report
from fastrcnn.data.annotations.splits import explain_missing
from fastrcnn.data.frames import image_notes
from fastrcnn.data.truth.annotated import stands_out, unknown_classes
from fastrcnn.data.truth.problems import UNREAD, Problem, by_cause
from fastrcnn.names import SAME_FILES, class_fault, comp4_id, same_files
from fastrcnn.proposals.store import ProposalStore

FEW_OBJECTS = 10  # a class with fewer training objects gets a note
FEW_BACKGROUND = 0.1  # a larger share of training images with too few background RoIs gets a note


def make_report(
    records: Sequence[Record], problems: Sequence[Problem], name: str, root: str, classes: list[str], settings: Settings
) -> Report:
    """Return the report of a data set. problems: further problems to include, such as those of `file_problems`."""
    unread = any(p.kind in UNREAD for p in problems)
    used = frozenset(classes)
    known = [statistics.known_only(r, used) for r in records]
    stores = [ProposalStore(path) for path in dict.fromkeys(r.task.store for r in records) if path is not None]
    boxes = statistics.boxes(known, settings.short_sides, settings.long_side)
    sampling = statistics.sampling(known, settings.solver.rois_per_image, settings.solver.fg_fraction)
    found = [*problems, *findings(records, classes, root, settings, unread), *proposal_findings(known, stores)]
    side, below = next(iter(boxes.below_cell.items()), ("", 0))
    if below:
        what = f"{below} of {sum(boxes.sizes.values())} boxes are narrower or shorter than {CELL} pixels, the size "
        what += f"of a conv5_3 cell, when the short side of the image is scaled to {side} pixels."
        found.append(Problem("small_boxes", root, what))
    if sampling is not None and sampling.few_background > FEW_BACKGROUND:
        what = f"{100 * sampling.few_background:.0f} % of the training images have too few background RoIs to sample "
        what += f"{sampling.rois_per_image} RoIs. On average, {sampling.drawn:.0f} RoIs per image can be sampled."
        found.append(Problem("few_rois", root, what))
    lists = dict.fromkeys((r.task.role, r.task.split) for r in records)
    return Report(
        name=name,
        root=root,
        classes=classes,
        splits=[statistics.split([r for r in known if (r.task.role, r.task.split) == key], classes) for key in lists],
        images=statistics.images(known),
        boxes=boxes,
        proposals=statistics.proposals(known, classes, [str(s.path) for s in stores]),
        sampling=sampling,
        errors=[p for p in found if p.error],
        notes=[p for p in found if not p.error],
    )


def file_problems(records: Sequence[Record], root: Path) -> list[Problem]:
    """Return the problems that `check.py` found while it read the files. Problems with the same cause are merged."""
    found = []
    for source in dict.fromkeys(r.task.source for r in records):
        of_source = [r for r in records if r.task.source == source]
        own = [p for r in of_source for p in r.problems]
        found += by_cause(explain_missing(own, source, root, len(of_source)), len(of_source))
    return found


def class_findings(records: Iterable[Record], classes: Sequence[str], lists: str, test: str) -> list[Problem]:
    """Return a problem for each class whose name cannot be part of the name of a comp4 file for the split `test`.

    Each problem refers to the first object of the class, or to `lists` (a path) if the class has no object.
    """
    first = {o.name: o for r in reversed([*records]) for o in reversed(r.objects)}
    problems = []
    for name in classes:
        if fault := class_fault(name, test):
            what = f"class {name[:40]!r} {fault}."
            problems.append(first[name].problem("classes", what) if name in first else Problem("classes", lists, what))
    return problems


def findings(
    records: Sequence[Record], classes: Sequence[str], lists: str, settings: Settings, unread: bool = False
) -> list[Problem]:
    """Return the problems that concern classes, splits or several images, except those of proposals.

    lists: the folder or file with the splits, for messages. unread: some annotations could not be read, so objects can
    be missing.
    """
    known, kind = set(classes), "other_classes" if settings.leave_out_others else "unknown_class"
    others = [o for r in records for o in r.objects if o.name not in known]
    texts = unknown_classes((o.name for o in others), classes)
    return [
        *(o.problem(kind, texts[o.name], o.name) for o in others),
        *_same_ids(records, lists),
        *_same_pictures(records),
        *_zero_based(records),
        *_letter_case(records),
        *_rare_classes(records, classes, lists, settings.use_difficult, unread),
        *_without_truth(records, known, lists, unread),
        *_of_images(records),
        *image_notes([(r.image.path, r.stored, r.turn) for r in records if r.stored and r.size == r.image.size]),
    ]


def proposal_findings(records: Sequence[Record], stores: Iterable[ProposalStore]) -> list[Problem]:
    """Return the problems of the proposal stores, and of images and objects without proposals."""
    problems = []
    ids = {r.task.image_id for r in records}
    for store in stores:
        if foreign := [i for i in store.ids if i not in ids]:
            what = f"{len(foreign)} of {len(store)} images in the store are not in the checked splits, for example "
            what += f"'{foreign[0]}'."
            problems.append(Problem("foreign_proposals", str(store.path), what))
        counts = {k: store.meta.get("cleaning", {}).get(k) for k in ("not_finite", "inverted", "outside")}
        if dropped := [f"{n} {k.replace('_', ' ')}" for k, n in counts.items() if n]:
            what = f"boxes dropped: {', '.join(dropped)}."
            problems.append(Problem("dropped_proposals", str(store.path), what))
    empty, untouched = [r.proposals == 0 for r in records], [int((r.best == 0).sum()) for r in records]
    what = "{n} object(s) in {images} image(s) do not overlap with any proposal."
    return [
        *problems,
        *_sum_up("zero_proposals", records, empty, "{n} image(s) have no box in the proposal store."),
        *_sum_up("missed", records, untouched, what),
    ]


def _sum_up(kind: str, records: Sequence[Record], counts: Sequence[int], what: str) -> list[Problem]:
    """Return one problem for all images with a count above 0, at the path of the first of them; [] if there is none."""
    images = [r.image for r, n in zip(records, counts, strict=True) if n]
    if not images:
        return []
    file = images[0].annotation if kind in ("missed", "zero_based") else images[0].path
    return [Problem(kind, str(file), what.format(n=sum(counts), images=len(images)))]


def _of_images(records: Sequence[Record]) -> list[Problem]:
    clipped = [sum(stands_out(o, r.image)[0] for o in r.objects) for r in records]
    negative = [r.image.size is not None and not r.objects and not r.problems for r in records]
    escaped = [comp4_id(r.task.image_id) != r.task.image_id for r in records]
    problems = [
        *_sum_up("clipped", records, clipped, "{n} box(es) in {images} image(s) are clipped."),
        *_sum_up("negative", records, negative, "{n} image(s) have no object."),
        *_sum_up("escaped_id", records, escaped, "{n} id(s) contain a space, a % or a byte that is not UTF-8."),
    ]
    for colour in sorted({r.colour for r in records} - {"RGB"}):
        problems += _sum_up(
            "colours",
            records,
            [r.colour == colour for r in records],
            f"{{n}} image(s) have the colour format {colour}.",
        )
    return problems


def _same_ids(records: Iterable[Record], lists: str) -> list[Problem]:
    places: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        places[r.task.image_id].append(r)
    problems, both = [], []
    for image_id, found in places.items():
        roles: dict[str, list[str]] = defaultdict(list)
        for r in found:
            roles[r.task.role].append(r.task.split)
        for named in roles.values():
            if len(named) > 1:
                problems.append(Problem("duplicate_id", lists, f"'{image_id}' is listed in {' and in '.join(named)}."))
        files = {str(r.image.path) for r in found}
        if len(roles) > 1 and len(files) > 1:
            what = f"'{image_id}' is the id of several images: {', '.join(sorted(files))}."
            problems.append(Problem("duplicate_id", lists, what))
        elif len(roles) > 1:
            both.append(image_id)
    if both:
        what = f"{len(both)} id(s) are in several of the training, validation and test splits, for example '{both[0]}'."
        problems.append(Problem("leak", lists, what))
    return problems


def _same_pictures(records: Iterable[Record]) -> list[Problem]:
    groups: dict[bytes, dict[Path, Record]] = defaultdict(dict)
    for r in records:
        if r.digest:
            groups[r.digest].setdefault(r.image.path, r)
    problems = []
    for group in groups.values():
        if len(group) > 1:
            first, *others = [f"'{r.task.image_id}' ({r.task.split})" for r in group.values()]
            leak = len({r.task.role for r in group.values()}) > 1
            what = f"{first} is byte-identical to {', '.join(others)}."
            problems.append(Problem("leak" if leak else "copies", str(next(iter(group))), what))
    return problems


def _zero_based(records: Sequence[Record]) -> list[Problem]:
    at_zero = [sum(stands_out(o, r.image)[1] for o in r.objects) for r in records]
    at_end = 0  # number of boxes that cannot occur in a file with zero-based inclusive boxes
    for image in (r.image for r in records):
        at_end += sum(o.box[2] >= image.width or o.box[3] >= image.height for o in image.objects or ())
    rest = (
        f"However, {at_end} box(es) have xmax or ymax at or above the image's width or height, so xmax and ymax may be "
        "exclusive, or the data set mixes files with different conventions."
        if at_end
        else "All xmax and ymax are below the image's width and height, so the whole data set seems to be zero-based."
    )
    what = "{n} box(es) in {images} file(s) start at 0, but the first pixel is 1 in VOC. "
    return _sum_up("zero_based", records, at_zero, what + rest)


def _letter_case(records: Sequence[Record]) -> list[Problem]:
    first = {name: str(r.image.annotation) for r in reversed(records) for name in reversed(r.names)}
    ordered = dict.fromkeys(name for r in records for name in r.names)
    return [
        Problem("letter_case", first[group[-1]], f"the classes {' and '.join(map(repr, group))} {SAME_FILES}.")
        for group in same_files(ordered)
    ]


def _rare_classes(
    records: Iterable[Record], classes: Sequence[str], lists: str, use_difficult: bool, unread: bool
) -> list[Problem]:
    counts = {"train": Counter[str](), "test": Counter[str]()}  # test includes data.val
    for r in records:
        training = r.task.role == "train"
        names = (o.name for o in r.objects if o.trained_on(use_difficult) or not training)
        counts["train" if training else "test"].update(names)
    if not any(counts["train"][name] for name in classes):
        shown = [r for r in records if r.task.role == "train"]
        objects = sum(len(r.objects) for r in shown)
        first = next((r for r in shown if r.objects or not objects), None)
        if first is not None and (objects or not unread):
            what = f"none of the {objects} objects in the training images is used for training."
            what = what if objects else f"none of the {len(shown)} training images has an object."
            return [Problem("no_objects", str(first.image.annotation), what)]
        if unread:
            return []
    problems = []
    for name in classes:
        train, test = counts["train"][name], counts["test"][name]
        if train == 0:
            what = f"'{name}' has no training object, but {test} in the validation and test splits."
            problems.append(Problem("test_only", lists, what))
        elif train < FEW_OBJECTS:
            problems.append(Problem("few_objects", lists, f"'{name}' has {train} training object(s)."))
    return problems


def _without_truth(records: Sequence[Record], classes: Collection[str], lists: str, unread: bool) -> list[Problem]:
    """Return a problem if no test image has an object that the evaluation counts, otherwise an empty list."""
    test = [r for r in records if r.task.role == "test"]
    if not test or (unread and not any(r.objects for r in test)):
        return []
    if any(o.name in classes and not o.difficult for r in test for o in r.objects):
        return []
    what = f"no class has an object in the {len(test)} test image(s), so there will be no mAP and no best.pt."
    return [Problem("no_truth", lists, what)]
