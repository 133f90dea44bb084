"""Precision-recall curves as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from fastrcnn.evaluation.voc_ap import envelope

STEPS = 100  # of recall that a curve is drawn in
LEFT, TOP, WIDTH, HEIGHT = 34, 6, 122, 96  # of the plot in its picture, in units of the picture


@dataclass(frozen=True)
class Curve:
    """A precision-recall curve at IoU .5, thinned for drawing: C points, of each recall step the first."""

    recall: np.ndarray  # (C,)
    precision: np.ndarray  # (C,)
    best: np.ndarray  # (C,) the best precision at this recall or a higher one


def thinned(recall: np.ndarray, precision: np.ndarray) -> Curve:
    """A curve (C,) in points that are STEPS of recall apart, with its first and its last."""
    if not len(recall):
        return Curve(np.zeros(0), np.zeros(0), np.zeros(0))
    steps = np.searchsorted(recall, np.linspace(0.0, 1.0, STEPS + 1), "left")
    chosen = np.unique(np.append(steps[steps < len(recall)], len(recall) - 1))
    return Curve(recall[chosen], precision[chosen], envelope(precision)[chosen])


def curve_plot(
    description: str,
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
    under: tuple[np.ndarray, np.ndarray] | None = None,
    ceiling: float | None = None,
) -> str:
    """A plot of curves, each recalls (C,) and precisions (C,) from 0 to 1; the n-th is drawn in the n-th style.

    under: a curve whose area is filled, in steps. ceiling: a recall that is marked. description: for who cannot see.
    """
    parts = [_frame()]
    if under is not None and len(under[0]):
        recall, precision = under
        steps = [(0.0, 0.0), (0.0, precision[0])]
        for r, p, following in zip(recall, precision, [*precision[1:], 0.0], strict=True):
            steps += [(r, p), (r, following)]
        parts.append(f"<polygon class='under' points='{_points(steps)}'/>")
    if ceiling is not None:
        x = LEFT + WIDTH * ceiling
        parts.append(f"<path class='ceiling' d='M{x:.1f} {TOP}V{TOP + HEIGHT}'/>")
    for i, (recall, precision) in enumerate(lines):
        if len(recall):
            points = _points(list(zip(recall, precision, strict=True)))
            parts.append(f"<polyline class='line line{i}' points='{points}'/>")
    box = f"0 0 {LEFT + WIDTH + 10} {TOP + HEIGHT + 30}"
    return f"<svg viewBox='{box}' role='img' aria-label='{escape(description)}'>{''.join(parts)}</svg>"


def line_sample(number: int) -> str:
    """A short piece of the n-th line, for a legend."""
    return f"<svg viewBox='0 0 40 12' aria-hidden='true'><path class='line line{number}' d='M0 6H40'/></svg>"


def _frame() -> str:
    marks = "".join(
        f"<path class='grid' d='M{LEFT} {TOP + HEIGHT * (1 - v):.0f}h{WIDTH}M{LEFT + WIDTH * v:.0f} {TOP}v{HEIGHT}'/>"
        f"<text x='{LEFT + WIDTH * v:.0f}' y='{TOP + HEIGHT + 12}' text-anchor='middle'>{v:g}</text>"
        f"<text x='{LEFT - 4}' y='{TOP + HEIGHT * (1 - v) + 4:.0f}' text-anchor='end'>{v:g}</text>"
        for v in (0, 0.5, 1)
    )
    x, y = LEFT + WIDTH / 2, TOP + HEIGHT / 2
    return (
        f"{marks}<text x='{x}' y='{TOP + HEIGHT + 25}' text-anchor='middle'>recall</text>"
        f"<text transform='translate(9 {y}) rotate(-90)' text-anchor='middle'>precision</text>"
    )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{LEFT + WIDTH * r:.1f},{TOP + HEIGHT * (1 - p):.1f}" for r, p in points)
