"""HTML pages from the templates beside this file. Each is one file that needs nothing else: style, scripts and images
are inside. Values are escaped (autoescape), so names of classes, files and images stay text. Precision-recall curves
are thinned here for drawing by templates/plots.html.
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

STEPS = 100  # of recall that a curve is drawn in
TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """The page of templates/`template` with `values`. A name in the template that has no value is an error."""
    return ENVIRONMENT.get_template(template).render(values)


def jpeg_source(jpeg: bytes) -> str:
    """A JPEG file as the source of an <img>."""
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
# `tojson` writes `<` as an escape, so that no text in the data can end its script element.
ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}


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
