"""Read MATLAB files of version 7.3, which are HDF5 files.

In these files, arrays are transposed, cells are HDF5 references, and text is stored as character codes. HDF5 has many
features that MATLAB does not use, such as data in other files, filters from plug-ins, and arrays without stored data.
Files that use such features are rejected before any data is read.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.mat5 import Cells, Text, Value, most_bytes

DEFLATE, SHUFFLE, CHECKSUM = 1, 2, 3  # HDF5 ids of the allowed filters


def read_mat73(path: Path, names: Collection[str]) -> dict[str, Value]:
    """Return those variables in `names` that the file contains. Raises UserError if h5py is not installed.

    A damaged file can cause any exception.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path}: reading MATLAB 7.3 files (HDF5) needs h5py. Install it with `pip install 'fastrcnn[mat]'`."
        ) from error
    file, size = h5py.File(path, "r"), path.stat().st_size
    own = [name for name in names if isinstance(file.get(name, getlink=True), h5py.HardLink)]
    return {name: _value(file, name, size) for name in own}


def _value(file: Any, key: Any, file_size: int) -> Value:
    """Return the value of a dataset in an h5py.File. key: the dataset's name, or a reference to the dataset."""
    import h5py

    data = file[key]
    is_array = isinstance(data, h5py.Dataset)
    if is_array and h5py.check_ref_dtype(data.dtype) is h5py.Reference:
        # C order of the transposed array is MATLAB's column-major order.
        targets = [] if _is_empty(data) else _content(data, file_size).ravel().tolist()
        if not all(isinstance(r, h5py.Reference) and r for r in targets):
            raise ValueError("a cell contains an invalid reference")
        return Cells(partial(_value, file, target, file_size) for target in targets)
    if not is_array or data.dtype.kind not in "iuf":
        return "an unknown type" if is_array else "a struct"
    content = np.zeros((0, 0)) if _is_empty(data) else _content(data, file_size).T
    if _attribute(data, "MATLAB_class") != b"char":
        return content
    if content.size and (content.dtype.kind != "u" or content.ndim != 2):
        raise ValueError("a character array has an invalid type or shape")
    return Text(row.astype("<u2").tobytes().decode("utf-16-le") for row in content)


def _is_empty(data: Any) -> bool:
    return bool(_attribute(data, "MATLAB_empty")) or 0 in (data.shape or ())


def _attribute(data: Any, name: str) -> Any:
    attributes = data.attrs
    if name not in attributes or attributes.get_id(name).get_storage_size() > 256:
        return None
    return attributes[name]


def _content(data: Any, file_size: int) -> np.ndarray:
    """Return the array as stored. Raises ValueError if it uses features that are not allowed or is too large."""
    import h5py

    made, limit = data.id.get_create_plist(), most_bytes(file_size)
    layout = made.get_layout()
    if layout not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or made.get_external_count():
        raise ValueError("an array is stored in other files, which is not allowed")
    size = math.prod(data.shape) * data.dtype.itemsize
    if size > (limit if layout == h5py.h5d.CHUNKED else file_size):
        raise ValueError("an array is too large for the size of the file")
    if layout == h5py.h5d.CHUNKED:
        _check_chunks(data, [made.get_filter(i)[0] for i in range(made.get_nfilters())], limit)
    return data[()]


def _check_chunks(data: Any, filters: list[int], limit: int) -> None:
    chunk = math.prod(data.chunks) * data.dtype.itemsize
    if not {*filters} <= {DEFLATE, SHUFFLE, CHECKSUM} or len({*filters}) < len(filters) or chunk > limit:
        raise ValueError("an array uses filters or chunks that MATLAB does not write")
    places: list[tuple[int, ...]] = []
    data.id.chunk_iter(lambda info: places.append(info.chunk_offset))
    if DEFLATE not in filters:
        return
    bit = 1 << filters.index(DEFLATE)
    for place in places:
        skipped, raw = data.id.read_direct_chunk(place)
        if not skipped & bit and len(zlib.decompressobj().decompress(raw, chunk + 64)) > chunk + 4:
            raise ValueError("a chunk is larger than its declared size after decompression")
