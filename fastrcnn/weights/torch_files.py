"""Read files written by `torch.save`, restricted to tensors, numbers, text and plain containers.

`torch.load(weights_only=True)` does not execute code in a file either. However, it decompresses records, allocates as
much memory as the file declares, and calls many torch functions. This reader supports only the types that state dicts
contain, and it never allocates more memory for tensors than the size of the file.
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

# Bytes. A pickle of a thousand tensors has 0.1 MB. A malicious pickle can use 80 bytes of memory per byte of its size.
LARGEST_PICKLE = 4 * 2**20
MOST_DIMENSIONS = 16
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of the format before torch 1.6
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


class _File(io.BufferedReader):
    """A file whose ZIP directory is not read if it is large, because zipfile uses ten times its size of memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LARGEST_PICKLE:
            raise RefusedError(f"a ZIP directory of {size:,} bytes (limit: {LARGEST_PICKLE:,})")
        return super().read(size)


def read(path: Path, size: int | None = None) -> Any:
    """Read a file written by `torch.save`. Tensors are on the CPU, and no code in the file is executed.

    size: number of bytes at the start of the file that torch wrote, or None for the entire file.
    Raises UserError if the file is invalid, declares more data than it contains, or contains objects other than
    tensors, numbers, text, lists, tuples and dictionaries.
    """
    instead = "Use a weights file that contains only tensors, numbers, text, lists, tuples and dictionaries."
    with as_user_error(path, instead), _File(io.FileIO(path)) as file:
        size = os.fstat(file.fileno()).st_size if size is None else size
        archive = file.read(4) == b"PK\3\4"
        file.seek(0)
        return _archive(file, size) if archive else _legacy(file, size)


def _archive(file: BinaryIO, size: int) -> Any:
    """Read the format of torch 1.6 and later: a ZIP archive with a pickle and a record for each storage."""
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
    records = {info.filename: info for info in listed}
    if len(records) < len(listed):
        raise RefusedError("two records with the same name")
    if packed := [info.filename for info in listed if info.compress_type != zipfile.ZIP_STORED]:
        raise RefusedError(f"a compressed record ({packed[0][:60]})")
    if (declared := sum(info.file_size for info in listed)) > size:
        raise RefusedError(f"records that declare a total of {declared:,} bytes in a file of only {size:,} bytes")

    def seek(info: zipfile.ZipInfo) -> None:
        file.seek(info.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)  # skip the name and the extra field

    (pickled,) = (info for info in listed if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl"))
    folder = pickled.filename.removesuffix("data.pkl")
    if (order := records.get(f"{folder}byteorder")) is not None:
        seek(order)
        if file.read(6) != b"little":
            raise RefusedError("numbers in big-endian order")
    if pickled.file_size > LARGEST_PICKLE:
        raise RefusedError(f"a pickle of {pickled.file_size:,} bytes (limit: {LARGEST_PICKLE:,})")
    seek(pickled)
    storages = _Storages(size)
    content = load_pickle(io.BytesIO(file.read(pickled.file_size)), ADMITTED, storages.find)
    for key, values in storages.by_key.items():
        info = records[f"{folder}data/{key}"]
        if info.file_size != values.nbytes:
            size_of = f"{len(values):,} {values.dtype} numbers"
            raise RefusedError(
                f"a storage of {size_of}, which does not match the {info.file_size:,} bytes of data in the file"
            )
        seek(info)
        _read_into(values, file)
    return content


def _legacy(file: BinaryIO, size: int) -> Any:
    """Read the format before torch 1.6: pickles of magic number, version, system, content, and keys; then storages."""
    pickles = io.BytesIO(file.read(LARGEST_PICKLE))
    storages = _Storages(size)
    magic, _, machine, content, keys = (load_pickle(pickles, ADMITTED, storages.find) for _ in range(5))
    if magic != LEGACY_MAGIC or machine["little_endian"] is not True:
        raise RefusedError("an unknown magic number, or numbers in big-endian order")
    if not all(type(key) is str for key in keys) or storages.by_key.keys() != set(keys):
        raise RefusedError("references to tensor data that is not in the file")
    file.seek(pickles.tell())
    for key in keys:
        values = storages.by_key[key]
        if file.read(8) != struct.pack("<q", len(values)):
            raise RefusedError(f"a storage whose length does not match the declared length, {len(values):,}")
        _read_into(values, file)
    return content


def _read_into(values: Tensor, file: BinaryIO) -> None:
    if len(values) and file.readinto(values.view(torch.uint8).numpy().data) != values.nbytes:  # type: ignore[attr-defined]
        raise EOFError("a record extends past the end of the file")


class _Storages:
    """The storages, tensors (N,), that a file references by key. They are allocated here; their values are read later.

    size: maximum total size of the storages in bytes.
    """

    def __init__(self, size: int) -> None:
        self.left = size
        self.by_key: dict[str, Tensor] = {}

    def find(self, saved: Any) -> Tensor:
        """Return the storage for a persistent id that torch wrote. Raises RefusedError if the id is invalid."""
        kind, dtype, key, _, numel, *view = saved
        if kind != "storage" or view not in ([], [None]) or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise RefusedError("a reference to something other than a storage")
        if type(numel) is not int or numel < 0:
            raise RefusedError("a storage with an invalid size")
        if key not in self.by_key:
            self.left -= numel * dtype.itemsize
            if self.left < 0:
                raise RefusedError(f"a storage whose {numel:,} {dtype} numbers do not fit in the file")
            self.by_key[key] = torch.empty(numel, dtype=dtype, device="cpu")
        if (self.by_key[key].dtype, len(self.by_key[key])) != (dtype, numel):
            raise RefusedError("a storage with conflicting types or sizes")
        return self.by_key[key]


def _tensor(storage: Tensor, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    """Return a view of a storage. This replaces torch._utils._rebuild_tensor_v2."""
    held = storage.numel()
    sound = all(type(n) is int and 0 <= n < 2**62 for n in (offset, *size, *stride))
    if not sound or not len(size) == len(stride) <= MOST_DIMENSIONS:
        raise RefusedError("a tensor with an invalid shape")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel > held or (numel and last >= held):
        raise RefusedError(f"a tensor of {numel:,} elements that does not fit in its storage of {held:,} elements")
    return storage.as_strided(size, stride, offset if numel else 0)


def _dictionary(items: Any = ()) -> dict[object, object]:
    """Return a dictionary instead of an OrderedDict. Files written by Python 2 pass the items to its constructor."""
    return fill({}, [part for key, value in items for part in (key, value)])


ADMITTED: dict[str, object] = {
    "collections.OrderedDict": _dictionary,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
}
