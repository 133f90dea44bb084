"""Write compare.html, a page that compares several evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastrcnn.evaluation.comparison import LETTERS, LEVEL, Comparison, fraction, note, span, with_sign
from fastrcnn.evaluation.matches import ClassMatches
from fastrcnn.files import replace_file
from fastrcnn.report.page import render, thin_curve

MOST_PLOTS = 60  # maximum number of classes with plots


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Write compare.html into `folder` and return its path. Raises UserError if the file cannot be written."""
    letters, level = LETTERS[: len(found.runs)], f"{100 * LEVEL:.0f} %"
    columns = ["class", "objects", *letters]
    for letter in letters[1:]:
        columns += [f"{letter} − A", f"{level} interval", f"AP of {letter} is"]
    ap = {row.name: _by_letter(row.ap) for row in found.classes}
    html = render(
        "compare.html",
        title="Comparison of evaluations",
        found=found,
        letters=letters,
        level=level,
        columns=columns,
        note=note(found),
        coco=_by_letter(found.coco),
        curves=[(name, ap[name], [_line(m) for m in runs]) for name, runs in list(found.curves.items())[:MOST_PLOTS]],
        signed=with_sign,
        span=span,
    )
    return replace_file(folder / "compare.html", html.encode("utf-8", errors="replace"))


def _by_letter(values: list[float | None]) -> str:
    return ", ".join(f"{letter} {fraction(value)}" for letter, value in zip(LETTERS, values, strict=False))


def _line(found: ClassMatches) -> str:
    right = np.cumsum(found.correct)
    return thin_curve(right / max(len(found.objects), 1), right / np.arange(1, len(right) + 1)).line
