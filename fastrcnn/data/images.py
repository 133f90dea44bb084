"""Read images. Pixels are uint8 RGB (H, W, 3), either as stored or rotated upright.

The rotation follows the EXIF orientation of JPEG, PNG, WebP and TIFF files. 16-bit values are reduced to 8 bits by a
right shift that depends on the number of bits that the values use (see `bits_used`).
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

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # files of a data set with these suffixes are images
# Images with more pixels are rejected before they are decoded, based on their header. Pillow has the same limit.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
# A JPEG marker. Escaped 0xFF bytes, fill bytes and restart markers do not match.
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
ORIENTATION = 0x0112  # the EXIF tag
UNDONE_BY = (0, 1, 2, 3, 4, 5, 8, 7, 6)  # UNDONE_BY[i] is the inverse of orientation i


@dataclass(frozen=True)
class Stored:
    """The properties of an image as it is stored in its file, before any rotation."""

    width: int
    height: int
    orientation: int = 1  # EXIF orientation in the file, 1 to 8; 1 if the file contains none
    bits: int | None = None  # bits that the values of a decoded 16-bit image use (see `bits_used`); otherwise None
    mode: str = field(default="RGB", compare=False)  # Pillow's mode of the image

    @property
    def size(self) -> tuple[int, int]:
        """Return the width and height as stored."""
        return self.width, self.height

    @property
    def upright(self) -> tuple[int, int]:
        """Return the width and height of the upright image."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def rotated(self, turn: int) -> tuple[int, int]:
        """Return the size as stored if the EXIF orientation `turn` is 1, and otherwise that of the upright image."""
        return self.size if turn == 1 else self.upright


def read_image(path: Path, turn: int | None = None) -> np.ndarray:
    """Read an image file. Convert greyscale, palette, CMYK, transparent and 16-bit images to 8-bit RGB.

    turn: the EXIF orientation to apply. 1 returns the image as stored. None applies the file's own orientation, which
    makes the image upright.

    Raises UserError if the file is missing, empty, truncated or not an image, or has more than MAX_PIXELS pixels.
    """
    return decode(read_bytes(path), path, turn)


def read_bytes(path: Path) -> bytes:
    """Return the contents of a file. Raises UserError if it cannot be read or is empty."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror or error}).") from None
    if not data:
        raise UserError(f"{path}: the file is empty.")
    return data


def decode(data: bytes, path: Path, turn: int | None = None) -> np.ndarray:
    """Decode `data`, the contents of an image file, as `read_image` does. `path` is used only in error messages."""
    image, stored = decode_stored(data, path)
    return apply_orientation(image, stored.orientation if turn is None else turn)


def decode_stored(data: bytes, path: Path) -> tuple[np.ndarray, Stored]:
    """Decode `data` without rotating the image. Return the pixels (H, W, 3) uint8 RGB and the file's properties."""
    stored = read_header(data, path)
    image: np.ndarray | None = None
    if data[:2] != b"\xff\xd8" or _reaches_its_end(data):  # some decoders fill a truncated JPEG with grey
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        # The values of other formats are converted by OpenCV to 8 bits, according to the depth in the file.
        if data.startswith((PNG, *TIFF, b"P5", b"P6")):
            flags |= cv2.IMREAD_ANYDEPTH
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise UserError(f"{path}: the image cannot be decoded. The file is truncated, damaged or not an image.")
    if image.dtype == np.uint16:
        bits = bits_used(image, data)
        stored = replace(stored, bits=bits)
        image = np.right_shift(image, bits - 8).astype(np.uint8)
    if data.startswith(TIFF):  # OpenCV rotates TIFF files even with IMREAD_IGNORE_ORIENTATION
        image = apply_orientation(image, UNDONE_BY[stored.orientation])
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), stored


def apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror a stored image (H, W, ...) according to its EXIF orientation, 1 to 8."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def bits_used(image: np.ndarray, data: bytes = b"") -> int:
    """Return the number of bits that the values of a uint16 image (H, W, ...) use.

    This is the smallest of 8, 10, 12, 14 and 16 that can hold the largest value. If `data`, the contents of the file,
    is a PNG with an sBIT chunk, the number of significant bits in the chunk is used instead. The result is then 16 if
    the values need more bits, or if they are shifted left to fill 16 bits, as the PNG standard requires.
    """
    largest = int(image.max(initial=0))
    named = _named_bits(data)
    if named is None:
        return next(bits for bits in (8, 10, 12, 14, 16) if largest < 1 << bits)
    filled = not (image & ((1 << (16 - named)) - 1)).any()
    return 16 if filled or largest >= 1 << named else max(named, 8)


def _named_bits(data: bytes) -> int | None:
    """Return the largest number of bits in the sBIT chunk of a PNG. Return None if `data` has no valid sBIT chunk."""
    at = 8
    while data.startswith(PNG) and at + 8 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        if kind == b"sBIT":
            named = max(data[at + 8 : at + 8 + length], default=0)
            return named if 0 < named <= 16 else None
        at += 12 + length
    return None


def inspect(path: Path) -> Stored:
    """Return the properties of an image file, and check that the file is complete.

    For JPEG and 8-bit PNG files, only the header and the end marker are checked. Other files are decoded: for 16-bit
    PNG files, the number of used bits depends on the pixels. Raises UserError if the file is missing, empty, truncated
    or not an image, or has more than MAX_PIXELS pixels.
    """
    data = read_bytes(path)
    jpeg = data.startswith(b"\xff\xd8")
    if not jpeg and (is_deep(data) or not data.startswith(PNG)):
        return decode_stored(data, path)[1]
    stored = read_header(data, path)
    if not (_reaches_its_end(data) if jpeg else b"IEND\xaeB`\x82" in data):
        raise UserError(f"{path}: the image is truncated. Its end marker is missing.")
    return stored


def _reaches_its_end(jpeg: bytes) -> bool:
    """Return whether a JPEG contains its end marker. Markers of embedded thumbnails are not counted."""
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
    """Return whether the contents of a file start with the header of a PNG with 16 bits per channel."""
    return data.startswith(PNG) and data[24:25] == b"\x10"


def read_header(data: bytes, path: Path) -> Stored:
    """Read the size, EXIF orientation and mode from the header of an image.

    Raises UserError if the file is not an image, has too many pixels, or is a TIFF with more than 16 bits per channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow warns at half of its limit
            with Image.open(io.BytesIO(data)) as header:
                width, height = header.size
                if width * height > MAX_PIXELS:
                    raise UserError(
                        f"{path}: the image has {width} x {height} pixels, more than the maximum of {MAX_PIXELS:,}. "
                        "Resize the image."
                    )
                orientation = _orientation(header, data)
                if (tags := getattr(header, "tag_v2", None)) is not None and data.startswith(TIFF):
                    width, height = int(tags[256]), int(tags[257])  # header.size is the size after the rotation
                    if (bits := max(tags.get(258, (1,)))) > 16:
                        raise UserError(
                            f"{path}: the image has {bits} bits per channel. "
                            "Convert it to 8 or 16 bits per channel, and rescale the values to the full range."
                        )
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: the image has more pixels than the maximum of {MAX_PIXELS:,}. Resize the image."
        ) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, KeyError, TypeError):
        kinds = " TIFF files must have integer channels of 8 or 16 bits." if data.startswith(TIFF) else ""
        raise UserError(f"{path}: the file is not an image, or it is truncated.{kinds}") from None
    return Stored(width, height, orientation, mode=header.mode)


def _orientation(header: Image.Image, data: bytes) -> int:
    # If a PNG has no EXIF data before its pixels, Pillow decodes the image to find EXIF data after its pixels.
    if data.startswith(PNG) and "exif" not in header.info and b"eXIf" not in data and b"Raw profile" not in data:
        return 1
    if data.startswith(TIFF):  # use only the tag, as OpenCV does; Pillow also reads XMP
        return _valid(getattr(header, "tag_v2", {}).get(ORIENTATION))
    return orientation_of(header)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of a Pillow image, or 1 if it has none or an invalid one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # invalid EXIF data can raise any exception; the image itself is still usable
        return 1
    return _valid(found)


def _valid(orientation: object) -> int:
    return next((known for known in range(2, 9) if orientation == known), 1)


def pixels_key(data: bytes, turn: int) -> bytes:
    """Return a cache key for values computed from the pixels of a file (contents `data`) with EXIF orientation `turn`.

    The keys of TIFF and of 16-bit PNG files are not those of earlier releases, which decoded such files differently.
    """
    key = hashlib.sha256(data).digest()
    if turn != 1:
        key += bytes([turn])
    return key + b"bits, turn" if is_deep(data) or data.startswith(TIFF) else key
