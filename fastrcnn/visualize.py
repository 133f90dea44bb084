"""Pictures with boxes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastrcnn.structures import Batch, Detections, RoITargets


def colour_of(label: int) -> tuple[int, int, int]:
    """A colour for a label, RGB; labels next to each other get hues far apart."""
    hue = (label - 1) * 0.618033988749895 % 1.0  # the golden ratio spreads any number of them
    r, g, b = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(255 * r), round(255 * g), round(255 * b)


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[int], texts: Sequence[str] | None = None
) -> np.ndarray:
    """A copy of the picture (H, W, 3) uint8 RGB with boxes (R, 4), half-open, coloured by label; texts on top.

    Lines and letters grow with the picture, and letters are black or white, whichever is readable.
    """
    canvas = Image.fromarray(image).convert("RGB")
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(max(image.shape[:2]) / 400))
    font = ImageFont.load_default(size=max(10, max(image.shape[:2]) / 45))
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        x1, y1, x2, y2 = (float(v) for v in box)
        draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour_of(label), width=line)
        if texts:
            _draw_label(draw, texts[i], x1, y1, colour_of(label), font, image.shape[1])
    return np.asarray(canvas)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    x: float,
    y: float,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    image_width: int,
) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0.0, min(x, image_width - width))
    y = y - height if y >= height else max(0.0, y)  # above the box, or inside where there is no room above
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((x + 2 - left, y + 2 - top), text, fill="black" if bright else "white", font=font)


def draw_detections(image: np.ndarray, found: Detections, classes: Sequence[str], threshold: float = 0.5) -> np.ndarray:
    """The picture with every detection of at least `threshold`, named, the best drawn last."""
    kept = [i for i in range(len(found)) if found.scores[i] >= threshold][::-1]
    labels = [int(found.labels[i]) for i in kept]
    texts = [f"{classes[n - 1]} {found.scores[i]:.2f}" for i, n in zip(kept, labels, strict=True)]
    return draw_boxes(image, found.boxes[kept].numpy(), labels, texts)


def draw_batch(batch: Batch, rois: Tensor, targets: RoITargets, most: int = 4) -> np.ndarray:
    """The batch's pictures side by side with the RoIs of a step: background gray, foreground by class, truth thick."""
    tiles = []
    for i in range(min(most, len(batch.samples))):
        height, width = batch.sizes[i].tolist()
        image = batch.images[i, :, :height, :width].permute(1, 2, 0).contiguous().numpy()
        canvas = Image.fromarray(image)
        draw = ImageDraw.Draw(canvas)
        own, scale = rois[:, 0] == i, batch.scales[i]
        for roi, label in zip((rois[own, 1:] * scale).tolist(), targets.labels[own].tolist(), strict=True):
            draw.rectangle(_inclusive(roi), outline=colour_of(label) if label else (128, 128, 128))
        for box, label in zip((batch.boxes[i] * scale).tolist(), batch.labels[i].tolist(), strict=True):
            draw.rectangle(_inclusive(box), outline=colour_of(label), width=3)
        tiles.append(np.asarray(canvas))
    sheet = np.zeros((max(t.shape[0] for t in tiles), sum(t.shape[1] for t in tiles), 3), np.uint8)
    left = 0
    for tile in tiles:
        sheet[: tile.shape[0], left : left + tile.shape[1]] = tile
        left += tile.shape[1]
    return sheet


def _inclusive(box: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)
