"""Reads arrays of numbers, text and cells from MATLAB files, those of version 5 here and 7.3 in mat_hdf5.py.

Only what is asked for is unpacked, and a cell's numbers when they are needed: the numbers of a split of VOC take a
gigabyte as doubles and a few per cent of it in the file. Every size that a file declares is compared with the bytes
it has before anything is allocated; this is why version 5 is read here and not by scipy, whose reader believes them.

The format: MathWorks, "MAT-File Format" (the level 5 chapters).
"""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fastrcnn.errors import UserError

STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED, UTF8, UTF16 = 14, 15, 16, 17
KINDS = {1: "cell", 2: "struct", 3: "object", 4: "text", 5: "sparse", **dict.fromkeys(range(6, 16), "numbers")}
EXPANSION = 64  # compressed boxes take a third to a twentieth of their size; what grows more is a bomb
LEAST = 1 << 20


class MatArray(Protocol):
    """A variable of a MATLAB file, or a cell of one; `kind` is numbers, text, cell or something that is not read."""

    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def numbers(self) -> np.ndarray:
        """The numbers, in the shape that MATLAB shows."""
        ...

    def text(self) -> list[str]:
        """The rows of text."""
        ...

    def cells(self) -> list[MatArray]:
        """The cells, column by column."""
        ...


def is_mat(head: bytes) -> bool:
    """Whether the first 2 KiB of a file are those of a MATLAB file, or of any HDF5 file."""
    return head[124:128] in (b"\x00\x01IM", b"\x01\x00MI") or is_hdf5(head)


def is_hdf5(head: bytes) -> bool:
    """Whether HDF5's signature stands at the start, or after a MATLAB 7.3 header."""
    return any(head[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in (0, 512, 1024))


def open_mat(path: Path, names: Collection[str]) -> dict[str, MatArray]:
    """Those of the named variables that the file has. Raises UserError where the file cannot be read."""
    with reading(path):
        with path.open("rb") as file:
            head = file.read(2048)
            if not is_mat(head):
                raise ValueError("neither version 5 nor 7.3 of the format")
            if is_hdf5(head):
                from fastrcnn.proposals.formats.mat73 import open_hdf5

                return open_hdf5(path, names)
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        order = "<" if bytes(data[126:128]) == b"IM" else ">"
        found: dict[str, MatArray] = {}
        at = 128
        while at + 8 <= len(data):
            kind, start, size, at = _element(data, order, at, padded=False)
            part = data[start : start + size]
            if kind == COMPRESSED:
                begin = memoryview(zlib.decompressobj().decompress(part, 512))
                if int.from_bytes(begin[:4], "little" if order == "<" else "big") == MATRIX:
                    name = _matrix(begin[8:], order)[0]
                    if name in names and name not in found:
                        whole = _inflate(part, max(LEAST, EXPANSION * len(data)))
                        _, start, size, _ = _element(whole, order, 0)
                        found[name] = _matrix(whole[start : start + size], order)[1]
            elif kind == MATRIX:
                name, array = _matrix(part, order)
                if name in names:
                    found.setdefault(name, array)
        return found


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged MATLAB file leads to into a UserError with its name."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except Exception as error:
        raise UserError(
            f"{path}: not a readable MATLAB file ({str(error)[:120] or type(error).__name__}); "
            "it is damaged, cut short, or of another kind. Fetch or export it again."
        ) from None


@dataclass(frozen=True)
class _Array:
    """An array of a version 5 file, of which nothing but the header has been read."""

    kind: str
    shape: tuple[int, ...]
    data: memoryview  # the element from behind the header
    order: str

    def numbers(self) -> np.ndarray:
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape)
        stored, start, size, _ = _element(self.data, self.order, 0)
        if self.kind != "numbers" or stored not in STORED:
            raise ValueError(f"{self.kind} where numbers should be")
        flat = np.frombuffer(self.data[start : start + size], self.order + STORED[stored])
        return flat.reshape(self.shape, order="F")  # ValueError where there are more or less

    def text(self) -> list[str]:
        if self.kind != "text" or len(self.shape) != 2:
            raise ValueError(f"{self.kind} where text should be")
        if math.prod(self.shape) == 0:
            return []
        stored, start, size, _ = _element(self.data, self.order, 0)
        two = stored in (4, UTF16)
        codec = ("utf-16-le" if self.order == "<" else "utf-16-be") if two else "utf-8" if stored == UTF8 else "latin1"
        characters = bytes(self.data[start : start + size]).decode(codec)
        rows = self.shape[0]
        if rows > len(characters):
            raise ValueError("less text than its header says")
        return [characters[row::rows] for row in range(rows)]

    def cells(self) -> list[MatArray]:
        if self.kind != "cell":
            raise ValueError(f"{self.kind} where cells should be")
        count, at = math.prod(self.shape), 0
        if count > len(self.data) // 8:
            raise ValueError("less cells than their header says")
        found: list[MatArray] = []
        for _ in range(count):
            kind, start, size, at = _element(self.data, self.order, at)
            if kind != MATRIX:
                raise ValueError("a cell that is no array")
            part = self.data[start : start + size]
            found.append(_matrix(part, self.order)[1] if size else _Array("numbers", (0, 0), part, self.order))
        return found


def _element(data: memoryview, order: str, at: int, padded: bool = True) -> tuple[int, int, int, int]:
    """Type, first byte and size of the element at a place, and where the next begins."""
    endian = "little" if order == "<" else "big"
    if at + 8 > len(data):
        raise ValueError("cut short")
    first = int.from_bytes(data[at : at + 4], endian)  # type: ignore[arg-type]
    if first >> 16:  # a small one: size, type and up to four bytes of data in eight
        kind, start, size, after = first & 0xFFFF, at + 4, first >> 16, at + 8
        if size > 4:
            raise ValueError("a small element of more than four bytes")
    else:
        kind, start, size = first, at + 8, int.from_bytes(data[at + 4 : at + 8], endian)  # type: ignore[arg-type]
        after = start + size + (-size % 8 if padded else 0)
        if start + size > len(data):
            raise ValueError("cut short")
    return kind, start, size, after


def _matrix(data: memoryview, order: str) -> tuple[str, _Array]:
    """Name and array of a matrix element, from its header alone."""
    endian = "little" if order == "<" else "big"
    _, start, size, at = _element(data, order, 0)
    flags = int.from_bytes(data[start : start + 4], endian) if size == 8 else 0  # type: ignore[arg-type]
    _, start, size, at = _element(data, order, at)
    shape = tuple(np.frombuffer(data[start : start + size], f"{order}i4").tolist())
    if not 2 <= len(shape) <= 8 or min(shape) < 0:
        raise ValueError("an array of no proper shape")
    _, start, size, at = _element(data, order, at)
    name = bytes(data[start : start + size]).decode("latin1")
    kind = "complex" if flags & 0x800 else KINDS.get(flags & 0xFF, "unknown")
    return name, _Array(kind, shape, data[at:], order)


def _inflate(part: memoryview, limit: int) -> memoryview:
    """The bytes behind compressed ones; ValueError where they are more than the limit, or cut short."""
    unpacking = zlib.decompressobj()
    whole = unpacking.decompress(part, limit)
    if not unpacking.eof:
        raise ValueError(
            f"a variable unpacks to more than {EXPANSION} times the file" if len(whole) == limit else "cut"
        )
    return memoryview(whole)
