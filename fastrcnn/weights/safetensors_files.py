"""Read and write .safetensors files, which contain named tensors and metadata (strings by key).

A file consists of tensors and a header with their offsets. The package safetensors checks the header against the file
size before it allocates memory. A file cannot contain code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastrcnn.errors import UserError
from fastrcnn.files import write_derived

LARGEST_HEADER = 2**24  # bytes; 20,000 tensors need 2 MB


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors (on the CPU) and the metadata of a file. Raises UserError if the file cannot be read."""
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(
            f"{path}: reading a .safetensors file requires the package safetensors. Install it with: pip install "
            "'fastrcnn[safetensors]'"
        ) from None
    try:
        with path.open("rb") as start:
            if (size := int.from_bytes(start.read(8), "little")) > LARGEST_HEADER:
                raise SafetensorError(f"a header of {size:,} bytes, but the limit is {LARGEST_HEADER:,}")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: the file is truncated or not a .safetensors file ({error}).") from error


def write(state: Mapping[str, Tensor], metadata: Mapping[str, str], output: Path, source: str | None = None) -> None:
    """Write tensors and metadata to `output`. source: see files.write_derived. Raises UserError if writing fails."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError(
            f"{output}: writing a .safetensors file requires the package safetensors. Install it with: pip install "
            "'fastrcnn[safetensors]'"
        ) from None
    with write_derived(output, source) as path:
        path.write_bytes(save(dict(state), dict(metadata)))
