"""MATLAB files of version 7.3, which are HDF5: arrays lie transposed, a cell is a reference, text is numbers.

HDF5 can do far more than MATLAB uses: data in other files, filters from plug-ins, sizes that have no bytes behind
them. Whatever MATLAB has no use for is refused before it is read.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn.errors import UserError
from fastrcnn.proposals.formats.mat5 import EXPANSION, LEAST, MatArray, reading

DEFLATE, SHUFFLE, CHECKSUM = 1, 2, 3  # HDF5's numbers of the filters that are admitted


def open_hdf5(path: Path, names: Collection[str]) -> dict[str, MatArray]:
    """Those of the named variables that the file has. Raises UserError without h5py, or for a damaged file."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path}: a MATLAB 7.3 file is HDF5, and reading it needs h5py; install it with "
            "`pip install 'fastrcnn[mat]'`."
        ) from error
    with reading(path):
        file = h5py.File(path, "r")
        return {
            name: _Array(file, file[name], path.stat().st_size)
            for name in names
            if isinstance(file.get(name, getlink=True), h5py.HardLink)
        }


@dataclass(frozen=True)
class _Array:
    """A data set of an HDF5 file."""

    file: Any  # h5py.File
    data: Any  # h5py.Dataset
    file_size: int

    @property
    def kind(self) -> str:
        import h5py

        if not isinstance(self.data, h5py.Dataset):
            return "struct"
        if h5py.check_ref_dtype(self.data.dtype) is h5py.Reference:
            return "cell"
        if self._attribute("MATLAB_class") == b"char":
            return "text"
        return "numbers" if self.data.dtype.kind in "iuf" else "unknown"

    @property
    def shape(self) -> tuple[int, ...]:
        if self._attribute("MATLAB_empty"):
            return (0, 0)
        return tuple(reversed(self.data.shape or ()))

    def numbers(self) -> np.ndarray:
        if self.kind != "numbers":
            raise ValueError(f"{self.kind} where numbers should be")
        return np.zeros((0, 0)) if 0 in self.shape else self._content().T

    def text(self) -> list[str]:
        if self.data.dtype.kind not in "u" or len(self.shape) != 2:
            raise ValueError("no text where text should be")
        codes = np.zeros((0, 0), "u2") if 0 in self.shape else self._content().T
        return [row.astype("<u2").tobytes().decode("utf-16-le") for row in codes]

    def cells(self) -> list[MatArray]:
        import h5py

        if self.kind != "cell":
            raise ValueError(f"{self.kind} where cells should be")
        if 0 in self.shape:
            return []
        references = self._content().ravel()  # C order of the transposed: column by column
        if not all(isinstance(r, h5py.Reference) and r for r in references):
            raise ValueError("a cell that leads nowhere")
        return [_Array(self.file, self.file[r], self.file_size) for r in references]

    def _attribute(self, name: str) -> Any:
        attributes = self.data.attrs
        if name not in attributes or attributes.get_id(name).get_storage_size() > 256:
            return None
        return attributes[name]

    def _content(self) -> np.ndarray:
        """The array as it lies in the file, if that is a small multiple of the file and in it."""
        import h5py

        made, limit = self.data.id.get_create_plist(), max(LEAST, EXPANSION * self.file_size)
        layout = made.get_layout()
        if layout not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or made.get_external_count():
            raise ValueError("data that lies in other files, which is refused")
        size = math.prod(self.data.shape) * self.data.dtype.itemsize
        if size > (limit if layout == h5py.h5d.CHUNKED else self.file_size):
            raise ValueError("an array that is larger than the file allows")
        if layout == h5py.h5d.CHUNKED:
            self._check_chunks([made.get_filter(i)[0] for i in range(made.get_nfilters())], limit)
        return self.data[()]

    def _check_chunks(self, filters: list[int], limit: int) -> None:
        chunk = math.prod(self.data.chunks) * self.data.dtype.itemsize
        if not {*filters} <= {DEFLATE, SHUFFLE, CHECKSUM} or len({*filters}) < len(filters) or chunk > limit:
            raise ValueError("compression or chunks that MATLAB does not write")
        places: list[tuple[int, ...]] = []
        self.data.id.chunk_iter(lambda info: places.append(info.chunk_offset))
        if DEFLATE not in filters:
            return
        bit = 1 << filters.index(DEFLATE)
        for place in places:
            skipped, raw = self.data.id.read_direct_chunk(place)
            if not skipped & bit and len(zlib.decompressobj().decompress(raw, chunk + 64)) > chunk + 4:
                raise ValueError("a chunk that unpacks to more than it should")
