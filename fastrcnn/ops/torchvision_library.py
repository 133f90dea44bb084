"""torchvision's compiled operators alone: importing the whole package takes as long as importing torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def load() -> None:
    """Makes `torch.ops.torchvision` usable. Importing torchvision before or after that does no harm."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in Path(folder).glob("_C*"):
            try:
                torch.ops.load_library(library)
            except OSError:  # of another torch, or no library at all; importing the package says it in its own words
                continue
    if not hasattr(torch.ops.torchvision, "nms"):
        importlib.import_module("torchvision.ops")
