"""The comparison of evaluations as one HTML page that needs nothing else."""

from __future__ import annotations

from html import escape

import numpy as np

from fastrcnn.evaluation.bootstrap import LEVEL
from fastrcnn.evaluation.comparison import LETTERS, Comparison, Difference, Row, note, signed, span
from fastrcnn.evaluation.matches import ClassMatches
from fastrcnn.report.page import STYLE, decimal_cell, document, name_cell, number_cell, sortable
from fastrcnn.report.plots import curve_plot, line_sample, thinned

MOST_PLOTS = 60


def compare_page(found: Comparison) -> str:
    """The page."""
    letters = LETTERS[: len(found.runs)]
    runs = "".join(
        f"<li>{line_sample(i)} <b>{letter}</b> {escape(run)}</li>"
        for i, (letter, run) in enumerate(zip(letters, found.runs, strict=True))
    )
    verdicts = "".join(
        f"<p class='verdict {'good' if d.verdict == 'higher' else 'bad' if d.verdict == 'lower' else 'open'}'>"
        f"mAP of {letter}: {signed(d.value)} against A, {100 * LEVEL:.0f} % interval {span(d)}: {d.verdict}</p>"
        for letter, d in zip(letters[1:], found.mean.differences, strict=True)
        if d is not None
    )
    columns = ["class", "objects", *letters]
    for letter in letters[1:]:
        columns += [f"{letter} − A", f"{100 * LEVEL:.0f} % interval", f"{letter} is"]
    coco = ", ".join(f"{a} {'–' if v is None else f'{v:.3f}'}" for a, v in zip(letters, found.coco, strict=False))
    parts = [
        "<h1>Comparison of evaluations</h1>",
        f"<ul class='key runs'>{runs}</ul>{verdicts}",
        f"<p>COCO's AP, without interval: {coco}.</p>" if found.coco else "",
        f"<h2>Classes</h2><p class='soft'>{escape(note(found))}</p>",
        sortable("AP of each class and differences", columns, [_row(r) for r in (found.mean, *found.classes)]),
        _curves(found),
    ]
    return document("Comparison of evaluations", parts, STYLE.with_name("page.js").read_text(encoding="utf-8"))


def _row(r: Row) -> list[str]:
    cells = [name_cell(r.name), number_cell(r.objects), *(decimal_cell(v) for v in r.ap)]
    for d in r.differences:
        cells += [number_cell("–" if d is None else signed(d.value)), number_cell(span(d)), _verdict(d)]
    return cells


def _verdict(d: Difference | None) -> str:
    words = "–" if d is None else d.verdict
    kind = {"higher": " good", "lower": " bad"}.get(words, "")
    return f"<td class='number{kind}'>{words}</td>"


def _curves(found: Comparison) -> str:
    figures = []
    ap = {r.name: r.ap for r in found.classes}
    chosen = list(found.curves.items())[:MOST_PLOTS]
    for name, runs in chosen:
        values = ", ".join(f"{a} {'–' if v is None else f'{v:.3f}'}" for a, v in zip(LETTERS, ap[name], strict=False))
        plot = curve_plot(f"Precision-recall curves of {name}; AP {values}", [_curve(m) for m in runs])
        figures.append(f"<figure>{plot}<figcaption><b>{escape(name)}</b> {values}</figcaption></figure>")
    more = f" The first {MOST_PLOTS} classes." if len(found.curves) > len(chosen) else ""
    return (
        f"<h2>Precision and recall</h2><p class='soft'>At IoU .5.{more}</p><div class='plots'>{''.join(figures)}</div>"
        if figures
        else ""
    )


def _curve(found: ClassMatches) -> tuple[np.ndarray, np.ndarray]:
    right = np.cumsum(found.correct)
    curve = thinned(right / max(len(found.objects), 1), right / np.arange(1, len(right) + 1))
    return curve.recall, curve.precision
