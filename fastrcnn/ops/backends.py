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
    if forced:
        if forced not in BACKENDS:
            raise ValueError(f"FASTRCNN_ROI_BACKEND: expected one of {', '.join(BACKENDS)}, got {forced!r}")
        if forced in ("cpu", "cuda") and (missing := _missing(forced, device_type)):
            raise RuntimeError(f"FASTRCNN_ROI_BACKEND={forced} cannot run: {missing}")
        log.info("RoI pooling on %s: backend %s, as FASTRCNN_ROI_BACKEND asks", device_type, forced)
        return BACKENDS[forced]
    own = "cuda" if device_type == "cuda" else "cpu"
    missing = _missing(own, device_type)
    if not missing:
        log.info("RoI pooling on %s: backend %s", device_type, own)
        return BACKENDS[own]
    log.warning("RoI pooling on %s runs slower, with torchvision's kernel: %s", device_type, missing)
    return torchvision_backend


def _missing(name: str, device_type: str) -> str:
    """Why the backend `name` cannot run on a device, or an empty string where it can."""
    if name != device_type:
        return f"the tensors are on {device_type}"
    return str(BACKENDS[name].missing())
