"""Render HTML pages from the templates in templates/.

Each page is one file that contains its style, scripts and images. Values are escaped (autoescape), so names of classes,
files and images cannot inject HTML. This module also reduces the number of points of precision-recall curves, which
templates/plots.html draws.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fastrcnn.evaluation.comparison import fraction
from fastrcnn.evaluation.voc_ap import envelope

STEPS = 100  # recall steps of a drawn curve
TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """Render templates/`template` with `values`. Raises UndefinedError if the template uses a name without a value."""
    return ENVIRONMENT.get_template(template).render(values)


def jpeg_source(jpeg: bytes) -> str:
    """Return the contents of a JPEG file as a data URL for the src of an <img>."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {"jpeg_source": jpeg_source, "thousands": "{:,}".format, "fraction": fraction}
# `tojson` escapes `<`, so text in the data cannot close the script element.
ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}


@dataclass(frozen=True)
class Curve:
    """A precision-recall curve at IoU 0.5, reduced to the first point of each recall step and the last point."""

    recall: np.ndarray  # (C,)
    precision: np.ndarray  # (C,)
    best: np.ndarray  # (C,) the highest precision at this recall or a higher one

    @property
    def line(self) -> str:
        """Return the curve as the points of an SVG line."""
        return points(self.recall, self.precision)

    @property
    def under(self) -> str:
        """Return the area under the stepped curve of the best precision as the points of an SVG polygon."""
        if not len(self.recall):
            return ""
        recall = np.concatenate(([0.0, 0.0], np.repeat(self.recall, 2)))
        return points(recall, np.concatenate(([0.0], np.repeat(self.best, 2), [0.0])))


def thin_curve(recall: np.ndarray, precision: np.ndarray) -> Curve:
    """Reduce a curve to the first point of each of STEPS recall steps and the last point of the curve."""
    steps = np.searchsorted(recall, np.linspace(0.0, 1.0, STEPS + 1), "left")
    chosen = np.unique(np.append(steps[steps < len(recall)], len(recall) - 1)) if len(recall) else steps[:0]
    return Curve(recall[chosen], precision[chosen], envelope(precision)[chosen])


def points(recall: np.ndarray, precision: np.ndarray) -> str:
    """Convert the points of a curve to coordinates of an SVG line in the plot of templates/plots.html."""
    return " ".join(f"{34 + 122 * r:.1f},{6 + 96 * (1 - p):.1f}" for r, p in zip(recall, precision, strict=True))
