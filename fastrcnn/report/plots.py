"""Precision-recall curves, thinned for drawing by templates/plots.html."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrcnn.evaluation.voc_ap import envelope

STEPS = 100  # of recall that a curve is drawn in


@dataclass(frozen=True)
class Curve:
    """A precision-recall curve at IoU .5: of each recall step the first point, and the last of all."""

    recall: np.ndarray  # (C,)
    precision: np.ndarray  # (C,)
    best: np.ndarray  # (C,) the best precision at this recall or a higher one

    @property
    def line(self) -> str:
        """The precision as points of a plot."""
        return points(self.recall, self.precision)

    @property
    def under(self) -> str:
        """The area below the best precision, in steps, as points of a plot."""
        if not len(self.recall):
            return ""
        recall = np.concatenate(([0.0, 0.0], np.repeat(self.recall, 2)))
        return points(recall, np.concatenate(([0.0], np.repeat(self.best, 2), [0.0])))


def thin_curve(recall: np.ndarray, precision: np.ndarray) -> Curve:
    """The points (C,) of a curve that are STEPS of recall apart, with its first and its last."""
    steps = np.searchsorted(recall, np.linspace(0.0, 1.0, STEPS + 1), "left")
    chosen = np.unique(np.append(steps[steps < len(recall)], len(recall) - 1)) if len(recall) else steps[:0]
    return Curve(recall[chosen], precision[chosen], envelope(precision)[chosen])


def points(recall: np.ndarray, precision: np.ndarray) -> str:
    """Points (C,) for an SVG line in the frame of templates/plots.html."""
    return " ".join(f"{34 + 122 * r:.1f},{6 + 96 * (1 - p):.1f}" for r, p in zip(recall, precision, strict=True))
