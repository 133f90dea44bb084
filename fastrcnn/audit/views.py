"""Format the report of a data set as a console summary, and as an HTML page without scripts or external files."""

from __future__ import annotations

from collections.abc import Sequence

from fastrcnn.audit.report import Range, Report
from fastrcnn.data.truth.problems import Problem, by_kind
from fastrcnn.report.page import render

MOST_CLASSES = 6  # maximum number of classes on the console; the page shows all classes
MOST_ERRORS = 7  # maximum number of lines about errors on the console
MOST_NOTES = 6
LISTED = 200  # maximum number of problems of one kind on the page; report.json contains all of them
OPEN = 20  # the page collapses lists of more than OPEN errors of one kind


def summary(report: Report) -> str:
    """Summarise counts, sizes, proposals, problems and the verdict in at most 41 lines of text."""
    p, b = report.images, report.boxes
    sizes = ", ".join(f"{n} {name}" for name, n in b.sizes.items())
    lines = [
        f"{report.name}: {report.root}, {len(report.classes)} class(es)",
        *_counts(report),
        "",
        f"images     width {_range(p.width)}, height {_range(p.height)} pixels",
        f"boxes      width {_range(b.width)}, height {_range(b.height)} pixels; {sizes}",
        *_proposals(report),
    ]
    if report.errors:
        lines += ["", f"errors ({len(report.errors)})", *_errors(report.errors)]
    if report.notes:
        lines += ["", f"notes ({len(report.notes)})", *_notes(report.notes)]
    lines += ["", verdict(report)]
    return "\n".join(lines).encode(errors="replace").decode()  # file names can be invalid UTF-8


def page(report: Report, pictures: Sequence[tuple[str, bytes]] = ()) -> str:
    """Return the HTML page. pictures: pairs of a caption and the JPEG data of an image with its ground-truth boxes."""
    classes = []
    for name in report.classes:
        counts = [(s.role, s.classes[name]) for s in report.splits]
        train, test = (sum(c.objects for role, c in counts if (role == "train") == wanted) for wanted in (True, False))
        classes.append((name, train, test, sum(c.difficult for _, c in counts), sum(c.images for _, c in counts)))
    classes.sort(key=lambda c: -c[1] - c[2])
    recalls = report.proposals.classes if report.proposals else {}
    return render(
        "check.html",
        title=f"{report.name}: data set report",
        report=report,
        root=report.root,
        verdict=verdict(report),
        errors=list(by_kind(report.errors).values()),
        notes=list(by_kind(report.notes).values()),
        pictures=pictures,
        classes=classes,
        most_objects=max([1, *(train + test for _, train, test, *_ in classes)]),
        class_recalls=sorted(recalls.items(), key=lambda item: item[1].at_50 or 0),
        percent=percent,
        most=LISTED,
        few=OPEN,
    )


def verdict(report: Report) -> str:
    """Return one line that states whether the data set is ready for training."""
    notes = f"{len(report.notes)} note(s)"
    if report.errors:
        return f"NOT READY: {len(report.errors)} error(s), {notes}. Training would stop, or skip images or objects."
    return f"READY: no errors, {notes if report.notes else 'no notes'}."


def percent(share: float | None) -> str:
    """Format a share between 0 and 1 as a percentage, or None as a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _counts(report: Report) -> list[str]:
    """Return the lines of a table with a column for each of the first four splits."""
    shown = report.splits[:4]
    width = max([10, *(len(s.name) for s in shown)]) + 2
    rows: list[tuple[str, list[object]]] = [("", [s.name for s in shown])]
    for title, key in (
        ("images", "images"),
        ("  unusable", "unreadable"),
        ("  without objects", "negatives"),
        ("objects", "objects"),
        ("  difficult", "difficult"),
        ("  truncated", "truncated"),
    ):
        counts = [getattr(s, key) for s in shown]
        if title == key or any(counts):
            rows.append((title, counts))
    ordered = sorted(report.classes, key=lambda c: -sum(s.classes[c].objects for s in report.splits))
    few = ordered if len(ordered) <= MOST_CLASSES else ordered[: MOST_CLASSES // 2] + ordered[-MOST_CLASSES // 2 :]
    rows += [(f"  {name[:24]}", [s.classes[name].objects for s in shown]) for name in few]
    lines = [f"{name:<26}" + "".join(f"{value!s:>{width}}" for value in values) for name, values in rows]
    if len(few) < len(ordered):
        half = MOST_CLASSES // 2
        lines.append(f"  (the {half} most and {half} least frequent of {len(ordered)} classes; the report shows all)")
    return lines


def _range(values: Range) -> str:
    if values.min is None or values.min == values.max:
        return "-" if values.min is None else f"{values.min:g}"
    return f"{values.min:g} to {values.max:g} (median {values.median:g})"


def _proposals(report: Report) -> list[str]:
    found, s = report.proposals, report.sampling
    if found is None:
        return ["proposals  none"]
    lines = [
        f"proposals  {found.mean:.0f} per image ({found.fewest} to {found.most}); recall of objects "
        f"{percent(found.all.at_50)} at IoU 0.5, {percent(found.all.at_70)} at IoU 0.7"
    ]
    worst = [(r.at_50, name) for name, r in found.classes.items() if r.at_50 is not None]
    if len(worst) > 1:
        at_50, name = min(worst)
        sizes = ", ".join(f"{size} {percent(r.at_50)}" for size, r in found.sizes.items() if r.objects)
        lines.append(f"           lowest recall at IoU 0.5: {name} {percent(at_50)}; by size: {sizes}")
    if s is not None:
        lines += [
            f"sampling   {s.drawn:.0f} of {s.rois_per_image} RoIs per training image can be sampled on average "
            f"({s.foreground:.0f} foreground and {s.background:.0f} background RoIs available)",
            f"           {percent(s.few_foreground)} of the images have fewer than {s.fg_quota} foreground RoIs, "
            f"{percent(s.few_background)} have too few background RoIs",
        ]
    return lines


def _errors(problems: Sequence[Problem]) -> list[str]:
    """Return at most MOST_ERRORS lines: each kind of error with advice, followed by its first occurrences."""
    groups = list(by_kind(problems).values())
    each = max(1, (MOST_ERRORS - len(groups)) // len(groups))
    lines: list[str] = []
    for group in groups:
        if len(lines) + 1 >= MOST_ERRORS:
            return [*lines, "  The report lists further kinds of errors."]
        lines.append(f"  {group[0].title} ({len(group)}). {group[0].advice}")
        lines += [f"    {_short(p)}" for p in group[:each]]
    return lines


def _notes(problems: Sequence[Problem]) -> list[str]:
    """Return a line with the first note of each kind, and with its location if the note concerns one object."""
    lines = []
    for group in by_kind(problems).values():
        number = f" ({len(group)})" if len(group) > 1 else ""
        first = _short(group[0]) if group[0].object else group[0].what[:200]
        lines.append(f"  {group[0].title}{number}: {first}")
    if len(lines) > MOST_NOTES:
        lines[MOST_NOTES - 1 :] = [f"  The report lists {len(lines) - MOST_NOTES + 1} further kinds of notes."]
    return lines


def _short(problem: Problem) -> str:
    """Return a problem as one line. It is cut 240 characters after the end of the path."""
    text = " ".join(str(problem).split())
    most = len(problem.file) + 240
    return text if len(text) <= most else f"{text[:most]}..."
