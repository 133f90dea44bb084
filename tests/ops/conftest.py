"""Every backend of RoI pooling that can run here, on CPU tensors.

The CPU kernel and the CUDA source (for the host) are compiled afresh, so that what is tested is what stands
in csrc/.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from fastrcnn.ops import cpu, cuda, reference, registration, torchvision_backend
from fastrcnn.ops.arguments import FEATURE_TYPES

CSRC = Path(cpu.__file__).parent / "csrc"
NO_COMPILER = "no C++ compiler (g++ or c++) on this machine"


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("c++")
    if not found:
        pytest.skip(NO_COMPILER)
    return found


def build(source: Path, target: Path, *options: str) -> Path:
    flags = ["-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler(), *flags, *options, "-o", str(target), str(source)], check=True)
    return target


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Our CPU kernel from today's source, in place of one that an installation built."""
    target = tmp_path_factory.mktemp("cpu") / "_roi_cpu.so"
    build(CSRC / "roi_pool_cpu.cpp", target, "-O3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRCNN_ROI_CPU_LIBRARY", str(target))
        cpu.library.cache_clear()
        assert cpu.library() is not None
        yield
    cpu.library.cache_clear()


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> list[ctypes.CDLL]:
    """csrc/roi_pool.cu compiled for the host, once for each type of features."""
    folder = tmp_path_factory.mktemp("cuda")
    libraries = []
    for value in range(4):
        options = ["-O2", f"-DVALUE={value}", "-x", "c++", "-Wno-unknown-pragmas", "-Wno-unused-function"]
        target = build(CSRC / "cuda_on_host.h", folder / f"roi_pool_{value}.so", *options)
        libraries.append(ctypes.CDLL(str(target)))
    return libraries


@pytest.fixture
def cuda_on_host(host_kernels: list[ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The CUDA backend, with its launches going to the host's build of its kernels."""

    def launch(name: str, on: Tensor, grid: cuda.Grid, threads: int, arguments: list[Any]) -> None:
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        library = host_kernels[FEATURE_TYPES.index(on.dtype)]
        failed = library.roi_launch(
            name.encode(), (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(threads, 1, 1), addresses
        )
        assert not failed, f"no kernel {name}"

    monkeypatch.setattr(cuda, "_launch", launch)
    return cuda


BACKENDS = ("torchvision", "cpu-plain", "cpu-avx2", "cpu-avx512", "cuda-on-host")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes roi_pool use each backend in turn; skips those that this machine cannot run."""
    name: str = request.param
    if name == "torchvision":
        use(monkeypatch, torchvision_backend)
    elif name == "cuda-on-host":
        use(monkeypatch, request.getfixturevalue("cuda_on_host"))
    else:
        request.getfixturevalue("cpu_library")
        library = cpu.library()
        assert library is not None
        level = name.removeprefix("cpu-")
        if cpu.LEVELS.index(level) > library.roi_pool_best_level():
            pytest.skip(f"this processor has no {level}")
        monkeypatch.setenv("FASTRCNN_ROI_CPU_LEVEL", level)
        use(monkeypatch, cpu)
    return name


def use(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    monkeypatch.setattr(registration, "choose_backend", lambda device: module)


@pytest.fixture
def pool_by_reference(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """roi_pool by the reference, whatever backend the test is about."""
    from fastrcnn.ops import roi_pool

    def pool(*args: Any, **kwargs: Any) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            use(patch, reference)
            return roi_pool(*args, **kwargs)

    return pool
