"""What RoI pooling does to one RoI: numbers, a table, and a picture.

The real outline of the RoI on the feature map, the whole cells that a variant makes of it, its bins, the cells it
keeps, loses and gains, and the pooled values. A picture is a list of rectangles and texts, which Pillow draws as PNG
and a few lines of markup as SVG.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fastrcnn.ops import roi_pool
from fastrcnn.ops.reference import VARIANTS, Bins, extent, roi_bins

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    grid: np.ndarray  # (H, W) float32, one channel of a feature map
    roi: Box  # x1 y1 x2 y2 in pixels of the image
    stride: float  # pixels of the image per cell
    size: tuple[int, int]  # PH, PW


@dataclass(frozen=True)
class Answer:
    """What one variant makes of the RoI. Cells are numbered from 0 at the top left."""

    variant: str
    x: int  # the quantised RoI, before it is clipped to the map
    y: int
    width: int
    height: int
    rows: Bins  # PH half-open ranges
    columns: Bins  # PW
    values: np.ndarray  # (PH, PW)
    uses: np.ndarray  # (H, W) int, how many bins look at a cell
    lost: np.ndarray  # (H, W) bool, touched by the real RoI, seen by no bin
    gained: np.ndarray  # (H, W) bool, seen by a bin, not touched by the real RoI
    quantised_share: float  # of the real RoI's area, that the quantised RoI covers
    pooled_share: float  # of the real RoI's area, that the bins cover


def real_outline(q: Question) -> Box:
    """The RoI on the map, in cells, before anything is rounded."""
    x1, y1, x2, y2 = (v / q.stride for v in q.roi)
    return x1, y1, x2, y2


def explain(q: Question, variant: str) -> Answer:
    """What `variant` of roi_pool makes of the RoI; raises ValueError for an unknown variant."""
    height, width = q.grid.shape
    table = [0.0, *q.roi]
    x, wide = extent(q.roi[0], q.roi[2], 1 / q.stride, variant)
    y, high = extent(q.roi[1], q.roi[3], 1 / q.stride, variant)
    rows, columns = roi_bins(table, 1 / q.stride, q.size, height, width, variant)
    values = roi_pool(torch.from_numpy(q.grid)[None, None], torch.tensor([table]), q.size, 1 / q.stride, variant)
    uses = np.zeros(q.grid.shape, int)
    for y1, y2 in rows:
        for x1, x2 in columns:
            uses[y1:y2, x1:x2] += 1
    real = _covered(real_outline(q), height, width)
    total = max(real.sum(), 1e-12)
    quantised = real[max(y, 0) : max(y + high, 0), max(x, 0) : max(x + wide, 0)].sum()
    return Answer(
        variant, x, y, wide, high, rows, columns, values[0, 0].numpy(), uses,
        (real > 0) & (uses == 0), (real == 0) & (uses > 0), quantised / total, real[uses > 0].sum() / total,
    )  # fmt: skip


def _covered(box: Box, height: int, width: int) -> np.ndarray:
    """(H, W) the area of each cell that lies in `box`."""
    x1, y1, x2, y2 = box
    i, j = np.arange(height), np.arange(width)
    down = np.clip(np.minimum(y2, i + 1) - np.maximum(y1, i), 0, None)
    across = np.clip(np.minimum(x2, j + 1) - np.maximum(x1, j), 0, None)
    return down[:, None] * across[None, :]


# --- the table ---


def table(q: Question, answers: list[Answer]) -> str:
    """All the numbers, as text."""
    x1, y1, x2, y2 = real_outline(q)
    number = _number(q.grid)
    lines = [
        f"map of {q.grid.shape[0]} x {q.grid.shape[1]} cells, {q.stride:g} pixels each; output"
        f" {q.size[0]} x {q.size[1]}",
        f"RoI in the image: x {q.roi[0]:g} to {q.roi[2]:g}, y {q.roi[1]:g} to {q.roi[3]:g}",
        f"RoI on the map:   x {x1:.4g} to {x2:.4g}, y {y1:.4g} to {y2:.4g}: {(x2 - x1) * (y2 - y1):.2f} cells",
    ]
    for a in answers:
        lines += [
            "",
            a.variant,
            f"  quantised: x {a.x}, y {a.y}, {a.width} wide, {a.height} high, {a.quantised_share:.1%} of the real RoI",
            f"  rows of the bins:    {_ranges(a.rows)}",
            f"  columns of the bins: {_ranges(a.columns)}",
            f"  cells: {(a.uses > 0).sum()} pooled ({(a.uses > 1).sum()} of them by several bins),"
            f" {a.lost.sum()} lost, {a.gained.sum()} gained; {a.pooled_share:.1%} of the real RoI is pooled",
            *("  " + "  ".join(number(v) for v in row) for row in a.values),
        ]
    return "\n".join(lines)


def _ranges(ranges: Bins) -> str:
    return "  ".join(f"{a}..{b - 1}" if b > a else "empty" for a, b in ranges)


def _number(grid: np.ndarray):  # type: ignore[no-untyped-def]  # a format function
    whole = bool((grid == grid.round()).all())
    return lambda v: f"{v:.0f}" if whole else f"{v:.2f}"


# --- the picture ---

INK, GREY = "#1b1f24", "#9aa3ad"
KEPT, SHARED, LOST, GAINED = "#d6e6f7", "#a9cbee", "#f9cfc9", "#d3ecc8"
REAL, QUANTISED = "#c2321d", "#1f5fa8"
LEGEND = [
    (KEPT, GREY, "pooled by one bin"),
    (SHARED, GREY, "by several bins"),
    (LOST, GREY, "in the real RoI, but lost"),
    (GAINED, GREY, "outside it, but gained"),
    (None, REAL, "real RoI"),
    (None, QUANTISED, "quantised RoI, and its bins"),
]


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    fill: str | None = None
    line: str | None = None
    thick: float = 1
    dashed: bool = False


@dataclass(frozen=True)
class Text:
    x: float  # of its middle, or its left end
    y: float  # of its middle
    words: str
    size: float = 14
    colour: str = INK
    left: bool = False
    bold: bool = False


Drawing = list[Rect | Text]


@dataclass(frozen=True)
class View:
    """The part of the map that is shown, and where its cells lie in the picture."""

    top: int
    left: int
    bottom: int
    right: int
    cell: int
    x: float = 0
    y: float = 0

    def rect(self, box: Box, line: str, thick: float, inset: float = 0, dashed: bool = False) -> Rect:
        """A box of the map, in cells; what lies more than half a cell outside the view is cut off."""
        x1, x2 = (min(max(v, self.left - 0.5), self.right + 0.5) - self.left for v in (box[0], box[2]))
        y1, y2 = (min(max(v, self.top - 0.5), self.bottom + 0.5) - self.top for v in (box[1], box[3]))
        x, y, c = self.x + inset, self.y + inset, self.cell
        wide, high = max((x2 - x1) * c - 2 * inset, 0), max((y2 - y1) * c - 2 * inset, 0)
        return Rect(x + x1 * c, y + y1 * c, wide, high, None, line, thick, dashed)


def view_of(q: Question, answers: list[Answer]) -> View:
    """The whole of a small map; of a larger one, the surroundings of the RoI."""
    height, width = q.grid.shape
    if max(height, width) <= 10:
        return View(0, 0, height, width, 44)
    x1, y1, x2, y2 = real_outline(q)
    used = np.argwhere(np.any([a.uses > 0 for a in answers], axis=0))
    rows = [y1, y2, *used[:, 0]]
    columns = [x1, x2, *used[:, 1]]
    top, left = (int(min(max(min(v) - 2, 0), n - 1)) for v, n in ((rows, height), (columns, width)))
    bottom, right = (int(min(max(max(v) + 3, 1), n)) for v, n in ((rows, height), (columns, width)))
    return View(top, left, bottom, right, max(14, min(44, 420 // (right - left))))


def draw(q: Question, answers: list[Answer]) -> tuple[Drawing, int, int]:
    """The picture of all `answers`, side by side, and its width and height."""
    view = view_of(q, answers)
    panel = max((view.right - view.left) * view.cell, 390) + 50
    x1, y1, x2, y2 = real_outline(q)
    title = f"One RoI pooled to {q.size[0]} x {q.size[1]}, in {len(answers)} variants"
    where = f"image: {q.roi[0]:g}, {q.roi[1]:g} to {q.roi[2]:g}, {q.roi[3]:g} in pixels"
    on_map = f"map: {x1:.4g}, {y1:.4g} to {x2:.4g}, {y2:.4g} in cells of {q.stride:g} x {q.stride:g} pixels"
    shapes: Drawing = [Text(24, 28, title, 18, left=True, bold=True), Text(24, 54, f"{where};  {on_map}", left=True)]
    for i, a in enumerate(answers):
        shapes += _panel(q, a, replace(view, x=46 + i * panel, y=136))
    bottom = 136 + (view.bottom - view.top) * view.cell + view.cell // 2 + 62 + q.size[0] * 30
    x = 24.0
    for fill, line, words in LEGEND:
        thick, dashed = (1, False) if line == GREY else (2, line == REAL)
        shapes += [Rect(x, bottom, 18, 18, fill, line, thick, dashed), Text(x + 26, bottom + 9, words, left=True)]
        x += 52 + 7.4 * len(words)
    return shapes, max(round(x), 30 + len(answers) * panel), bottom + 42


def _panel(q: Question, a: Answer, view: View) -> Drawing:
    number, cell = _number(q.grid), view.cell
    shapes: Drawing = []
    words: Drawing = [Text(view.x, view.y - 38, a.variant, 17, left=True, bold=True)]
    for j in range(view.left, view.right, 1 if cell >= 18 else 2):
        words.append(Text(view.x + (j - view.left + 0.5) * cell, view.y - 14, str(j), 10, GREY))
    for i in range(view.top, view.bottom):
        y = view.y + (i - view.top) * cell
        words.append(Text(view.x - 16, y + cell / 2, str(i), 10, GREY))
        for j in range(view.left, view.right):
            x = view.x + (j - view.left) * cell
            fill = SHARED if a.uses[i, j] > 1 else KEPT if a.uses[i, j] else "#ffffff"
            fill = LOST if a.lost[i, j] else GAINED if a.gained[i, j] else fill
            shapes.append(Rect(x, y, cell, cell, fill, "#d8dde2"))
            seen = INK if a.uses[i, j] or a.lost[i, j] else GREY
            if cell >= 24:
                words.append(Text(x + cell / 2, y + cell / 2, number(q.grid[i, j]), 4 + cell * 0.19, seen))
    shapes.append(view.rect((a.x, a.y, a.x + a.width, a.y + a.height), QUANTISED, 3))
    for i, (y1, y2) in enumerate(a.rows):  # neighbours are drawn in by different amounts, so that overlaps show
        for j, (x1, x2) in enumerate(a.columns):
            if y1 < y2 and x1 < x2:
                shapes.append(view.rect((x1, y1, x2, y2), QUANTISED, 1.5, cell * (0.09 + 0.07 * ((i + j) % 2))))
    shapes.append(view.rect(real_outline(q), REAL, 2.5, dashed=True))
    below = view.y + (view.bottom - view.top + 0.5) * cell + 16
    share = f"{a.pooled_share:.1%} of the real RoI is pooled; {a.lost.sum()} cells lost, {a.gained.sum()} gained"
    words.append(Text(view.x, below, share, left=True))
    for i, row in enumerate(a.values):
        for j, value in enumerate(row):
            shapes.append(Rect(view.x + j * 56, below + 16 + i * 30, 56, 30, "#f4f7fa", QUANTISED))
            words.append(Text(view.x + j * 56 + 28, below + 31 + i * 30, number(value), bold=True))
    return shapes + words


def write_svg(path: Path, drawing: Drawing, width: int, height: int) -> None:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="DejaVu Sans, Verdana, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for s in drawing:
        if isinstance(s, Rect):
            dash = ' stroke-dasharray="7 5"' if s.dashed else ""
            lines.append(
                f'<rect x="{s.x:.4g}" y="{s.y:.4g}" width="{s.width:.4g}" height="{s.height:.4g}"'
                f' fill="{s.fill or "none"}" stroke="{s.line or "none"}" stroke-width="{s.thick:g}"{dash}/>'
            )
        else:
            anchor, weight = "start" if s.left else "middle", ' font-weight="bold"' if s.bold else ""
            lines.append(
                f'<text x="{s.x:.5g}" y="{s.y:.5g}" font-size="{s.size:.3g}" fill="{s.colour}" text-anchor="{anchor}"'
                f' dominant-baseline="central"{weight}>{escape(s.words)}</text>'
            )
    path.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


def write_png(path: Path, drawing: Drawing, width: int, height: int, scale: int = 2) -> None:
    """`scale` pixels for each unit of the drawing, so that it is crisp on a dense screen."""
    picture = Image.new("RGB", (width * scale, height * scale), "#ffffff")
    pen = ImageDraw.Draw(picture)
    for s in drawing:
        if isinstance(s, Text):
            anchor = "lm" if s.left else "mm"
            font = ImageFont.load_default(s.size * scale)
            bold = scale // 2 if s.bold else 0
            pen.text((s.x * scale, s.y * scale), s.words, s.colour, font, anchor, stroke_width=bold)
            continue
        x1, y1, x2, y2 = (v * scale for v in (s.x, s.y, s.x + s.width, s.y + s.height))
        if not s.dashed:
            thick = max(round(s.thick * scale), 1)
            pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), s.fill, s.line, thick)
            continue
        for a, b in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
            length = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1e-9)
            for start in np.arange(0, length, 12 * scale):
                u, v = start / length, min((start + 7 * scale) / length, 1)
                ends = [(a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])) for t in (u, v)]
                pen.line(ends, s.line, round(s.thick * scale))
    picture.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def write_explanation(q: Question, folder: Path, name: str) -> tuple[str, list[Path]]:
    """Writes NAME.png and NAME.svg into `folder`; returns the table of all variants, and the paths."""
    answers = [explain(q, v) for v in VARIANTS]
    drawing, width, height = draw(q, answers)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    write_png(paths[0], drawing, width, height)
    write_svg(paths[1], drawing, width, height)
    return table(q, answers), paths
