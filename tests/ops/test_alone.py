"""The folder on its own, and without a compiler."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrcnn.ops import backends, cpu, reference, roi_pool, torchvision_backend

OPS = Path(cpu.__file__).parent
ROOT = OPS.parent.parent


def test_copied_alone_it_imports_and_works(tmp_path: Path) -> None:
    """Source only, so that it also has to do without the built kernel. Nothing of the project can be imported."""
    shutil.copytree(OPS, tmp_path / "lifted", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    program = """
import sys, torch
from lifted import RoIAlign, RoIPool, RoIWarp, batched_nms, roi_align, roi_pool, roi_warp
x = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()
y = roi_pool(x, torch.tensor([[0, 2, 2, 6, 6.0]]), 2)
y.sum().backward()
assert y.tolist() == [[[[15, 0], [0, 0]]]] and x.grad.sum() == 1, y
assert not any(m.split('.')[0] == 'fastrcnn' for m in sys.modules)
print('works')
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("FASTRCNN_")}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout == "works\n", run.stderr


def test_without_the_kernel_it_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASTRCNN_ROI_CPU_LIBRARY", str(tmp_path / "not_there.so"))
    monkeypatch.delenv("FASTRCNN_ROI_BACKEND", raising=False)
    cpu.library.cache_clear()
    backends._choose.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "fastrcnn.ops"):
            for _ in range(3):
                roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 2)
            assert backends.choose_backend(torch.device("cpu")) is torchvision_backend
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage() == (
            "RoI pooling on cpu uses torchvision's slower kernel: the CPU kernel was not built during installation. "
            "Install a C++ compiler, then reinstall the package"
        )
    finally:
        cpu.library.cache_clear()
        backends._choose.cache_clear()


def test_the_choice_can_be_forced(monkeypatch: pytest.MonkeyPatch, cpu_library: None) -> None:
    here = torch.device("cpu")
    for name, module in {"reference": reference, "torchvision": torchvision_backend, "cpu": cpu, "": cpu}.items():
        monkeypatch.setenv("FASTRCNN_ROI_BACKEND", name)
        assert backends.choose_backend(here) is module
    monkeypatch.setenv("FASTRCNN_ROI_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="FASTRCNN_ROI_BACKEND=cuda cannot run: the tensors are on cpu"):
        backends.choose_backend(here)
    monkeypatch.setenv("FASTRCNN_ROI_BACKEND", "gpu")
    with pytest.raises(ValueError, match="expected one of reference, torchvision, cpu, cuda, got 'gpu'"):
        backends.choose_backend(here)
    monkeypatch.setenv("FASTRCNN_ROI_CPU_LEVEL", "sse9")
    with pytest.raises(ValueError, match="FASTRCNN_ROI_CPU_LEVEL: this processor supports plain"):
        cpu.level()


@pytest.mark.parametrize("folder", ["as it is", "without its library"])
def test_torchvision_is_not_imported_before_it_is_needed(folder: str, tmp_path: Path) -> None:
    """Its import takes as long as torch's; where its library is not to be found, it is imported after all."""
    alone = folder == "as it is"
    program = f"""
import importlib.machinery, importlib.util, sys, torch
if not {alone}:
    spec = importlib.machinery.ModuleSpec("torchvision", None, is_package=True)
    spec.submodule_search_locations = [{str(tmp_path)!r}]
    importlib.util.find_spec = lambda name: spec
from fastrcnn.ops import batched_nms
boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3], [5, 5, 9, 9.0]])
scores, groups = torch.tensor([0.5, 0.9, 0.7]), torch.zeros(3, dtype=torch.int64)
assert batched_nms(boxes, scores, groups, 0.5).tolist() == [1, 2]
assert ("torchvision" in sys.modules) != {alone}
if {alone}:
    from fastrcnn.ops import RoIAlign
    import torchvision
    assert RoIAlign is torchvision.ops.RoIAlign
    assert batched_nms(boxes, scores, groups, 0.5).tolist() == torchvision.ops.nms(boxes, scores, 0.5).tolist()
print("works")
"""
    (tmp_path / "_C_other.so").write_bytes(b"no library")
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "works\n", run.stderr


@pytest.mark.parametrize("compiler", ["c++", "/no/such/compiler"])
def test_setup_builds_the_kernel_or_succeeds_without_it(tmp_path: Path, compiler: str) -> None:
    pytest.importorskip("setuptools")
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler (c++) on this machine")
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *folders],
        cwd=ROOT,
        env={**os.environ, "CC": compiler, "CXX": compiler},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "lib").rglob("_roi_cpu*.so"))) == (compiler == "c++"), run.stderr
