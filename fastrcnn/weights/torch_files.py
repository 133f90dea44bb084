"""Reads files of `torch.save`: tensors, numbers, text and plain containers, and nothing else.

`torch.load(weights_only=True)` runs nothing in a file either, but it unpacks compressed records, allocates what the
file declares, and calls many functions of torch. This reader takes only what state dicts are made of, and no number in
a file makes it allocate more than the file holds.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from fastrcnn.errors import UserError

LARGEST_PICKLE = 4 * 2**20  # bytes; a thousand tensors take a tenth of a megabyte, and a hostile byte 64 of memory
MOST_DIMENSIONS = 16
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of torch before 1.6
CARRIED_OUT = """
    PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE BINSTRING SHORT_BINSTRING
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST EMPTY_DICT BINGET LONG_BINGET BINPUT LONG_BINPUT GLOBAL REDUCE
    BINPERSID APPEND APPENDS
"""
STANDARD: dict[int, Any] = pickle._Unpickler.dispatch  # type: ignore[attr-defined]
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _RefusedError(Exception):
    """Its text says what in the file is not admitted."""


def read(path: Path, size: int | None = None) -> Any:
    """What a file of `torch.save` holds, tensors on the CPU. size: bytes of it that are torch's; None: all.

    Raises UserError for whatever is no such file, declares more than it holds, or asks for anything but tensors,
    numbers, text, lists, tuples and dictionaries. Nothing in it is run.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size if size is None else size
            archive = file.read(4) == b"PK\3\4"
            file.seek(0)
            return _archive(file, size) if archive else _legacy(file, size)
    except _RefusedError as error:
        raise UserError(
            f"{path}: cannot be read safely: it has {error}, which no file of weights needs. Use another file."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file leads zipfile and pickle to whatever
        raise UserError(f"{path}: cannot be read safely ({type(error).__name__}: {str(error)[:100]}).") from error


def _archive(file: BinaryIO, size: int) -> Any:
    """A ZIP archive, of torch 1.6 and later: the pickle, and a record for each storage."""
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
    records = {info.filename: info for info in listed}
    if len(records) < len(listed):
        raise _RefusedError("two records of one name")
    if packed := [info.filename for info in listed if info.compress_type != zipfile.ZIP_STORED]:
        raise _RefusedError(f"a compressed record ({packed[0][:60]})")
    if (declared := sum(info.file_size for info in listed)) > size:
        raise _RefusedError(f"records of {declared:,} bytes in {size:,} bytes")

    def seek(info: zipfile.ZipInfo) -> None:
        file.seek(info.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)  # over its name and what is added to it

    (pickled,) = (info for info in listed if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl"))
    folder = pickled.filename.removesuffix("data.pkl")
    if (order := records.get(f"{folder}byteorder")) is not None:
        seek(order)
        if file.read(6) != b"little":
            raise _RefusedError("numbers in big-endian order")
    if pickled.file_size > LARGEST_PICKLE:
        raise _RefusedError(f"a pickle of {pickled.file_size:,} bytes")
    seek(pickled)
    reader = _Reader(io.BytesIO(file.read(pickled.file_size)), size)
    content = reader.load()
    for key, values in reader.storages.items():
        info = records[f"{folder}data/{key}"]
        if info.file_size != values.nbytes:
            raise _RefusedError(f"{len(values):,} numbers of {values.dtype} in a record of {info.file_size:,} bytes")
        seek(info)
        _read_into(values, file)
    return content


def _legacy(file: BinaryIO, size: int) -> Any:
    """Five pickles (magic number, version, machine, content, keys of the storages), and then the storages."""
    pickles = io.BytesIO(file.read(LARGEST_PICKLE))
    reader = _Reader(pickles, size)
    magic, _, machine, content, keys = (reader.load() for _ in range(5))
    if magic != LEGACY_MAGIC or machine["little_endian"] is not True:
        raise _RefusedError("a beginning that is not torch's, or numbers in big-endian order")
    if reader.storages.keys() != set(keys):
        raise _RefusedError("storages that are not there")
    file.seek(pickles.tell())
    for key in keys:
        values = reader.storages[key]
        if file.read(8) != struct.pack("<q", len(values)):
            raise _RefusedError(f"another number of numbers than the {len(values):,} declared")
        _read_into(values, file)
    return content


def _read_into(values: Tensor, file: BinaryIO) -> None:
    if len(values) and file.readinto(values.view(torch.uint8).numpy().data) != values.nbytes:  # type: ignore[attr-defined]
        raise EOFError("a record ends after the file")


class _Storage:
    """A storage of the file (N,): a type that no instruction of a pickle can do anything with."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


def _tensor(storage: _Storage, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    """As torch._utils._rebuild_tensor_v2: a part of a storage in a shape."""
    held = len(storage.values)
    if not len(size) == len(stride) <= MOST_DIMENSIONS:
        raise _RefusedError("a tensor of no proper shape")
    if not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *size, *stride)):
        raise _RefusedError("a tensor of no proper shape")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel > held or (numel and last >= held):
        raise _RefusedError(f"a tensor of {numel:,} numbers in a storage of {held:,}")
    return storage.values.as_strided(size, stride, offset if numel else 0)


def _dictionary(items: Any = ()) -> dict[object, object]:
    """An OrderedDict, of Python 2 with its items."""
    made: dict[object, object] = {}
    _fill(made, [part for key, value in items for part in (key, value)])
    return made


ADMITTED: dict[str, Any] = {
    "collections.OrderedDict": _dictionary,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
}


def _refuse(reader: Any) -> None:
    raise _RefusedError("an instruction of pickles that builds something else")


class _Reader(pickle._Unpickler):  # the one in Python: its instructions can be taken away one by one
    """storages: by key, numbers (N,) yet to be read; together at most `size` bytes."""

    stack: list[Any]

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="utf-8")
        self.left = size
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ADMITTED:
            raise _RefusedError(f"{module[:60]}.{name[:60]}")
        return ADMITTED[f"{module}.{name}"]

    def persistent_load(self, saved: Any) -> _Storage:
        kind, dtype, key, _, numel, *view = saved
        if kind != "storage" or view not in ([], [None]) or not isinstance(dtype, torch.dtype):
            raise _RefusedError("a reference to something other than numbers")
        if type(key) is not str or type(numel) is not int or numel < 0:
            raise _RefusedError("a storage of no proper size")
        if key not in self.storages:
            self.left -= numel * dtype.itemsize
            if self.left < 0:
                raise _RefusedError(f"{numel:,} numbers of {dtype} that are not there")
            self.storages[key] = torch.empty(numel, dtype=dtype, device="cpu")
        if (self.storages[key].dtype, len(self.storages[key])) != (dtype, numel):
            raise _RefusedError("a storage of two types or sizes")
        return _Storage(self.storages[key])

    def load_build(self) -> None:
        self.stack.pop()  # of an OrderedDict: torch's version numbers of modules
        if type(self.stack[-1]) is not dict:
            raise _RefusedError("the state of an object")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        _fill(self.stack[-1], items)

    dispatch: ClassVar[dict[int, Any]] = {
        **dict.fromkeys(STANDARD, _refuse),
        **{code: STANDARD[code] for code in (getattr(pickle, name)[0] for name in CARRIED_OUT.split())},
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def _fill(target: object, items: list[object]) -> None:
    """Keys are text or small numbers: others can be chosen so that hashing them takes for ever."""
    keys = items[::2]
    if type(target) is not dict or len(items) % 2:
        raise _RefusedError("items of something other than a dictionary")
    if not all(type(key) is str or (type(key) is int and 0 <= key < 2**31) for key in keys):
        raise _RefusedError("a dictionary whose keys are neither text nor small numbers")
    target.update(zip(keys, items[1::2], strict=True))
