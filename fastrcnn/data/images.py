"""Reading images. Pixels are uint8 RGB (H, W, 3), rotated as the caller asks: upright, or as they are stored.

The rotation is EXIF's orientation, of JPEG, PNG, WebP and TIFF alike. Values of 16-bit files are shifted to 8 bits by
the number of bits that the file uses, see `bits_used`.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from fastrcnn.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # of the files of a data set that are its images
# A picture with more is refused from its header, before it is decoded; Pillow's own limit.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # of a JPEG: no escaped 0xFF, filler or restart
PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
ORIENTATION = 0x0112  # the EXIF tag
UNDONE_BY = (0, 1, 2, 3, 4, 5, 8, 7, 6)  # the orientation that takes back another


@dataclass(frozen=True)
class Stored:
    """An image as its file has it, before any rotation."""

    width: int
    height: int
    orientation: int = 1  # EXIF's, 1 to 8, to apply so that the image is upright; 1 where the file has none
    bits: int | None = None  # that the values of a 16-bit image use, see `bits_used`; known when it is decoded
    mode: str = field(default="RGB", compare=False)  # Pillow's name for what a pixel is

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.width, self.height

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height when the orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def rotated(self, turn: int) -> tuple[int, int]:
        """Width and height as `turn_for` decides: 1 for the image as stored, else upright."""
        return self.size if turn == 1 else self.upright


def read_image(path: Path, turn: int | None = None) -> np.ndarray:
    """The image in a file. Gray, palette, CMYK and transparent images become RGB; 16-bit ones are scaled.

    turn: the EXIF orientation to apply, 1 for the image as it is stored; None: the file's own, so that it is upright.

    Raises UserError for a file that is missing, empty, cut short, no image, or has more than MAX_PIXELS.
    """
    return decode(read_bytes(path), path, turn)


def read_bytes(path: Path) -> bytes:
    """The file's content; UserError where it cannot be read or has none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if not data:
        raise UserError(f"{path}: the file is empty.")
    return data


def decode(data: bytes, path: Path, turn: int | None = None) -> np.ndarray:
    """The image in the bytes of a file; `path` is for messages only. Otherwise as `read_image`."""
    image, stored = decode_stored(data, path)
    return apply_orientation(image, stored.orientation if turn is None else turn)


def decode_stored(data: bytes, path: Path) -> tuple[np.ndarray, Stored]:
    """The image in the bytes of a file, not rotated, and what the file says of it. Raises UserError as `read_image`."""
    stored = read_header(data, path)
    image: np.ndarray | None = None
    if data[:2] != b"\xff\xd8" or _reaches_its_end(data):  # what a cut JPEG lacks some decoders fill with gray
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        if data.startswith((PNG, *TIFF, b"P5", b"P6")):  # other formats declare their depth, and OpenCV uses it
            flags |= cv2.IMREAD_ANYDEPTH
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise UserError(f"{path}: not a picture that can be decoded, or cut short.")
    if image.dtype == np.uint16:
        bits = bits_used(image, data)
        stored = replace(stored, bits=bits)
        image = np.right_shift(image, bits - 8).astype(np.uint8)
    if data.startswith(TIFF):  # OpenCV rotates these, whatever the flags say
        image = apply_orientation(image, UNDONE_BY[stored.orientation])
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), stored


def apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image (H, W, ...) as stored, rotated and mirrored as an EXIF orientation from 1 to 8 asks."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def bits_used(image: np.ndarray, data: bytes = b"") -> int:
    """How many of the 16 bits of an image (H, W, ...) uint16 its values use: the fewest of 8, 10, 12, 14 and 16.

    A PNG's sBIT chunk, where `data` has one, takes precedence: it names the number, unless the values fill 16 bits with
    zeros below, as the PNG standard asks; then all 16 count.
    """
    largest = int(image.max(initial=0))
    named = _named_bits(data)
    if named is None:
        return next(bits for bits in (8, 10, 12, 14, 16) if largest < 1 << bits)
    filled = not (image & ((1 << (16 - named)) - 1)).any()
    return 16 if filled or largest >= 1 << named else max(named, 8)


def _named_bits(data: bytes) -> int | None:
    """What the sBIT chunk of a PNG says, for the channel that has most; None where there is none that makes sense."""
    at = 8
    while data.startswith(PNG) and at + 8 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        if kind == b"sBIT":
            named = max(data[at + 8 : at + 8 + length], default=0)
            return named if 0 < named <= 16 else None
        at += 12 + length
    return None


def inspect(path: Path) -> Stored:
    """What a file says of its image, which is looked at just far enough to know that it is whole.

    JPEG and PNG have a mark at their end; other images, and 16-bit PNGs for their bits, are decoded. Raises UserError
    as `read_image` does.
    """
    data = read_bytes(path)
    jpeg = data.startswith(b"\xff\xd8")
    if not jpeg and (is_deep(data) or not data.startswith(PNG)):
        return decode_stored(data, path)[1]
    stored = read_header(data, path)
    if not (_reaches_its_end(data) if jpeg else b"IEND\xaeB`\x82" in data):
        raise UserError(f"{path}: the picture is cut short.")
    return stored


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


def is_deep(data: bytes) -> bool:
    """Whether the bytes of a file are a PNG of 16 bits a channel, by its header."""
    return data.startswith(PNG) and data[24:25] == b"\x10"


def read_header(data: bytes, path: Path) -> Stored:
    """Size and orientation from the header alone. Raises UserError for what is no image or has too many pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # below the limit is below the limit
            with Image.open(io.BytesIO(data)) as header:
                width, height = header.size
                if width * height > MAX_PIXELS:
                    raise UserError(
                        f"{path}: {width} x {height} pixels are more than the {MAX_PIXELS:,} allowed; refused."
                    )
                orientation = _orientation(header, data)
                if (tags := getattr(header, "tag_v2", None)) is not None and data.startswith(TIFF):
                    width, height = int(tags[256]), int(tags[257])  # Pillow gives the size after the rotation
                    if (bits := max(tags.get(258, (1,)))) > 16:
                        raise UserError(
                            f"{path}: has {bits} bits a channel; convert it to 8 or 16, scaled to their range."
                        )
    except Image.DecompressionBombError:
        raise UserError(f"{path}: has more than the {MAX_PIXELS:,} pixels allowed; refused.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, KeyError, TypeError):
        kinds = " TIFFs are read with 8 or 16 bits a channel, whole numbers." if data.startswith(TIFF) else ""
        raise UserError(f"{path}: not a picture, or cut short.{kinds}") from None
    return Stored(width, height, orientation, mode=header.mode)


def _orientation(header: Image.Image, data: bytes) -> int:
    # For a PNG without EXIF before its pixels Pillow decodes it all, to look behind them.
    if data.startswith(PNG) and "exif" not in header.info and b"eXIf" not in data and b"Raw profile" not in data:
        return 1
    if data.startswith(TIFF):  # the tag alone, as OpenCV rotates by that; Pillow also looks into XMP
        return _valid(getattr(header, "tag_v2", {}).get(ORIENTATION))
    return orientation_of(header)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an image of Pillow's; 1 where it has none, or one that cannot be understood."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever broken EXIF data lead Pillow to; the image itself is sound
        return 1
    return _valid(found)


def _valid(orientation: object) -> int:
    return next((known for known in range(2, 9) if orientation == known), 1)


def pixels_key(data: bytes, turn: int) -> bytes:
    """Bytes that differ where the pixels differ that a file and a rotation give, for keys of what is computed of them.

    Files whose pixels an earlier version of this module read otherwise, 16-bit PNGs and TIFFs, have another key now.
    """
    key = hashlib.sha256(data).digest()
    if turn != 1:
        key += bytes([turn])
    return key + b"bits, turn" if is_deep(data) or data.startswith(TIFF) else key
