"""A Fast R-CNN application. README.md describes how to use it, and CONTRIBUTING.md how the code is structured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrcnn.api import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` on first access. This allows the command line to report errors before torch is imported."""
    if name == "load":
        from fastrcnn.api import load

        return load
    raise AttributeError(f"module 'fastrcnn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
