"""The CUDA backend: what NVRTC makes of the source, anywhere; the kernels themselves, where there is a GPU.

That the source computes the right numbers is shown without a GPU too, by the backend `cuda-on-host` of the other tests.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from roi_cases import expected, same
from torch import Tensor

from fastrcnn.ops import cuda, roi_pool

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
KERNELS = 4

needs_nvrtc = pytest.mark.skipif(cuda.nvrtc() is None, reason="no NVRTC: not a CUDA wheel of torch")


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiles_without_a_spill_or_an_approximation(arch: str) -> None:
    for value in range(4):
        cubin, log = cuda.compile_kernel(cuda.SOURCE, arch, [f"VALUE={value}"])
        assert cubin[:4] == b"\x7fELF"
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
        assert spills == [("0", "0")] * KERNELS, log
        code, _ = cuda.compile_kernel(cuda.SOURCE, arch.replace("sm", "compute"), [f"VALUE={value}"])
        ptx = code.decode()
        assert "div.rn.f32" in ptx  # the width of a bin
        assert not re.findall(r"\b(?:div\.approx|div\.full|rcp|ex2|fma)\S*f32|\S*\.approx\S*|\S*\.ftz\S*", ptx)
        kernel = re.search(r"\.entry roi_pool_forward\((.*?)\n}", ptx, re.DOTALL)
        assert kernel
        loads = re.findall(r"ld\.global\S*", kernel[1])
        assert len([load for load in loads if "v4" not in load]) == 5, "an RoI's five numbers; all else has 128 bits"


@needs_nvrtc
def test_a_device_newer_than_the_compiler_gets_ptx() -> None:
    assert cuda.target(9, 0) == "sm_90"
    newest = cuda.target(99, 0)
    assert re.fullmatch(r"compute_\d+", newest)
    code, _ = cuda.compile_kernel(cuda.SOURCE, newest, ["VALUE=1"])
    assert f".target sm_{newest.removeprefix('compute_')}" in code.decode()


@needs_nvrtc
def test_a_mistake_in_the_source_is_shown(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void f() { nonsense; }")
    with pytest.raises(RuntimeError, match=r"(?s)could not compile wrong\.cu for sm_90.*nonsense"):
        cuda.compile_kernel(source, "sm_90", [])


@needs_nvrtc
def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "kernel.cu"
    source.write_text('extern "C" __global__ void f(int* x) { *x = VALUE; }')
    folder = tmp_path / "cache" / "fastrcnn"

    first = cuda.cached_kernel(source, "sm_80", ["VALUE=1"])
    (file,) = folder.iterdir()
    assert file.read_bytes() == first
    assert "sm_80" in file.name
    file.write_bytes(b"from the disk")
    assert cuda.cached_kernel(source, "sm_80", ["VALUE=1"]) == b"from the disk"

    cuda.cached_kernel(source, "sm_90", ["VALUE=1"])  # another architecture, definition, source: another file
    cuda.cached_kernel(source, "sm_80", ["VALUE=2"])
    source.write_text('extern "C" __global__ void f(int* x) { *x = VALUE + 1; }')
    cuda.cached_kernel(source, "sm_80", ["VALUE=1"])
    assert len(list(folder.iterdir())) == 4

    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert cuda.cached_kernel(source, "sm_80", ["VALUE=1"])[:4] == b"\x7fELF"


def test_the_compilers_builtins_are_loaded_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC 13.0's wheel does not tell the loader where they are. Then nothing compiles unless they are loaded."""
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    for name in ("libnvrtc.so.13", "libnvrtc-builtins.so.13.0"):
        (folder / name).touch()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    opened: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda path: opened.append(Path(path).name))
    cuda.nvrtc.__wrapped__()
    assert opened[:2] == ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"]


def test_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.missing() == "torch found no CUDA device"


# --- with a GPU ---

Pool = Callable[..., Tensor]


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def vgg_case(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2, 512, 38, 63, generator=g).to(device, dtype)
    corners = torch.rand(300, 2, 2, generator=g) * torch.tensor([1100, 700]) - 50
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    rois = torch.cat([torch.randint(2, (300, 1), generator=g).float(), boxes], 1).to(device)
    return features.contiguous(memory_format=torch.channels_last), rois


@pytest.mark.gpu
def test_gpu_equals_the_reference(gpu: torch.device) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        for seed in range(300):
            case, want, grad, want_gradient = expected(seed)
            x = case.features.to(gpu).requires_grad_()
            got = roi_pool(x, case.rois.to(gpu), case.size, case.scale, case.variant)
            assert same(got.cpu(), want), f"seed {seed}"
            plain = roi_pool(x.detach(), case.rois.to(gpu), case.size, case.scale, case.variant)
            assert same(plain.cpu(), want), f"seed {seed}, without a gradient"
            got.backward(grad.to(gpu))
            assert x.grad is not None
            assert torch.equal(x.grad.cpu(), want_gradient), f"seed {seed}, gradient"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gpu_equals_torchvision(gpu: torch.device, dtype: torch.dtype) -> None:
    """For float16, torchvision is given float32 features of the same values: its float16 RoIs would be elsewhere."""
    features, rois = vgg_case(gpu, dtype)
    ours, theirs = features.clone().requires_grad_(), features.float().contiguous().requires_grad_()
    got, want = roi_pool(ours, rois, 7, 1 / 16), torchvision.ops.roi_pool(theirs, rois, 7, 1 / 16)
    assert torch.equal(got.float(), want)
    grad = torch.randint(-2, 3, want.shape, device=gpu)  # exact sums, whatever their order
    got.backward(grad.to(dtype))
    want.backward(grad.float())
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad.float(), theirs.grad)


@pytest.mark.gpu
def test_gpu_second_derivative_is_the_cpus(gpu: torch.device) -> None:
    """Of whole numbers, whose sums are exact in any order."""

    def second(device: torch.device) -> Tensor:
        features, rois = vgg_case(device)
        x = (features * 4).round().requires_grad_()
        (first,) = torch.autograd.grad((roi_pool(x, rois, 7, 1 / 16) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x)[0].cpu()

    want = second(torch.device("cpu"))
    assert want.sum() > 0
    assert torch.equal(second(gpu), want)


@pytest.mark.gpu
def test_gpu_bfloat16_stays_under_autocast(gpu: torch.device) -> None:
    features, rois = vgg_case(gpu, torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        got = roi_pool(features, rois, 7, 1 / 16)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got.float(), torchvision.ops.roi_pool(features.float(), rois, 7, 1 / 16))


@pytest.mark.gpu
def test_gpu_deterministic_backward_repeats_itself(gpu: torch.device) -> None:
    features, rois = vgg_case(gpu)
    grad = torch.randn(300, 512, 7, 7, generator=torch.Generator().manual_seed(1)).to(gpu)
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(20):
            x = features.clone(memory_format=torch.preserve_format).requires_grad_()
            roi_pool(x, rois, 7, 1 / 16).backward(grad)
            runs.append(x.grad)
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert run is not None
        assert runs[0] is not None
        assert torch.equal(run, runs[0])


@pytest.mark.gpu
def test_gpu_uses_the_current_stream(gpu: torch.device) -> None:
    """On another stream the features come late: a kernel on the wrong stream would pool what was there before."""
    features, rois = vgg_case(gpu)
    want = roi_pool(features, rois, 7, 1 / 16)
    late = torch.zeros_like(features)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(features)
        got = roi_pool(late, rois, 7, 1 / 16, check_values=False)
    stream.synchronize()
    assert torch.equal(got, want)


@pytest.mark.gpu
def test_gpu_other_device(gpu: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("only one CUDA device")
    features, rois = vgg_case(torch.device("cuda:1"))
    assert torch.equal(roi_pool(features, rois, 7, 1 / 16).cpu(), roi_pool(features.cpu(), rois.cpu(), 7, 1 / 16))
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
def test_gpu_names_the_argument_at_fault(gpu: torch.device) -> None:
    features, rois = vgg_case(gpu)
    rois[5, 0] = 2
    with pytest.raises(ValueError, match=r"rois: batch index 2 of RoI 5 is out of range for features of 2 image\(s\)"):
        roi_pool(features, rois, 7, 1 / 16)
    with pytest.raises(ValueError, match="rois: expected a tensor on cuda:0, the device of features, got cpu"):
        roi_pool(features, rois.cpu(), 7, 1 / 16)


@pytest.mark.gpu
def test_gpu_compiles_in_one_graph(gpu: torch.device) -> None:
    features, rois = vgg_case(gpu)
    compiled = torch.compile(lambda x: roi_pool(x * 2, rois, 7, 1 / 16), fullgraph=True)
    assert torch.equal(compiled(features), roi_pool(features * 2, rois, 7, 1 / 16))
