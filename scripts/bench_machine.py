"""What a benchmark of torch ran on."""

from __future__ import annotations

import platform

import torch
import torchvision


def machine(device: torch.device) -> dict[str, str | int | None]:
    """Processor, threads, versions and GPU, for the head of a table and its JSON file."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
    }
