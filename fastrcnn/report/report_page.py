"""The report on an evaluation as one HTML page that needs nothing else; page.js sorts, report.js does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from fastrcnn.evaluation.evaluate import Evaluation
from fastrcnn.evaluation.result_files import replace_file
from fastrcnn.evaluation.sizes import SIZES
from fastrcnn.report.diagnosis import MISSED_KINDS
from fastrcnn.report.gallery_page import gallery
from fastrcnn.report.page import (
    STYLE,
    decimal_cell,
    document,
    folded,
    headings,
    name_cell,
    number_cell,
    sortable,
    table,
    tiles,
)
from fastrcnn.report.plots import curve_plot
from fastrcnn.report.report import ClassReport, Report, make_report
from fastrcnn.report.threshold_page import at_threshold, script_data

METRICS = {
    "voc07": "VOC07's: the mean of the precision at 11 recalls, at IoU .5",
    "voc10": "VOC10's: the area under the precision-recall curve, at IoU .5",
    "coco": "COCO's: the mean over IoU .5, .55, ..., .95",
}
PLOTS, MOST_PLOTS = 24, 200  # shown without a click, and with one


def write_report(result: Evaluation, folder: Path, title: str, about: Sequence[tuple[str, str]]) -> Path:
    """Writes report.html into `folder`, with titles and texts at its end. Raises UserError where that cannot be."""
    html = page(make_report(result, title, about))
    return replace_file(folder / "report.html", html.encode("utf-8", errors="replace"))


def page(report: Report) -> str:
    """The page."""
    parts = [
        f"<h1>{escape(report.title)}</h1><p class='soft'>AP is {METRICS[report.metric]}. Difficult objects are neither "
        "found nor missed, and detections of them do not count.</p>",
        _summary(report),
        _remarks(report),
        _classes(report),
        _curves(report),
        at_threshold(report),
        _missed(report),
        gallery(report.cases, [c.name for c in report.classes]),
        _sizes(report),
        _about(report),
    ]
    scripts = [STYLE.with_name("page.js"), STYLE.with_name("report.js")]
    return document(report.title, parts, "\n".join(s.read_text(encoding="utf-8") for s in scripts), script_data(report))


def _fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _summary(report: Report) -> str:
    values: list[tuple[object, str]] = [(_fraction(report.mean), f"mAP ({report.metric})")]
    values += [(_fraction(report.figures[n]), n) for n in ("AP50", "AP75") if n in report.figures]
    values += [
        (f"{report.images:,}", "images"),
        (f"{sum(c.objects for c in report.classes):,}", "objects that count"),
        (f"{sum(c.detections for c in report.classes):,}", "detections"),
    ]
    if report.proposals:
        values.append((_fraction(report.proposals.all.at_50), "recall of the proposals (IoU .5)"))
        values.append((f"{report.proposals.proposals:,.0f}", "proposals an image"))
    if report.seconds_per_image is not None:
        values.append((f"{1000 * report.seconds_per_image:,.0f} ms", "an image in the network"))
    return tiles(values)


def _remarks(report: Report) -> str:
    lines = []
    counted = [c for c in report.classes if c.ap is not None]
    if not counted:
        lines.append("No class has an object that counts in these images, so there is no AP.")
    elif not any(c.detections for c in report.classes):
        lines.append("Nothing was detected: every object is missed.")
    if without := [c.name for c in report.classes if c.ap is None]:
        lines.append(f"Without an object that counts, and so without AP: {', '.join(without)}.")
    if report.not_evaluated:
        lines.append(f"No detections were given, and so left out: {', '.join(report.not_evaluated)}.")
    return "".join(f"<p class='soft'>{escape(line)}</p>" for line in lines)


def _barred(value: float | None) -> str:
    if value is None:
        return decimal_cell(None)
    return f"<td class='number barred' style='--share:{100 * value:.1f}%'>{value:.3f}</td>"


def _classes(report: Report) -> str:
    coco, proposals = report.metric == "coco", report.proposals is not None
    columns = ["class", "AP", *(["AP50"] if coco else []), "objects", *(["recall of proposals"] if proposals else [])]
    columns += ["recall", "detections", *(f"AP {size}" for size in SIZES)]
    rows = [
        [
            name_cell(c.name),
            _barred(c.ap),
            *([decimal_cell(c.ap_50)] if coco else []),
            number_cell(c.objects),
            *([decimal_cell(c.ceiling)] if proposals else []),
            decimal_cell(c.recall),
            number_cell(c.detections),
            *(decimal_cell(c.sizes[size]) for size in SIZES),
        ]
        for c in report.classes
    ]
    ceiling = (
        "Recall of proposals: objects that a proposal overlaps by an IoU of .5, which is about the most that the "
        "detector can find. "
        if proposals
        else ""
    )
    note = "AP50 and AP by size: at IoU .5 by VOC's rule, area under the curve. " if coco else ""
    return (
        f"<h2>Classes</h2><p class='soft'>{ceiling}Recall: objects found by any detection, whatever its score. {note}"
        "Sizes are COCO's: areas of the box below 32 × 32 pixels, below 96 × 96, and larger.</p>"
        + sortable("AP and recall of each class", columns, rows)
    )


def _curves(report: Report) -> str:
    counted = [c for c in report.classes if c.objects]
    if not counted:
        return ""
    order = ""
    if len(counted) > PLOTS:
        counted.sort(key=lambda c: c.ap_50 or 0.0)
        least = f"the {MOST_PLOTS} of least AP, " if len(counted) > MOST_PLOTS else ""
        order = f" Classes: {least}lowest AP first."
    figures = [_figure(c) for c in counted[:MOST_PLOTS]]
    ceiling = " Dashed upright line: recall of the proposals." if report.proposals else ""
    more = (
        f"<details><summary>{len(figures) - PLOTS:,} more classes</summary><div class='plots'>"
        f"{''.join(figures[PLOTS:])}</div></details>"
        if len(figures) > PLOTS
        else ""
    )
    return (
        "<h2>Precision and recall</h2><p class='soft'>At IoU .5. Line: precision after each detection, by falling "
        f"score. Shaded: the best precision at a recall or a higher one, which AP is computed from.{ceiling}{order}</p>"
        f"<div class='plots'>{''.join(figures[:PLOTS])}</div>{more}"
    )


def _figure(c: ClassReport) -> str:
    last = f"{c.curve.recall[-1]:.2f}" if len(c.curve.recall) else "0"
    what = f"Precision-recall curve of {c.name}: AP at IoU .5 {_fraction(c.ap_50)}, recall up to {last}"
    plot = curve_plot(what, [(c.curve.recall, c.curve.precision)], (c.curve.recall, c.curve.best), c.ceiling)
    return f"<figure>{plot}<figcaption>{escape(c.name)} <b>{_fraction(c.ap_50)}</b></figcaption></figure>"


def _missed(report: Report) -> str:
    whole = np.sum([c.missed for c in report.classes], axis=0) if report.classes else np.zeros(len(MISSED_KINDS), int)
    rows = [
        [name_cell(kind, what), number_cell(int(n))]
        for (kind, what), n in zip(MISSED_KINDS.items(), whole, strict=True)
        if kind != "no proposal" or report.proposals
    ]
    return (
        "<h2>Why objects are missed</h2><p class='soft'>Objects that no detection is right for, whatever its score; "
        f"the first reason that fits.</p>{table(headings('reason', 'objects'), rows)}"
    )


def _sizes(report: Report) -> str:
    meaning = {"small": "below 32 × 32 pixels", "medium": "below 96 × 96", "large": "the rest"}
    coco = [f"AP_{size}" for size in SIZES if f"AP_{size}" in report.figures]
    columns = ["size", *(["AP (COCO)"] if coco else []), "AP at IoU .5"]
    columns += ["objects", "recall of proposals"] if report.proposals else []
    rows = []
    for size in SIZES:
        cells = [name_cell(size, meaning[size]), *([decimal_cell(report.figures[f"AP_{size}"])] if coco else [])]
        known = [ap for c in report.classes if (ap := c.sizes[size]) is not None]
        cells.append(decimal_cell(sum(known) / len(known) if known else None))
        if report.proposals:
            found = report.proposals.sizes[size]
            cells += [number_cell(found.objects), decimal_cell(found.at_50)]
        rows.append(cells)
    return (
        "<h2>Sizes</h2><p class='soft'>By COCO's areas, of the truth's boxes. AP: mean over the classes that have "
        "objects of the size; those of other sizes are neither found nor missed.</p>" + table(headings(*columns), rows)
    )


def _about(report: Report) -> str:
    return (
        "<h2>How this came about</h2><p>Data: sha256 of class names, ids, sizes and truth of the images:<br>"
        f"<code>{report.data}</code></p>" + "".join(folded(title, content) for title, content in report.about)
    )
