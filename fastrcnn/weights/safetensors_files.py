"""Reading and writing .safetensors files: tensors by name, and metadata, which is text by name.

A file is tensors and a header that says where each lies; the package checks the header against the file's size before
it allocates anything, and nothing in a file is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastrcnn.errors import UserError
from fastrcnn.files import write_derived


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata. Raises UserError where it is no such file, or damaged."""
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path}: reading it needs the package safetensors: pip install safetensors.") from None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a .safetensors file, or cut short ({error}).") from error


def write(state: Mapping[str, Tensor], metadata: Mapping[str, str], output: Path, source: str | None = None) -> None:
    """Writes tensors and metadata. source: see write_derived. Raises UserError where that cannot be."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise UserError(
            f"{output}: writing it needs the package safetensors: pip install 'fastrcnn[safetensors]'."
        ) from None
    with write_derived(output, source) as path:
        try:
            save_file(dict(state), path, dict(metadata))
        except SafetensorError as error:
            raise UserError(f"{output}: cannot be written ({error}).") from error
