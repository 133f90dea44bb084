"""Text as pixels, in whatever script it is."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np
from PIL import ImageFont

SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf", "Arial.ttf")
ABSENT = "\U0010fffe"  # a character that no font has


def lettering(text: str, size: int) -> np.ndarray:
    """Opacity (h, w) uint8 of a line of text `size` pixels high, without an empty border.

    In the font that Pillow brings, which has little more than ASCII; else in a common one of the system's that has all
    letters; else in the one that OpenCV 5 brings, which has nearly all. Without that, boxes stand for what is lacking.
    """
    plain = ImageFont.load_default(size=size)
    font = plain if _has(plain, text) else _system_font(text, size)
    if font is None and hasattr(cv2, "FontFace"):
        return _by_opencv(text, size)
    return _by_pillow(font or plain, text)


def _has(font: Any, text: str) -> bool:
    """Whether the font has every letter of the text."""
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
