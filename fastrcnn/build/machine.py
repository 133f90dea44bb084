"""Reads the configuration: device, precision, threads, and how a network runs on them."""

from __future__ import annotations

import logging
import os
import shutil

import torch

from fastrcnn.config.schema import RuntimeConfig
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.parallel.launch import cores, launch

log = logging.getLogger(__name__)
BUSY = 1.5  # threads that run, a core


def device(config: RuntimeConfig) -> torch.device:
    """The device to run on. Of several processes on a machine each has a GPU of its own, by its number there."""
    here = launch()
    if config.device == "auto":
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            chosen = torch.device(config.device)
        except RuntimeError:
            raise UserError(f"runtime.device={config.device}: should be auto, cpu, cuda or cuda:N.") from None
    if chosen.type != "cuda":
        return chosen
    there = torch.cuda.device_count()
    if (chosen.index or 0) >= there:
        raise UserError(f"runtime.device={config.device}: torch sees {there} CUDA device(s) here.")
    if here.size == 1:
        return chosen
    if chosen.index is not None:
        raise UserError(f"runtime.device={config.device}: with several processes each takes its own; say cuda.")
    if here.local_size > there:
        raise UserError(
            f"{here.local_size} processes on this machine, and torch sees {there} CUDA device(s): start as many "
            f"processes (torchrun --nproc-per-node {there}), or say runtime.device=cpu."
        )
    return torch.device("cuda", here.local_rank)


def precision(config: RuntimeConfig, on: torch.device) -> torch.dtype:
    """float32, or bfloat16 where it is asked for or, with `auto`, where the device computes in it natively."""
    if config.precision != "auto":
        return getattr(torch, config.precision)
    if on.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Instructions for bfloat16, not mere support: without them oneDNN is slower than float32. torch knows, but
        # has no public question for it yet.
        known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        fast = any(ask() for ask in known if ask is not None)
    return torch.bfloat16 if fast else torch.float32


def set_up(config: RuntimeConfig) -> tuple[torch.device, torch.dtype]:
    """The device and the precision to run in; sets torch's number of threads too."""
    threads(config)
    on = device(config)
    return on, precision(config, on)


def threads(config: RuntimeConfig) -> None:
    """Sets the number of threads that torch uses: by default its own choice, and in a container no more than cores."""
    chosen = config.threads if config.threads is not None else min(torch.get_num_threads(), cores())
    torch.set_num_threads(chosen)


def warn_of_others(on: torch.device) -> None:
    """Says that other programs use the machine, where training on its processor takes longer for it."""
    if on.type != "cpu" or not hasattr(os, "getloadavg"):
        return
    load, here = os.getloadavg()[0], cores()
    if load > BUSY * here:
        log.info("other programs use this machine (load %.1f, cores %d), so training is slower", load, here)


def workers(config: RuntimeConfig) -> int:
    """Loader processes: one for every two cores of this process's, four at most, unless said."""
    if config.workers is not None:
        return config.workers
    return min(4, cores() // 2)


def speed_and_memory(model: FastRCNN, config: RuntimeConfig, on: torch.device) -> None:
    """Makes the model train as `runtime.compile` and `runtime.checkpoint_activations` say.

    What is compiled is the trunk, and fc6 and fc7 with what is between them, each when it is first called and for any
    size; RoI pooling, which has its own kernels, the two outputs and the loss are not. Names of weights stay.
    """
    model.trunk.recompute = config.checkpoint_activations
    if config.compile:
        compiler = os.environ.get("CXX", "g++")
        if on.type == "cpu" and shutil.which(compiler) is None:
            raise UserError(
                f"runtime.compile=true: torch.compile needs a C++ compiler on the processor, and there is no "
                f"{compiler}. Install one, name it in the environment variable CXX, or leave the key out."
            )
        model.trunk.compile(dynamic=True)
        model.head.compile(dynamic=True)
