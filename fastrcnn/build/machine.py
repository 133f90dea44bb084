"""Set up the device, the precision and the threads from the runtime configuration."""

from __future__ import annotations

import logging
import os
import shutil

import torch
import torch.compiler.config

from fastrcnn.config.schema import RuntimeConfig
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.parallel.launch import cores, launch

log = logging.getLogger(__name__)
BUSY = 1.5  # load per core above which other programs are reported


def device(config: RuntimeConfig) -> torch.device:
    """Return the device to run on. In distributed jobs, each process on a machine uses the GPU of its local rank."""
    here = launch()
    if config.device == "auto":
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            chosen = torch.device(config.device)
        except RuntimeError:
            raise UserError(f"runtime.device={config.device}: must be auto, cpu, cuda or cuda:N.") from None
    if chosen.type != "cuda":
        return chosen
    there = torch.cuda.device_count()
    if (chosen.index or 0) >= there:
        raise UserError(f"runtime.device={config.device}: torch finds {there} CUDA device(s). Choose another device.")
    if here.size == 1:
        return chosen
    if chosen.index is not None:
        raise UserError(
            f"runtime.device={config.device}: with several processes, each uses its own GPU. Set runtime.device=cuda."
        )
    if here.local_size > there:
        raise UserError(
            f"{here.local_size} processes run on this machine, but torch finds {there} CUDA device(s). Start one "
            f"process per device (torchrun --nproc-per-node {there}), or set runtime.device=cpu."
        )
    return torch.device("cuda", here.local_rank)


def precision(config: RuntimeConfig, on: torch.device) -> torch.dtype:
    """Return float32 or bfloat16. `auto` is bfloat16 if the device supports it natively, otherwise float32."""
    if config.precision != "auto":
        return getattr(torch, config.precision)
    if on.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # On a CPU without bfloat16 instructions, oneDNN supports bfloat16 but is slower than with float32. torch has
        # only private functions to detect these instructions.
        known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        fast = any(ask() for ask in known if ask is not None)
    return torch.bfloat16 if fast else torch.float32


def set_up(config: RuntimeConfig, before: int | None = None) -> tuple[torch.device, torch.dtype]:
    """Set the number of threads of torch (see `threads`), and return the device and the precision."""
    threads(config, before)
    on = device(config)
    return on, precision(config, on)


def threads(config: RuntimeConfig, before: int | None = None) -> None:
    """Set the number of threads of torch: runtime.threads, `before`, or torch's default, but at most one per core.

    before: the number with which the resumed run was trained until now, or None. The order of summation, and thus
    rounding, depends on the number of threads.
    """
    default = min(torch.get_num_threads(), cores())
    chosen = config.threads or before or default
    if before is not None and chosen != before:
        text = "Resuming with %d thread(s) instead of %d: the weights will not be those of an uninterrupted run"
        log.warning(text, chosen, before)
    elif before is not None and config.threads is None and chosen != default:
        text = "Resuming with the %d thread(s) of the run. To use the default of this machine, set runtime.threads=%d"
        log.info(text, chosen, default)
    torch.set_num_threads(chosen)


def warn_of_others(on: torch.device) -> None:
    """Log a message if other programs use the machine, because training on the CPU is then slower."""
    if on.type != "cpu" or not hasattr(os, "getloadavg"):
        return
    load, here = os.getloadavg()[0], cores()
    if load > BUSY * here:
        log.info("Training will be slower because other programs use this machine (load %.1f, %d cores)", load, here)


def workers(config: RuntimeConfig) -> int:
    """Return the number of loader processes: runtime.workers, or by default one per two cores, but at most four."""
    if config.workers is not None:
        return config.workers
    return min(4, cores() // 2)


def speed_and_memory(model: FastRCNN, config: RuntimeConfig, on: torch.device) -> None:
    """Apply `runtime.compile` and `runtime.checkpoint_activations` to the model.

    The trunk and the part of the head from fc6 to fc7 are compiled, each on its first call and for dynamic sizes. RoI
    pooling (which has its own kernels), the two output layers and the loss are not compiled. Compilation does not
    change the names of weights. Raises UserError if the C++ compiler that a CPU needs is missing.
    """
    model.trunk.recompute = config.checkpoint_activations
    if config.compile:
        compiler = os.environ.get("CXX", "g++")
        if on.type == "cpu" and shutil.which(compiler) is None:
            raise UserError(
                f"runtime.compile=true: torch.compile needs a C++ compiler on the CPU, but {compiler} was not found. "
                "Install it, set the environment variable CXX to another compiler, or remove runtime.compile."
            )
        # torch caches compiled code on disk without the CPU instructions that it uses, so the tag contains them
        torch.compiler.config.cache_key_tag = torch.backends.cpu.get_cpu_capability()
        model.trunk.compile(dynamic=True)
        model.head.compile(dynamic=True)
