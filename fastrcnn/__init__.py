"""Fast R-CNN, end to end. See README.md for the tour and CONTRIBUTING.md for the map of the code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrcnn.api import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load`, once it is asked for: the command line answers mistakes before torch is imported."""
    if name == "load":
        from fastrcnn.api import load

        return load
    raise AttributeError(f"module 'fastrcnn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
