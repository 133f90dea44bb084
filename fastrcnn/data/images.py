"""Reading pictures. Pixels are uint8 RGB (H, W, 3), as stored: an EXIF rotation is not applied."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from fastrcnn.errors import UserError

# A picture with more is refused from its header, before it is decoded; Pillow's own limit.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # of a JPEG: no escaped 0xFF, filler or restart


def read_image(path: Path) -> np.ndarray:
    """The picture in a file. Gray, palette, CMYK and transparent pictures become RGB; 16-bit ones are scaled.

    Raises UserError for a file that is missing, empty, cut short, no picture, or has more than MAX_PIXELS.
    """
    return decode(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The file's content; UserError where it cannot be read or has none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if not data:
        raise UserError(f"{path}: the file is empty.")
    return data


def decode(data: bytes, path: Path) -> np.ndarray:
    """The picture in the bytes of a file; `path` is for messages only. Raises UserError as `read_image` does."""
    image_size(data, path)
    image = None
    if data[:2] != b"\xff\xd8" or _reaches_its_end(data):  # what a cut JPEG lacks some decoders fill with gray
        try:
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            image = None
    if image is None:
        raise UserError(f"{path}: not a picture that can be decoded, or cut short.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def complete_size(path: Path) -> tuple[int, int]:
    """Width and height of the picture in a file, which is looked at just far enough to know that it is whole.

    JPEG and PNG have a mark at their end; other pictures are decoded. Raises UserError as `read_image` does.
    """
    data = read_bytes(path)
    size = image_size(data, path)
    if data[:2] == b"\xff\xd8":
        whole = _reaches_its_end(data)
    elif data.startswith(b"\x89PNG"):
        whole = b"IEND\xaeB`\x82" in data
    else:
        decode(data, path)
        whole = True
    if not whole:
        raise UserError(f"{path}: the picture is cut short.")
    return size


def _reaches_its_end(jpeg: bytes) -> bool:
    """Whether the picture's end marker is there. Thumbnails within and data after the end do not confuse it."""
    at = 2
    while found := MARKER.search(jpeg, at):
        marker = found[1][0]
        if marker == 0xD9:
            return True
        at = found.end()
        if marker != 0x01:  # every other marker is followed by the length of its segment
            at += int.from_bytes(jpeg[at : at + 2], "big")
    return False


def image_size(data: bytes, path: Path) -> tuple[int, int]:
    """Width and height from the header alone. Raises UserError for what is no picture or has too many pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # below the limit is below the limit
            with Image.open(io.BytesIO(data)) as header:
                width, height = header.size
    except Image.DecompressionBombError:
        raise UserError(f"{path}: has more than the {MAX_PIXELS:,} pixels allowed; refused.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise UserError(f"{path}: not a picture, or cut short.") from None
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels are more than the {MAX_PIXELS:,} allowed; refused.")
    return width, height
