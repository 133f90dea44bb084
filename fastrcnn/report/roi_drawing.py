"""Draw RoI pooling of one RoI as rectangles and texts, and write the drawing as PNG (Pillow) and SVG (a template).

The drawing shows the real outline of the RoI on the feature map, the quantised RoI of each variant and its bins, the
cells that are pooled, lost and gained, and the pooled values.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastrcnn.files import replace_file
from fastrcnn.ops.reference import VARIANTS
from fastrcnn.report.explain_roi import Answer, Box, Question, explain, table
from fastrcnn.report.page import render

INK, GREY = "#1b1f24", "#9aa3ad"
KEPT, SHARED, LOST, GAINED = "#d6e6f7", "#a9cbee", "#f9cfc9", "#d3ecc8"
REAL, QUANTISED = "#c2321d", "#1f5fa8"
LEGEND = [
    (KEPT, GREY, "pooled by one bin"),
    (SHARED, GREY, "pooled by several bins"),
    (LOST, GREY, "lost: in the real RoI only"),
    (GAINED, GREY, "gained: outside the real RoI"),
    (None, REAL, "real RoI"),
    (None, QUANTISED, "quantised RoI and its bins"),
]


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    line: str
    fill: str | None = None
    thick: float = 1
    dashed: bool = False


@dataclass(frozen=True)
class Text:
    x: float  # of the centre, or of the left end if `left`
    y: float  # of the centre
    words: str
    size: float = 14
    colour: str = INK
    left: bool = False
    bold: bool = False


@dataclass(frozen=True)
class View:
    """The visible part of the feature map, and the position of its cells in the drawing."""

    top: int  # first visible row
    left: int
    bottom: int  # last visible row + 1
    right: int
    cell: int  # side of a cell in the drawing
    x: float = 0  # position of the top left corner in the drawing
    y: float = 0

    def rect(self, box: Box, line: str, thick: float = 1, inset: float = 0, dashed: bool = False) -> Rect:
        """Convert a box in feature map cells to a rectangle of the drawing, clipped to the view plus half a cell."""
        x1, x2 = (min(max(v, self.left - 0.5), self.right + 0.5) - self.left for v in (box[0], box[2]))
        y1, y2 = (min(max(v, self.top - 0.5), self.bottom + 0.5) - self.top for v in (box[1], box[3]))
        x, y, c = self.x + inset, self.y + inset, self.cell
        wide, high = max((x2 - x1) * c - 2 * inset, 0), max((y2 - y1) * c - 2 * inset, 0)
        return Rect(x + x1 * c, y + y1 * c, wide, high, line, None, thick, dashed)


def view_of(q: Question, answers: list[Answer]) -> View:
    """Return a view of the complete map if it has up to 10 x 10 cells, otherwise of the RoI and its surroundings."""
    height, width = q.grid.shape
    if max(height, width) <= 10:
        return View(0, 0, height, width, 44)
    x1, y1, x2, y2 = q.outline
    used = np.argwhere(np.any([a.uses > 0 for a in answers], axis=0))
    ranges = []
    for values, n in (([y1, y2, *used[:, 0]], height), ([x1, x2, *used[:, 1]], width)):
        ranges.append((int(min(max(min(values) - 2, 0), n - 1)), int(min(max(max(values) + 3, 1), n))))
    (top, bottom), (left, right) = ranges
    return View(top, left, bottom, right, max(14, min(44, 420 // (right - left))))


def draw(q: Question, answers: list[Answer]) -> tuple[list[Rect | Text], int, int]:
    """Return the shapes of all `answers`, placed side by side, and the width and height of the drawing."""
    view = view_of(q, answers)
    panel = max((view.right - view.left) * view.cell, 390) + 50
    x1, y1, x2, y2 = q.outline
    title = f"One RoI pooled to {q.size[0]} x {q.size[1]}, in {len(answers)} variants"
    where = f"image: {q.roi[0]:g}, {q.roi[1]:g} to {q.roi[2]:g}, {q.roi[3]:g} in pixels"
    on_map = f"map: {x1:.4g}, {y1:.4g} to {x2:.4g}, {y2:.4g} in cells of {q.stride:g} x {q.stride:g} pixels"
    shapes: list[Rect | Text] = [
        Text(24, 28, title, 18, left=True, bold=True),
        Text(24, 54, f"{where};  {on_map}", left=True),
    ]
    for i, a in enumerate(answers):
        placed = replace(view, x=46 + i * panel, y=136)
        shapes += [*_cells(q, a, placed), *_boxes(q, a, placed), *_values(q, a, placed)]
    bottom = 136 + (view.bottom - view.top) * view.cell + view.cell // 2 + 62 + q.size[0] * 30
    x = 24.0
    for fill, line, words in LEGEND:
        thick = 1 if line == GREY else 2
        shapes += [Rect(x, bottom, 18, 18, line, fill, thick, line == REAL), Text(x + 26, bottom + 9, words, left=True)]
        x += 52 + 7.4 * len(words)
    shapes.sort(key=lambda shape: isinstance(shape, Text))  # texts are drawn on top
    return shapes, max(round(x), 30 + len(answers) * panel), bottom + 42


def _cells(q: Question, a: Answer, view: View) -> list[Rect | Text]:
    """Return the cells of the map with their values, and the row and column numbers."""
    number, cell = q.number(), view.cell
    rows, columns = range(view.top, view.bottom), range(view.left, view.right)
    x = {j: view.x + (j - view.left + 0.5) * cell for j in columns}
    y = {i: view.y + (i - view.top + 0.5) * cell for i in rows}
    shapes: list[Rect | Text] = [Text(view.x, view.y - 38, a.variant, 17, left=True, bold=True)]
    shapes += [Text(x[j], view.y - 14, str(j), 10, GREY) for j in columns[:: 1 if cell >= 18 else 2]]
    shapes += [Text(view.x - 16, y[i], str(i), 10, GREY) for i in rows]
    for i, j in product(rows, columns):
        fill = SHARED if a.uses[i, j] > 1 else KEPT if a.uses[i, j] else "#ffffff"
        fill = LOST if a.lost[i, j] else GAINED if a.gained[i, j] else fill
        shapes.append(replace(view.rect((j, i, j + 1, i + 1), "#d8dde2"), fill=fill))
        if cell >= 24:
            colour = INK if a.uses[i, j] or a.lost[i, j] else GREY
            shapes.append(Text(x[j], y[i], number(q.grid[i, j]), 4 + cell * 0.19, colour))
    return shapes


def _boxes(q: Question, a: Answer, view: View) -> list[Rect]:
    """Return rectangles for the quantised RoI, its bins, and the real RoI (see explain_roi.py)."""
    shapes = [view.rect((a.x, a.y, a.x + a.width, a.y + a.height), QUANTISED, 3)]
    for (i, (y1, y2)), (j, (x1, x2)) in product(enumerate(a.rows), enumerate(a.columns)):
        if y1 < y2 and x1 < x2:  # neighbours have different insets, so that overlaps are visible
            shapes.append(view.rect((x1, y1, x2, y2), QUANTISED, 1.5, view.cell * (0.09 + 0.07 * ((i + j) % 2))))
    return [*shapes, view.rect(q.outline, REAL, 2.5, dashed=True)]


def _values(q: Question, a: Answer, view: View) -> list[Rect | Text]:
    """Return the pooled values as shapes below the map."""
    number, below = q.number(), view.y + (view.bottom - view.top + 0.5) * view.cell + 16
    share = f"{a.pooled_share:.1%} of the real RoI is pooled; {a.lost.sum()} cells lost, {a.gained.sum()} gained"
    shapes: list[Rect | Text] = [Text(view.x, below, share, left=True)]
    for (i, j), value in np.ndenumerate(a.values):
        shapes.append(Rect(view.x + j * 56, below + 16 + i * 30, 56, 30, QUANTISED, "#f4f7fa"))
        shapes.append(Text(view.x + j * 56 + 28, below + 31 + i * 30, number(value), bold=True))
    return shapes


def png(shapes: list[Rect | Text], width: int, height: int, scale: int = 2) -> bytes:
    """Return the drawing as a PNG file with `scale` pixels per unit of the drawing, for high-density screens."""
    picture = Image.new("RGB", (width * scale, height * scale), "#ffffff")
    pen = ImageDraw.Draw(picture)
    for s in shapes:
        if isinstance(s, Text):
            font, bold = ImageFont.load_default(s.size * scale), scale // 2 if s.bold else 0
            anchor = "lm" if s.left else "mm"
            pen.text((s.x * scale, s.y * scale), s.words, s.colour, font, anchor, stroke_width=bold)
            continue
        x1, y1, x2, y2 = (v * scale for v in (s.x, s.y, s.x + s.width, s.y + s.height))
        if not s.dashed:
            pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), s.fill, s.line, max(round(s.thick * scale), 1))
            continue
        corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            length = max(np.abs(b - a).max(), 1e-9)
            for start in np.arange(0, length, 12 * scale):
                ends = [tuple(a + t * (b - a)) for t in (start / length, min((start + 7 * scale) / length, 1))]
                pen.line(ends, s.line, round(s.thick * scale))
    content = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return content.getvalue()


def write_explanation(q: Question, folder: Path, name: str) -> tuple[str, list[Path]]:
    """Write NAME.png and NAME.svg into `folder`. Return the table of all variants as text, and the two paths.

    Raises UserError if a file cannot be written.
    """
    answers = [explain(q, v) for v in VARIANTS]
    shapes, width, height = draw(q, answers)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    replace_file(paths[0], png(shapes, width, height))
    rects, texts = ([s for s in shapes if isinstance(s, kind)] for kind in (Rect, Text))
    svg = render("roi.svg", width=width, height=height, rects=rects, texts=texts)
    replace_file(paths[1], svg.encode())
    return table(q, answers), paths
