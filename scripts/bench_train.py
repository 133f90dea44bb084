"""Benchmark a training step against Fast R-CNN built from torchvision's components (training rows of BENCHMARKS.md).

    python scripts/bench_train.py [--device cpu|cuda] [--repeats 7] [--threads N] [--profile FOLDER] [--json FILE]

The peer consists of torchvision's VGG16 features without the last pooling, torchvision.ops.roi_pool, the same fully
connected layers and outputs, cross_entropy and smooth_l1, and torch.optim.SGD, with the same frozen layers. In rows
marked "slim", both have a quarter of the channels and batch normalisation. They alternate in one process on the same
random images and RoIs, new ones each turn. A step starts with uint8 images on the host and ends with the updated
weights. Peak memory is measured in a separate process for each, relative to the usage before the first step. The loader
time is the time to load a batch from JPEG files on one core.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from measuring import (
    Table,
    in_turn,
    jpeg_images,
    machine_details,
    matmul_rate,
    milliseconds,
    peak_above_now,
    ratio_and_quartiles,
    work,
)
from torch import Tensor, nn
from torch.nn import functional

from fastrcnn.data.loader import training_loader
from fastrcnn.data.transforms import Augmentation
from fastrcnn.inference.network import autocast
from fastrcnn.model.fast_rcnn import IMAGENET_MEAN, IMAGENET_STD, FastRCNN, freeze_before
from fastrcnn.model.loss import fast_rcnn_loss
from fastrcnn.structures import RoITargets
from fastrcnn.training.optim import clip_gradients, make_optimizer, set_rate

CLASSES, IMAGES, PER_IMAGE = 20, 2, 64
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
CASES = {"slim": (0.25, True, (320, 480)), "full": (1.0, False, (600, 1000))}  # width, batch_norm, image size
Inputs = tuple[Tensor, Tensor, RoITargets]


class Peer(nn.Module):
    """Fast R-CNN built from torchvision's components."""

    def __init__(self, width: float, batch_norm: bool) -> None:
        super().__init__()
        plan: list[str | int] = []
        for channels, number in STAGES:
            plan += [*[round(channels * width)] * number, "M"]
        plan.pop()
        self.features = torchvision.models.vgg.make_layers(plan, batch_norm=batch_norm)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        top, wide = round(512 * width), round(4096 * width)
        fc6, fc7 = nn.Linear(top * 49, wide), nn.Linear(wide, wide)
        self.head = nn.Sequential(nn.Flatten(), fc6, nn.ReLU(True), nn.Dropout(), fc7, nn.ReLU(True), nn.Dropout())
        self.scores, self.boxes = nn.Linear(wide, CLASSES + 1), nn.Linear(wide, 4 * (CLASSES + 1))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.features((images.float() - self.mean) / self.std)
        x = self.head(torchvision.ops.roi_pool(maps.float(), rois, 7, 1 / 16))  # does not support bfloat16 on a CPU
        return self.scores(x).float(), self.boxes(x).float()


def inputs(size: tuple[int, int], generator: torch.Generator) -> Inputs:
    """Generate random images, half-open RoIs (K, 5) and their targets."""
    height, width = size
    images = torch.randint(0, 256, (IMAGES, 3, height, width), generator=generator, dtype=torch.uint8)
    longest = torch.tensor([float(width), float(height)])
    sides = 20 * (longest / 20) ** torch.rand(IMAGES * PER_IMAGE, 2, generator=generator)
    corners = torch.rand(len(sides), 2, generator=generator) * (longest - sides)
    index = torch.arange(IMAGES).repeat_interleave(PER_IMAGE)[:, None].float()
    rois = torch.cat([index, torch.cat([corners, corners + sides], 1).round()], 1)
    labels = torch.randint(1, CLASSES + 1, (len(sides),), generator=generator)
    labels[torch.arange(len(sides)) % 4 != 0] = 0  # a quarter foreground
    deltas = torch.randn(len(sides), 4, generator=generator) * (labels > 0)[:, None]
    return images, rois, RoITargets(labels, deltas)


def our_step(case: str, device: torch.device, dtype: torch.dtype) -> Callable[[Inputs], float]:
    width, batch_norm, _ = CASES[case]
    model = FastRCNN(CLASSES, width, batch_norm)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if case == "full":
        freeze_before(model, "conv3_1")
    optimizer = make_optimizer(model, optimizer="fused_sgd")

    def step(given: Inputs) -> float:
        images, rois, targets = given
        set_rate(optimizer, 1e-4)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            logits, deltas = model(images.to(device), rois.to(device))
        wanted = RoITargets(targets.labels.to(device), targets.deltas.to(device))
        loss = fast_rcnn_loss(logits, deltas, wanted).total
        total = loss.item()
        loss.backward()
        clip_gradients(optimizer)
        optimizer.step()
        return total

    return step


def peer_step(case: str, device: torch.device, dtype: torch.dtype) -> Callable[[Inputs], float]:
    width, batch_norm, _ = CASES[case]
    model = Peer(width, batch_norm).to(device).train()
    if case == "full":
        model.features[:10].requires_grad_(False)  # conv1_1 to the second pooling
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def step(given: Inputs) -> float:
        images, rois, targets = given
        inclusive = rois - rois.new_tensor([0, 0, 0, 1, 1])
        labels, wanted = targets.labels.to(device), targets.deltas.to(device)
        with autocast(device, dtype):
            logits, boxes = model(images.to(device), inclusive.to(device))
        own = boxes.view(len(boxes), CLASSES + 1, 4)[torch.arange(len(boxes), device=device), labels]
        foreground = labels > 0
        box = functional.smooth_l1_loss(own[foreground], wanted[foreground], reduction="sum") / len(labels)
        loss = functional.cross_entropy(logits, labels) + box
        total = loss.item()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return total

    return step


STEPS = {"torchvision": peer_step, "ours": our_step}


def alternate(
    case: str, device: torch.device, dtype: torch.dtype, repeats: int
) -> tuple[dict[str, list[float]], float]:
    """Return the milliseconds of each step by implementation, and the TFLOP of one of our steps."""
    steps = {name: make(case, device, dtype) for name, make in STEPS.items()}
    generator = torch.Generator().manual_seed(int(time.time()))

    def draw() -> tuple[Inputs]:
        return (inputs(CASES[case][2], generator),)

    def waited_for(step: Callable[[], object]) -> float:
        return milliseconds(lambda: (step(), torch.cuda.synchronize() if device.type == "cuda" else None))

    times = in_turn(repeats, *steps.values(), draw=draw, clock=waited_for, skip=2)
    return dict(zip(steps, times, strict=True)), work(lambda: steps["ours"](*draw()))


def peak(name: str, case: str, device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak memory in MiB during two steps, above the usage before.

    On a CPU, call it in a separate process.
    """
    step = STEPS[name](case, device, dtype)
    given = inputs(CASES[case][2], torch.Generator().manual_seed(0))
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(given), step(given)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return peak_above_now(lambda: step(given), times=2)


def peak_apart(name: str, case: str, device: str, precision: str) -> float:
    """Return the result of `peak`, measured in a separate process, or in this process on a GPU."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return peak(name, case, torch.device(device), getattr(torch, precision))
    command = [sys.executable, __file__, "--device", device, "--threads", str(torch.get_num_threads())]
    done = subprocess.run([*command, "--peak-of", name, case, precision], capture_output=True, text=True, check=True)
    return float(done.stdout)


def loader_seconds(size: tuple[int, int]) -> float:
    """Return the median seconds to load a batch in one process, from 500 x 375 JPEG files with 2,000 proposals each."""
    with tempfile.TemporaryDirectory() as folder:
        data = jpeg_images(Path(folder), 8, Augmentation((size[0],), size[1]))
        batches = iter(training_loader(data, IMAGES))
        spent = []
        for _ in range(12):
            start = time.perf_counter()
            next(batches)
            spent.append(time.perf_counter() - start)
    return statistics.median(spent[2:])


def profiled(case: str, device: torch.device, dtype: torch.dtype, folder: Path) -> None:
    """Profile three steps of each implementation and write the slowest operations to NAME-CASE.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    given = inputs(CASES[case][2], torch.Generator().manual_seed(0))
    for name, make in STEPS.items():
        step = make(case, device, dtype)
        step(given)
        with torch.profiler.profile() as found:
            for _ in range(3):
                step(given)
        order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=40)
        (folder / f"{name}-{case}.txt").write_text(table + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)  # NAME CASE DTYPE: measures one peak
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 must not use TF32
    if options.peak_of:
        name, case, dtype = options.peak_of
        print(peak(name, case, device, getattr(torch, dtype)))
        return

    described = machine_details(device)
    columns = "row, torchvision ms, ours ms, ratio, quartiles, share of the rate of a large matrix product, images/s"
    columns += ", loader ms, peak MiB of torchvision, peak MiB of ours"
    table = Table(described, columns.split(", "), options.json)
    for case in options.cases:
        size = CASES[case][2]
        loading = loader_seconds(size) * 1e3
        for dtype in (torch.bfloat16, torch.float32):
            precision = str(dtype).removeprefix("torch.")
            if options.profile and dtype == torch.bfloat16:
                profiled(case, device, dtype, options.profile)
            times, tflop = alternate(case, device, dtype, options.repeats)
            medians = {name: statistics.median(spent) for name, spent in times.items()}
            ratio, spread = ratio_and_quartiles(times["torchvision"], times["ours"])
            peaks = {name: peak_apart(name, case, options.device, precision) for name in STEPS}
            row = {
                "row": f"{case} VGG16, {IMAGES} x {size[0]} x {size[1]}, {IMAGES * PER_IMAGE} RoIs, {precision}",
                "ms": medians,
                "ratio": ratio,
                "quartiles": spread,
                "share_of_matmul_rate": tflop * 1e3 / medians["ours"] / matmul_rate(device, dtype),
                "images_per_s": IMAGES * 1e3 / medians["ours"],
                "loader_ms": loading,
                "peak_mib": peaks,
            }
            times = [f"{medians['torchvision']:.4g}", f"{medians['ours']:.4g}", f"{ratio:.2f}x"]
            times += [f"{spread[0]:.2f} to {spread[1]:.2f}", f"{row['share_of_matmul_rate']:.0%}"]
            memory = [f"{peaks['torchvision']:.0f}", f"{peaks['ours']:.0f}"]
            table.add([row["row"], *times, f"{row['images_per_s']:.3g}", f"{loading:.0f}", *memory], row)


if __name__ == "__main__":
    main()
