"""Choose the backend of RoI pooling.

A backend is a module with the functions `forward` and `backward`, which have the same signatures as in reference.py.
"""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

import torch

from . import cpu, cuda, reference, torchvision_backend

log = logging.getLogger(__name__)

BACKENDS = {"reference": reference, "torchvision": torchvision_backend, "cpu": cpu, "cuda": cuda}


def choose_backend(device: torch.device) -> ModuleType:
    """Return the backend for tensors on `device`: the one named in FASTRCNN_ROI_BACKEND, or the fastest available one.

    The choice is logged once. If our own kernel is not available, a warning with the reason is logged instead. Raises
    ValueError if the backend in FASTRCNN_ROI_BACKEND is unknown, and RuntimeError if it cannot run.
    """
    return _choose(device.type, os.environ.get("FASTRCNN_ROI_BACKEND", ""))


@functools.cache
def _choose(device_type: str, forced: str) -> ModuleType:
    name = forced or ("cuda" if device_type == "cuda" else "cpu")
    if name not in BACKENDS:
        raise ValueError(f"FASTRCNN_ROI_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    missing = ""  # reason why our own kernel cannot run
    if name in ("cpu", "cuda"):
        missing = f"the tensors are on {device_type}" if name != device_type else BACKENDS[name].missing()
    if missing and forced:
        raise RuntimeError(f"FASTRCNN_ROI_BACKEND={forced} cannot run: {missing}")
    if missing:
        log.warning("RoI pooling on %s uses torchvision's slower kernel: %s", device_type, missing)
        return torchvision_backend
    source = " (from FASTRCNN_ROI_BACKEND)" if forced else ""
    log.info("RoI pooling on %s: backend %s%s", device_type, name, source)
    return BACKENDS[name]
