"""Reads arrays of numbers, text and cells from MATLAB files of version 5 (those before 7.3).

A cell is unpacked when it is asked for. Every size that a file declares is compared with the bytes it has before
anything is allocated; this is why scipy, whose reader believes them, does not read these files.

The format: MathWorks, "MAT-File Format" (the level 5 chapters).
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
CELL, CHARACTERS = 1, 4  # classes; those from 6 to 15 are numbers
UNREAD = {2: "struct", 3: "object", 5: "sparse"}
EXPANSION, LEAST = 64, 1 << 20  # compressed boxes take a third to a twentieth of their size; what grows more is a bomb


class Text(list[str]):
    """The rows of a matrix of characters."""


class Cells(list[Callable[[], "Value"]]):
    """A cell array column by column: functions that unpack its values."""


# A variable of a MATLAB file. An array has the shape that MATLAB shows; a str names a kind that is not read.
Value = np.ndarray | Text | Cells | str


def most_bytes(file_size: int) -> int:
    """The most that a compressed variable of a file may unpack to."""
    return max(LEAST, EXPANSION * file_size)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged MATLAB file leads to into a UserError with its name."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: not a readable MATLAB file ({str(error)[:120] or type(error).__name__}); "
            "it is damaged, cut short, or of another kind. Fetch or export it again."
        ) from None


def read_mat5(path: Path, names: Collection[str]) -> dict[str, Value]:
    """Those of the named variables that the file has."""
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
    """Type and bytes of the element at a place, and where the next begins."""
    first, size = struct.unpack_from(f"{order}II", data, at)
    if first >> 16:  # a small one: size, type and up to four bytes of data in eight
        if first >> 16 > 4:
            raise ValueError("a small element of more than four bytes")
        return first & 0xFFFF, data[at + 4 : at + 4 + (first >> 16)], at + 8
    end = at + 8 + size
    if end > len(data):
        raise ValueError("cut short")
    return first, data[at + 8 : end], end + (-size % 8 if padded else 0)


def _header(data: memoryview, order: str) -> tuple[str, int, bool, tuple[int, ...], memoryview]:
    """Name, class, whether it is complex, and shape of a matrix element, and the bytes behind these."""
    _, flags, at = _element(data, order)
    _, sizes, at = _element(data, order, at)
    _, name, at = _element(data, order, at)
    flag = struct.unpack_from(f"{order}I", flags)[0]
    shape = tuple(np.frombuffer(sizes, f"{order}i4").tolist())
    if not 2 <= len(shape) <= 8 or min(shape) < 0:
        raise ValueError("an array of no proper shape")
    return bytes(name).decode("latin1"), flag & 0xFF, bool(flag & 0x800), shape, data[at:]


def _value(data: memoryview, order: str) -> Value:
    """What a matrix element holds."""
    if not data:
        return np.zeros((0, 0))
    _, kind, is_complex, shape, data = _header(data, order)
    if kind == CELL:
        return Cells(partial(_value, cell, order) for cell in _cells(data, order, math.prod(shape)))
    if is_complex or kind in UNREAD or not CHARACTERS <= kind <= 15:
        return UNREAD.get(kind, "complex" if is_complex else "of an unknown kind")
    if math.prod(shape) == 0:
        return Text() if kind == CHARACTERS else np.zeros(shape)
    stored, raw, _ = _element(data, order)
    if kind == CHARACTERS:
        return _rows(stored, raw, order, shape)
    if stored not in STORED:
        raise ValueError("numbers of no known type")
    return np.frombuffer(raw, np.dtype(STORED[stored]).newbyteorder(order)).reshape(shape, order="F")  # type: ignore[arg-type]


def _cells(data: memoryview, order: str, count: int) -> list[memoryview]:
    if count > len(data) // 8:
        raise ValueError("fewer cells than their header says")
    found, at = [], 0
    for _ in range(count):
        kind, part, at = _element(data, order, at)
        if kind != MATRIX:
            raise ValueError("a cell that is no array")
        found.append(part)
    return found


def _rows(stored: int, raw: memoryview, order: str, shape: tuple[int, ...]) -> Text:
    utf16 = "utf-16-le" if order == "<" else "utf-16-be"
    codec = utf16 if stored in (4, UTF16) else "utf-8" if stored == UTF8 else "latin1"
    characters, rows = bytes(raw).decode(codec), shape[0]
    if rows > len(characters) or len(shape) != 2:
        raise ValueError("less text than its header says")
    return Text(characters[row::rows] for row in range(rows))


def _inflate(part: memoryview, limit: int) -> memoryview:
    """The bytes behind compressed ones; ValueError where they are more than the limit, or cut short."""
    unpacking = zlib.decompressobj()
    whole = unpacking.decompress(part, limit)
    if not unpacking.eof:
        raise ValueError(
            f"a variable unpacks to more than {EXPANSION} times the file" if len(whole) == limit else "cut"
        )
    return memoryview(whole)
