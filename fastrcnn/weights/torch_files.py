"""Reads files of `torch.save`: tensors, numbers, text and plain containers, and nothing else.

`torch.load(weights_only=True)` runs nothing in a file either, but it unpacks compressed records, allocates what the
file declares, and calls many functions of torch. This reader takes only what state dicts are made of, and no number in
a file makes it allocate more than the file holds.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastrcnn.safe_pickle import RefusedError, as_user_error, fill, load_pickle

LARGEST_PICKLE = 4 * 2**20  # bytes; a thousand tensors take a tenth of a megabyte, and a hostile byte 80 of memory
MOST_DIMENSIONS = 16
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of torch before 1.6
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


def read(path: Path, size: int | None = None) -> Any:
    """What a file of `torch.save` holds, tensors on the CPU. size: bytes of it that are torch's; None: all.

    Raises UserError for whatever is no such file, declares more than it holds, or asks for anything but tensors,
    numbers, text, lists, tuples and dictionaries. Nothing in it is run.
    """
    instead = "Only tensors, numbers, text, lists, tuples and dictionaries are read: use another file of weights."
    with as_user_error(path, instead), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size if size is None else size
        archive = file.read(4) == b"PK\3\4"
        file.seek(0)
        return _archive(file, size) if archive else _legacy(file, size)


def _archive(file: BinaryIO, size: int) -> Any:
    """A ZIP archive, of torch 1.6 and later: the pickle, and a record for each storage."""
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
    records = {info.filename: info for info in listed}
    if len(records) < len(listed):
        raise RefusedError("two records of one name")
    if packed := [info.filename for info in listed if info.compress_type != zipfile.ZIP_STORED]:
        raise RefusedError(f"a compressed record ({packed[0][:60]})")
    if (declared := sum(info.file_size for info in listed)) > size:
        raise RefusedError(f"records of {declared:,} bytes in {size:,} bytes")

    def seek(info: zipfile.ZipInfo) -> None:
        file.seek(info.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)  # over its name and what is added to it

    (pickled,) = (info for info in listed if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl"))
    folder = pickled.filename.removesuffix("data.pkl")
    if (order := records.get(f"{folder}byteorder")) is not None:
        seek(order)
        if file.read(6) != b"little":
            raise RefusedError("numbers in big-endian order")
    if pickled.file_size > LARGEST_PICKLE:
        raise RefusedError(f"a pickle of {pickled.file_size:,} bytes")
    seek(pickled)
    storages = _Storages(size)
    content = load_pickle(io.BytesIO(file.read(pickled.file_size)), ADMITTED, storages.find)
    for key, values in storages.by_key.items():
        info = records[f"{folder}data/{key}"]
        if info.file_size != values.nbytes:
            raise RefusedError(f"{len(values):,} numbers of {values.dtype} in a record of {info.file_size:,} bytes")
        seek(info)
        _read_into(values, file)
    return content


def _legacy(file: BinaryIO, size: int) -> Any:
    """Five pickles (magic number, version, machine, content, keys of the storages), and then the storages."""
    pickles = io.BytesIO(file.read(LARGEST_PICKLE))
    storages = _Storages(size)
    magic, _, machine, content, keys = (load_pickle(pickles, ADMITTED, storages.find) for _ in range(5))
    if magic != LEGACY_MAGIC or machine["little_endian"] is not True:
        raise RefusedError("a beginning that is not torch's, or numbers in big-endian order")
    if not all(type(key) is str for key in keys) or storages.by_key.keys() != set(keys):
        raise RefusedError("storages that are not there")
    file.seek(pickles.tell())
    for key in keys:
        values = storages.by_key[key]
        if file.read(8) != struct.pack("<q", len(values)):
            raise RefusedError(f"another number of numbers than the {len(values):,} declared")
        _read_into(values, file)
    return content


def _read_into(values: Tensor, file: BinaryIO) -> None:
    if len(values) and file.readinto(values.view(torch.uint8).numpy().data) != values.nbytes:  # type: ignore[attr-defined]
        raise EOFError("a record ends after the file")


class _Storages:
    """Numbers (N,) that a file refers to by keys, yet to be read; together at most `size` bytes."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.by_key: dict[str, Tensor] = {}

    def find(self, saved: Any) -> Tensor:
        """The storage of a persistent id of torch."""
        kind, dtype, key, _, numel, *view = saved
        if kind != "storage" or view not in ([], [None]) or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise RefusedError("a reference to something other than numbers")
        if type(numel) is not int or numel < 0:
            raise RefusedError("a storage of no proper size")
        if key not in self.by_key:
            self.left -= numel * dtype.itemsize
            if self.left < 0:
                raise RefusedError(f"{numel:,} numbers of {dtype} that are not there")
            self.by_key[key] = torch.empty(numel, dtype=dtype, device="cpu")
        if (self.by_key[key].dtype, len(self.by_key[key])) != (dtype, numel):
            raise RefusedError("a storage of two types or sizes")
        return self.by_key[key]


def _tensor(storage: Tensor, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    """As torch._utils._rebuild_tensor_v2: a part of a storage in a shape."""
    held = storage.numel()
    sound = all(type(n) is int and 0 <= n < 2**62 for n in (offset, *size, *stride))
    if not sound or not len(size) == len(stride) <= MOST_DIMENSIONS:
        raise RefusedError("a tensor of no proper shape")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel > held or (numel and last >= held):
        raise RefusedError(f"a tensor of {numel:,} numbers in a storage of {held:,}")
    return storage.as_strided(size, stride, offset if numel else 0)


def _dictionary(items: Any = ()) -> dict[object, object]:
    """An OrderedDict, of Python 2 with its items."""
    return fill({}, [part for key, value in items for part in (key, value)])


ADMITTED: dict[str, object] = {
    "collections.OrderedDict": _dictionary,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
}
