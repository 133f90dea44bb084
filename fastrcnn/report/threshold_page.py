"""What an evaluation's page shows at a threshold of the score: rates, kinds of mistakes, confusions."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from fastrcnn.report.diagnosis import FALSE_KINDS
from fastrcnn.report.page import decimal_cell, headings, name_cell, sortable, table, tiles
from fastrcnn.report.report import Report


def at_threshold(report: Report) -> str:
    """The section with the slider; report.js fills in what depends on it."""
    t = report.thresholds
    evaluated = {c.name for c in report.classes}
    shown = [k for k, name in enumerate(t.names) if name in evaluated]
    columns = ["class", "precision", "recall", "F1", "right", "false", "missed", *FALSE_KINDS]
    empty = ["<td class='number'></td>"] * (len(columns) - 1)
    rows = ([name_cell(t.names[k]), *empty] for k in shown)
    body = sortable("Each class at the threshold", columns, rows, "at", shown)
    chooser = ""
    if len(t.names) > 25:
        options = "".join(f"<option value='{k}'>{escape(name)}</option>" for k, name in enumerate(t.names))
        chooser = (
            "<label>Classes in the matrix <select id='around'><option value='-1'>the 25 most confused</option>"
            f"{options}</select></label>"
        )
    dropped = (
        f" {t.left_out_confusions:,} confusions of rare pairs of classes are counted among 'other classes' only."
        if t.left_out_confusions
        else ""
    )
    start = t.best(sum(c.objects for c in report.classes))
    figures = tiles([("", n) for n in ("precision", "recall", "F1", "right", "false", "missed")])
    return (
        "<section><h2>At a threshold of the score</h2><p class='soft'>All detections of at least this score, of all "
        "classes together and of each. It begins where F1 over all classes is best.</p>"
        "<div class='controls sticky'><label class='wide'>Score of at least <b id='value'></b>"
        f"<input id='threshold' type='range' min='0' max='{len(t.values) - 1}' step='1' value='{start}'></label></div>"
        f"<div id='figures'>{figures}</div><p id='shown' class='unseen' role='status'></p>"
        f"{body}{_kinds(report)}"
        "<h3>Confusions</h3><p class='soft'>Rows are objects, columns detections. On the diagonal: objects found. Off "
        "it: detections that lie on an object of another class with an IoU above .5; an object may be found and taken "
        "for something else as well. Background: all other false detections, poorly placed and duplicate ones too."
        f"{dropped}</p>{f'<div class=controls>{chooser}</div>' if chooser else ''}"
        "<div class='scroll' tabindex='0' role='region' aria-label='Confusion matrix'>"
        "<table class='matrix' id='matrix'></table></div></section>"
    )


def _kinds(report: Report) -> str:
    known = [c for c in report.classes if c.objects]
    mended = np.mean([c.gains for c in known], axis=0) if known else np.zeros(len(FALSE_KINDS) + 1)
    missed = "No detection is right for the object: above the threshold for the count, at any score for the gain."
    rows = [
        [name_cell(kind, what), "<td class='number barred'></td>", decimal_cell(float(gain))]
        for (kind, what), gain in zip([*FALSE_KINDS.items(), ("missed", missed)], mended, strict=True)
    ]
    per_class = sortable(
        "AP at IoU .5 that each class would gain",
        ["class", *FALSE_KINDS, "missed"],
        [[name_cell(c.name), *(decimal_cell(float(g)) for g in c.gains)] for c in known],
    )
    return (
        "<h3>What goes wrong</h3><p class='soft'>Every false detection is of one kind, the first that fits; counts "
        "are at the threshold. Gain: what the mean AP at IoU .5 would be higher by if all mistakes of the kind were "
        "mended: false detections dropped, poorly placed ones put in place where their object is not found otherwise, "
        "missed objects not asked for.</p>"
        + table(headings("kind", "count", "gain in AP"), rows, "kinds")
        + (f"<details><summary>Gains of each class</summary>{per_class}</details>" if known else "")
    )


def script_data(report: Report) -> dict[str, Any]:
    """What report.js computes with."""
    t = report.thresholds
    evaluated = {c.name for c in report.classes}
    return {
        "names": t.names,
        "evaluated": [name in evaluated for name in t.names],
        "objects": report.objects.tolist(),
        "thresholds": [round(float(v), 4) for v in t.values],
        "kinds": list(FALSE_KINDS),
        "right": [_sparse(row) for row in t.right],
        "wrong": [[_sparse(row) for row in kinds] for kinds in t.false],
        "confusions": [[truth, detected, _sparse(row)] for (truth, detected), row in t.confusions.items()],
    }


def _sparse(counts: np.ndarray) -> list[int]:
    """[bin, count, bin, count, ...] of those that are not 0."""
    bins = np.flatnonzero(counts)
    return np.stack((bins, counts[bins]), axis=1).ravel().tolist()
