"""The report on a data set as one HTML page that needs nothing else: no scripts, no fonts, images within."""

from __future__ import annotations

from collections.abc import Sequence

from fastrcnn.audit.report import Report
from fastrcnn.audit.text import percent, verdict
from fastrcnn.data.annotations.problems import by_kind
from fastrcnn.report.page import render

MOST = 200  # problems of a kind that are listed; report.json has them all
FEW = 20  # errors of a kind that are shown without a click


def page(report: Report, pictures: Sequence[tuple[str, bytes]] = ()) -> str:
    """The page; `pictures` are captions and JPEG files, of the data set with its truth drawn in."""
    classes = []
    for name in report.classes:
        counts = [(s.role, s.classes[name]) for s in report.splits]
        train, test = (sum(c.objects for role, c in counts if role == wanted) for wanted in ("train", "test"))
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
        most=MOST,
        few=FEW,
    )
