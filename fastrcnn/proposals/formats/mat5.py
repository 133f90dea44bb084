"""Read numeric arrays, text and cells from MATLAB files of versions 5 to 7 (the format before 7.3).

Cells are unpacked on demand. Every size that a file declares is compared with the number of bytes in the file before
memory is allocated. scipy's reader trusts these sizes, so it is not used here.

Format specification: MathWorks, "MAT-File Format" (the level 5 chapters).
"""

from __future__ import annotations

import math
import mmap
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from fastrcnn.errors import UserError

STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED, UTF8, UTF16 = 14, 15, 16, 17
CELL, CHARACTERS = 1, 4  # array classes; classes 6 to 15 are numeric
UNREAD = {2: "a struct", 3: "an object", 5: "a sparse matrix"}
EXPANSION, LEAST = 64, 1 << 20  # see most_bytes; boxes compress by a factor of 3 to 20, more than 64 is an attack


class Text(list[str]):
    """The rows of a matrix of characters."""


class Cells(list[Callable[[], "Value"]]):
    """A cell array in column-major order. Each element is a function that unpacks a cell and returns its value."""


# A variable of a MATLAB file. An array has the shape that MATLAB shows; a str names an unsupported type.
Value = np.ndarray | Text | Cells | str


def most_bytes(file_size: int) -> int:
    """Return the maximum allowed size in bytes of an unpacked variable in a file of `file_size` bytes."""
    return max(LEAST, EXPANSION * file_size)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert errors in the `with` block to a UserError with the file name. A damaged file can cause any exception."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: cannot read this MATLAB file ({str(error)[:120] or type(error).__name__}). The file is damaged, "
            "truncated or in another format. Download or export it again."
        ) from None


def read_mat5(path: Path, names: Collection[str]) -> dict[str, Value]:
    """Return those variables in `names` that the file contains. A damaged file can cause any exception."""
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    order = "<" if bytes(data[126:128]) == b"IM" else ">"
    found: dict[str, Value] = {}
    at = 128
    while at + 8 <= len(data):
        kind, part, at = _element(data, order, at, padded=False)
        begin = part
        if kind == COMPRESSED:
            begin = memoryview(zlib.decompressobj().decompress(part, 512))
            kind, begin = struct.unpack_from(f"{order}I", begin)[0], begin[8:]
        if kind != MATRIX or (name := _header(begin, order)[0]) not in names or name in found:
            continue
        if begin is not part:
            _, part, _ = _element(_inflate(part, most_bytes(len(data))), order)
        found[name] = _value(part, order)
    return found


def _element(data: memoryview, order: str, at: int = 0, padded: bool = True) -> tuple[int, memoryview, int]:
    """Return the type and bytes of the element at offset `at`, and the offset of the next element.

    order: the byte order, "<" or ">". padded: whether the element is padded to a multiple of eight bytes.
    """
    first, size = struct.unpack_from(f"{order}II", data, at)
    if first >> 16:  # a small element: size, type and up to four bytes of data in eight bytes
        if first >> 16 > 4:
            raise ValueError("a small element has more than four bytes")
        return first & 0xFFFF, data[at + 4 : at + 4 + (first >> 16)], at + 8
    end = at + 8 + size
    if end > len(data):
        raise ValueError("the file is truncated")
    return first, data[at + 8 : end], end + (-size % 8 if padded else 0)


def _header(data: memoryview, order: str) -> tuple[str, int, bool, tuple[int, ...], memoryview]:
    """Return the name, class number, complex flag and shape of a matrix element, and the bytes after its header."""
    _, flags, at = _element(data, order)
    _, sizes, at = _element(data, order, at)
    _, name, at = _element(data, order, at)
    flag = struct.unpack_from(f"{order}I", flags)[0]
    shape = tuple(np.frombuffer(sizes, f"{order}i4").tolist())
    if not 2 <= len(shape) <= 8 or min(shape) < 0:
        raise ValueError("an array has an invalid shape")
    return bytes(name).decode("latin1"), flag & 0xFF, bool(flag & 0x800), shape, data[at:]


def _value(data: memoryview, order: str) -> Value:
    """Return the value of a matrix element. order: the byte order, "<" or ">"."""
    if not data:
        return np.zeros((0, 0))
    _, kind, is_complex, shape, data = _header(data, order)
    if kind == CELL:
        return Cells(partial(_value, cell, order) for cell in _cells(data, order, math.prod(shape)))
    if is_complex or kind in UNREAD or not CHARACTERS <= kind <= 15:
        return UNREAD.get(kind, "complex numbers" if is_complex else "an unknown type")
    if math.prod(shape) == 0:
        return Text() if kind == CHARACTERS else np.zeros(shape)
    stored, raw, _ = _element(data, order)
    if kind == CHARACTERS:
        return _rows(stored, raw, order, shape)
    if stored not in STORED:
        raise ValueError("an array has numbers of an unknown type")
    return np.frombuffer(raw, np.dtype(STORED[stored]).newbyteorder(order)).reshape(shape, order="F")  # type: ignore[arg-type]


def _cells(data: memoryview, order: str, count: int) -> list[memoryview]:
    if count > len(data) // 8:
        raise ValueError("a cell array has fewer cells than its header declares")
    found, at = [], 0
    for _ in range(count):
        kind, part, at = _element(data, order, at)
        if kind != MATRIX:
            raise ValueError("a cell is not an array")
        found.append(part)
    return found


def _rows(stored: int, raw: memoryview, order: str, shape: tuple[int, ...]) -> Text:
    utf16 = "utf-16-le" if order == "<" else "utf-16-be"
    codec = utf16 if stored in (4, UTF16) else "utf-8" if stored == UTF8 else "latin1"
    characters, rows = bytes(raw).decode(codec), shape[0]
    if rows > len(characters) or len(shape) != 2:
        raise ValueError("a string is shorter than its header declares")
    return Text(characters[row::rows] for row in range(rows))


def _inflate(part: memoryview, limit: int) -> memoryview:
    """Decompress a variable. Raises ValueError if the result exceeds the limit or the input is truncated."""
    unpacking = zlib.decompressobj()
    whole = unpacking.decompress(part, limit)
    if not unpacking.eof:
        raise ValueError(
            f"a variable unpacks to more than {limit} bytes, the limit for a file of this size"
            if len(whole) == limit
            else "compressed data is truncated"
        )
    return memoryview(whole)
