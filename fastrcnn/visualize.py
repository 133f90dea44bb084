"""Draw boxes on images."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastrcnn.structures import Batch, Detections, RoITargets

SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf", "Arial.ttf")
CAPTION = 18  # height in pixels of the caption with the file name below an image
# A box is not drawn if more than this fraction of its area is inside a box of its class with a higher score.
NESTED = 0.9
ABSENT = "\U0010fffe"  # a character that no font has
Place: TypeAlias = tuple[int, int, int, int]  # half-open x1 y1 x2 y2 in pixels


def colour_of(label: int) -> tuple[int, int, int]:
    """Return an RGB colour (0 to 255) for a class label (1 or greater). Consecutive labels get very different hues."""
    hue = (label - 1) * 0.618033988749895 % 1.0  # the golden ratio spreads any number of hues evenly
    r, g, b = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(255 * r), round(255 * g), round(255 * b)


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[int], texts: Sequence[str] | None = None
) -> np.ndarray:
    """Draw half-open boxes (R, 4) in pixels, coloured by label, on a copy of an image (H, W, 3) uint8 RGB.

    texts: a text for each box, or None. The last box is the first to get a place for its text. Line width and text size
    increase with the size of the image. If the boxes are low, the text size is reduced by up to half, so that texts
    cover less of the objects. A text is black or white, whichever has more contrast with the colour of its box.
    """
    canvas = Image.fromarray(image).convert("RGB")
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(max(image.shape[:2]) / 300))
    for box, label in zip(boxes, labels, strict=True):
        draw.rectangle(_inclusive([float(v) for v in box]), outline=colour_of(label), width=line)
    if texts:
        side, heights = max(image.shape[:2]), boxes[:, 3] - boxes[:, 1]
        size = round(max(10.0, side / 90, min(side / 45, float(np.median(heights)) / 7)))
        masks = [lettering(text, size) for text in texts]
        margin = 2 + size // 12
        for mask, (x, y, right, bottom), label in zip(masks, _places(boxes, masks, margin, image), labels, strict=True):
            colour = colour_of(label)
            draw.rectangle((x, y, right - 1, bottom - 1), fill=colour)
            bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
            if mask.size:
                draw.bitmap((x + margin, y + margin), Image.fromarray(mask), fill="black" if bright else "white")
    return np.asarray(canvas)


def _places(boxes: np.ndarray, masks: Sequence[np.ndarray], margin: int, image: np.ndarray) -> list[Place]:
    """Return a rectangle in the image for the text of each box (R, 4). If possible, it overlaps no text of a later box.

    masks: the rendered texts. The rectangle has the size of the text plus `margin` pixels on each side. The candidates
    are above the box, inside its upper left corner, below the box, and above its right end.
    """
    places: list[Place] = []
    for box, mask in zip(boxes[::-1], masks[::-1], strict=True):
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        height, width = (side + 2 * margin for side in mask.shape)
        corners = [(x1, y2), (x2 - width, y1 - height)]
        corners = [(x1, y1 - height), (x1, y1), *corners] if y1 >= height else [(x1, y1), *corners]
        found = []
        for x, y in corners:
            x = max(0, min(x, image.shape[1] - width))
            y = max(0, min(y, image.shape[0] - height))
            found.append((x, y, x + width, y + height))
        free = (place for place in found if not any(_overlap(place, other) for other in places))
        places.append(next(free, found[0]))
    return places[::-1]


def _overlap(a: Place, b: Place) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def worth_drawing(found: Detections, threshold: float) -> list[int]:
    """Return the indices of the detections with a score of at least `threshold`, best first.

    A box with more than 90 % (NESTED) of its area inside a higher-scoring box of the same class is excluded.
    Non-maximum suppression does not remove such a box if its IoU with the higher-scoring box is low.
    """
    kept: list[int] = []
    boxes, labels = found.boxes.double(), found.labels
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    for i in range(len(found)):
        if found.scores[i] < threshold:
            continue
        better = [j for j in kept if labels[j] == labels[i]]
        low, high = torch.maximum(boxes[better, :2], boxes[i, :2]), torch.minimum(boxes[better, 2:], boxes[i, 2:])
        inside = (high - low).clamp(min=0).prod(dim=1)
        if not bool((inside > NESTED * areas[i]).any()):
            kept.append(i)
    return kept


def draw_detections(image: np.ndarray, found: Detections, classes: Sequence[str], threshold: float = 0.5) -> np.ndarray:
    """Draw detections with their class names and scores on a copy of an image (H, W, 3) uint8 RGB.

    Detections with a score below `threshold`, and boxes almost entirely inside a higher-scoring box of the same class
    (see worth_drawing), are not drawn. classes: class names; label k is classes[k - 1].
    """
    kept = worth_drawing(found, threshold)[::-1]
    labels = [int(found.labels[i]) for i in kept]
    texts = [f"{classes[n - 1]} {found.scores[i]:.2f}" for i, n in zip(kept, labels, strict=True)]
    return draw_boxes(image, found.boxes[kept].numpy(), labels, texts)


def enlarge(image: np.ndarray, found: Detections, least: int = 200) -> tuple[np.ndarray, Detections]:
    """Return an image and its detections, enlarged by an integer factor if class names would not fit into the image.

    least: minimum length of the longer side in pixels. Images that are at least this long are returned unchanged.
    """
    factor = -(-least // max(image.shape[:2]))
    if factor == 1:
        return image, found
    return image.repeat(factor, axis=0).repeat(factor, axis=1), replace(found, boxes=found.boxes * factor)


def draw_batch(batch: Batch, rois: Tensor, targets: RoITargets, most: int = 4) -> np.ndarray:
    """Draw the first `most` images of a batch side by side, with file names as captions. Return (H, W, 3) uint8 RGB.

    rois: the sampled RoIs (K, 5): index of the image in the batch, then x1, y1, x2, y2 in pixels before scaling.
    Background RoIs are grey, foreground RoIs are coloured by class, and ground-truth boxes have thick lines.
    """
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
        caption = np.zeros((CAPTION, width, 3), np.uint8)
        sample = batch.samples[i]
        name = lettering(sample.image_id if sample.tiles else sample.path.name, 11)[: CAPTION - 6, : max(0, width - 6)]
        caption[3 : 3 + name.shape[0], 3 : 3 + name.shape[1]] = name[:, :, None]
        tiles.append(np.concatenate((np.asarray(canvas), caption)))
    sheet = np.zeros((max(t.shape[0] for t in tiles), sum(t.shape[1] for t in tiles), 3), np.uint8)
    left = 0
    for tile in tiles:
        sheet[: tile.shape[0], left : left + tile.shape[1]] = tile
        left += tile.shape[1]
    return sheet


def _inclusive(box: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)


def lettering(text: str, size: int) -> np.ndarray:
    """Render a line of text and return an opacity mask (h, w) uint8 without empty borders. size: font size in pixels.

    The first font that has all characters of the text is used. The fonts are Pillow's default font (little more than
    ASCII), common system fonts, and the font of OpenCV 5 (almost all characters). If no font has all characters, the
    missing characters are drawn as boxes.
    """
    plain = ImageFont.load_default(size=size)
    font = plain if _has(plain, text) else _system_font(text, size)
    if font is None and hasattr(cv2, "FontFace"):
        return _by_opencv(text, size)
    return _by_pillow(font or plain, text)


def _has(font: Any, text: str) -> bool:
    """Return whether the Pillow font has a glyph for every character of the text."""
    absent = bytes(font.getmask(ABSENT))
    return all(letter.isspace() or bytes(font.getmask(letter)) != absent for letter in set(text))


@functools.lru_cache(maxsize=256)
def _system_font(text: str, size: int) -> Any:
    for name in SYSTEM_FONTS:
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        if _has(font, text):
            return font
    return None


def _by_pillow(font: Any, text: str) -> np.ndarray:
    mask = font.getmask(text, mode="L")
    return np.array(mask, np.uint8).reshape(mask.size[1], mask.size[0])


def _by_opencv(text: str, size: int) -> np.ndarray:
    room = np.zeros((3 * size, 2 * size * (len(text) + 1), 3), np.uint8)
    face: Any = cv2.FontFace("uni")  # type: ignore[attr-defined]
    cv2.putText(room, text, (size, 2 * size), (255, 255, 255), face, size)  # type: ignore[call-overload]
    rows, columns = (np.flatnonzero(room[..., 0].any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((0, 0), np.uint8)
    return np.ascontiguousarray(room[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, 0])
