"""The choice of the backend, in one place.

A backend is a module of two functions with the signatures of reference.py's `forward` and `backward`.
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
    """The backend for tensors on `device`: the one that FASTRCNN_ROI_BACKEND names, or else the fastest that can run.

    The log says once which it is and, where it is not our own kernel, why. Raises ValueError for an unknown name,
    RuntimeError where the named backend cannot run.
    """
    return _choose(device.type, os.environ.get("FASTRCNN_ROI_BACKEND", ""))


@functools.cache
def _choose(device_type: str, forced: str) -> ModuleType:
    name = forced or ("cuda" if device_type == "cuda" else "cpu")
    if name not in BACKENDS:
        raise ValueError(f"FASTRCNN_ROI_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    missing = ""  # why our own kernel cannot run
    if name in ("cpu", "cuda"):
        missing = f"the tensors are on {device_type}" if name != device_type else BACKENDS[name].missing()
    if missing and forced:
        raise RuntimeError(f"FASTRCNN_ROI_BACKEND={forced} cannot run: {missing}")
    if missing:
        log.warning("RoI pooling on %s runs slower, with torchvision's kernel: %s", device_type, missing)
        return torchvision_backend
    asked = ", as FASTRCNN_ROI_BACKEND asks" if forced else ""
    log.info("RoI pooling on %s: backend %s%s", device_type, name, asked)
    return BACKENDS[name]
