"""Benchmark `roi_pool` against torchvision's operator (RoI pooling rows of BENCHMARKS.md).

    python scripts/bench_roi_pool.py [--device cpu|cuda] [--repeats 15] [--boxes FILE.mat] [--json FILE]

Each ratio is a median over turns. Our operator and torchvision's alternate in one process, on random inputs that are
generated at the start. Each gets its fastest memory format: contiguous features for torchvision, channels_last for
our operator. In rows marked NCHW, our operator also gets contiguous features. `--boxes` reads real selective search
boxes from a .mat file with `boxes` (x1 y1 x2 y2). By default, random boxes with a similar distribution are used. On a
GPU, rows also contain the bytes that must be moved per second, as a share of the copy bandwidth of the device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from measuring import Table, gpu_milliseconds, in_turn, machine_details, ratio_and_quartiles
from torch import Tensor

from fastrcnn.ops import roi_pool
from fastrcnn.ops.backends import choose_backend

HEIGHT, WIDTH, CHANNELS, SCALE = 38, 63, 512, 1 / 16  # conv5_3 of VGG16 for a 600 x 1000 image

LAST = torch.channels_last


@dataclass
class Row:
    what: str
    threads: int
    peer_ms: float
    ours_ms: float
    ratio: float
    spread: tuple[float, float]  # quartiles of the ratios per turn
    equal: bool
    goal: str
    share_of_copy_bandwidth: float | None = None


def drawn_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Generate boxes (count, 4) in a 600 x 1000 image, with log-uniform sides from 20 pixels like selective search."""
    longest = torch.tensor([1000.0, 600.0])
    sides = 20 * (longest / 20) ** torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * (longest - sides)
    return torch.cat([corners, corners + sides - 1], 1).round()


def read_boxes(path: Path, count: int, generator: torch.Generator) -> Tensor:
    from scipy.io import loadmat

    boxes = torch.from_numpy(loadmat(path)["boxes"].astype("float32"))
    boxes = boxes[torch.randint(len(boxes), (count,), generator=generator)] - boxes[:, :2].amin(0).repeat(2)
    extent = boxes[:, 2:].amax(0) + 1
    return (boxes * (torch.tensor([1000.0, 600.0]) / extent).repeat(2)).round()


def rois_for(images: int, count: int, boxes: Path | None, generator: torch.Generator) -> Tensor:
    drawn = read_boxes(boxes, count, generator) if boxes else drawn_boxes(count, generator)
    index = torch.arange(images).repeat_interleave(count // images)
    return torch.cat([index[:, None].float(), drawn], 1)


def theirs(features: Tensor, rois: Tensor) -> Tensor:
    return torchvision.ops.roi_pool(features, rois, 7, SCALE)


def ours(features: Tensor, rois: Tensor) -> Tensor:
    return roi_pool(features, rois, 7, SCALE, check_values=features.device.type == "cpu")  # as in fastrcnn/model


def train(op: Callable[[Tensor, Tensor], Tensor], features: Tensor, rois: Tensor, grad: Tensor) -> Tensor:
    features = features.detach().requires_grad_()
    op(features, rois).backward(grad)
    assert features.grad is not None
    return features.grad


def row(what: str, goal: str, spent: list[list[float]], equal: bool, share: float | None = None) -> Row:
    peer, own = spent
    ratio, spread = ratio_and_quartiles(peer, own)
    medians = statistics.median(peer), statistics.median(own)
    return Row(what, torch.get_num_threads(), *medians, ratio, spread, equal, goal, share)


def cpu_rows(repeats: int, boxes: Path | None, generator: torch.Generator) -> Iterator[Row]:
    features = torch.relu(torch.randn(1, CHANNELS, HEIGHT, WIDTH, generator=generator))
    last = features.contiguous(memory_format=LAST)
    rois = rois_for(1, 2000, boxes, generator)
    want = theirs(features, rois)
    buffer = torch.zeros_like(want)
    buffer_last = torch.zeros_like(want, memory_format=LAST)

    pair = torch.relu(torch.randn(2, CHANNELS, HEIGHT, WIDTH, generator=generator))
    pair_last = pair.contiguous(memory_format=LAST)
    some = rois_for(2, 128, boxes, generator)
    grad = torch.randint(-4, 5, (128, CHANNELS, 7, 7), generator=generator).float()  # sums are exact, so bit-equal
    grad_last = grad.contiguous(memory_format=LAST)
    want_grad = train(theirs, pair, some, grad)

    def peer() -> Tensor:
        return theirs(features, rois)

    def forward(what: str, goal: str, x: Tensor, out: Tensor | None) -> Row:
        def own() -> Tensor:
            return roi_pool(x, rois, 7, SCALE, out=out)

        return row(f"forward, K = 2000, {what}", goal, in_turn(repeats, peer, own), torch.equal(own(), want))

    def both(what: str, goal: str, x: Tensor, g: Tensor) -> Row:
        spent = in_turn(repeats, lambda: train(theirs, pair, some, grad), lambda: train(ours, x, some, g))
        return row(f"forward + backward, K = 128, {what}", goal, spent, torch.equal(train(ours, x, some, g), want_grad))

    for threads in (1, 2):
        torch.set_num_threads(threads)
        reused = ">= 15x" if threads == 1 else ">= 30x"
        yield forward("reused buffer", reused, last, buffer_last)
        yield forward("reused buffer, NCHW", reused, features, buffer)
        yield forward("fresh output", ">= 5x", last, None)
        yield forward("fresh output, NCHW", ">= 5x", features, None)
        yield both("2 images", ">= 4x", pair_last, grad_last)
        yield both("2 images, NCHW", ">= 4x", pair, grad)


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second, read and written, of a large copy on the device."""
    source = torch.empty(2**28, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    (spent,) = in_turn(10, lambda: target.copy_(source), clock=gpu_milliseconds)
    return 2 * source.numel() * 4 / (statistics.median(spent) / 1e3)


def cuda_rows(repeats: int, boxes: Path | None, generator: torch.Generator) -> Iterator[Row]:
    device = torch.device("cuda")
    bandwidth = copy_bandwidth(device)
    features = torch.relu(torch.randn(1, CHANNELS, HEIGHT, WIDTH, generator=generator)).to(device)
    rois = rois_for(1, 2000, boxes, generator).to(device)
    for dtype, peers in (
        (torch.float32, (torch.float32,)),
        (torch.bfloat16, (torch.float32, torch.float16, torch.bfloat16)),
    ):
        x = features.to(dtype).contiguous(memory_format=LAST)
        out = torch.empty((2000, CHANNELS, 7, 7), dtype=dtype, device=device).contiguous(memory_format=LAST)
        exact = theirs(x.float().contiguous(), rois)
        moved = (x.numel() + out.numel()) * x.element_size() + rois.numel() * 4
        for peer_type in peers:
            y = features.to(peer_type)
            peer_rois = rois.to(torch.float16) if peer_type == torch.float16 else rois

            def peer(y: Tensor = y, r: Tensor = peer_rois, auto: bool = peer_type == torch.bfloat16) -> Tensor:
                with torch.autocast("cuda", torch.bfloat16, enabled=auto):
                    return theirs(y, r)

            def own(x: Tensor = x, out: Tensor = out) -> Tensor:
                return roi_pool(x, rois, 7, SCALE, out=out, check_values=False)

            name = f"forward, K = 2000, {str(dtype)[6:]} compared to {str(peer_type)[6:]}"
            spent = in_turn(repeats, peer, own, clock=gpu_milliseconds)
            equal = torch.equal(own().float(), exact)
            share = moved / (statistics.median(spent[1]) / 1e3) / bandwidth
            yield row(name, ">= 4x; <= 0.12 ms in bfloat16", spent, equal, share)

    pair = torch.relu(torch.randn(2, CHANNELS, HEIGHT, WIDTH, generator=generator)).to(device)
    some = rois_for(2, 128, boxes, generator).to(device)
    grad = torch.randint(-4, 5, (128, CHANNELS, 7, 7), generator=generator).float().to(device)
    pair_last, grad_last = pair.contiguous(memory_format=LAST), grad.contiguous(memory_format=LAST)
    want = train(theirs, pair, some, grad)

    def in_order() -> Tensor:
        torch.use_deterministic_algorithms(True)
        try:
            return train(ours, pair_last, some, grad_last)
        finally:
            torch.use_deterministic_algorithms(False)

    def atomic() -> Tensor:
        return train(ours, pair_last, some, grad_last)

    for name, run in (("deterministic", in_order), ("atomic", atomic)):
        spent = in_turn(repeats, lambda: train(theirs, pair, some, grad), run, clock=gpu_milliseconds)
        yield row(f"forward + backward, K = 128, {name}", ">= 1x", spent, torch.equal(run(), want))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: all available devices")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--boxes", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(int(time.time()))
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    described = machine_details(device) | {"cpu_backend": choose_backend(torch.device("cpu")).__name__}
    columns = "row, threads, torchvision ms, ours ms, ratio, quartiles, goal, equal, share of copy bandwidth"
    table = Table(described, columns.split(", "), options.json)
    kinds = {"cpu": cpu_rows, "cuda": cuda_rows}
    for kind in [options.device] if options.device else ["cpu", "cuda"][: 1 + torch.cuda.is_available()]:
        for r in kinds[kind](options.repeats, options.boxes, generator):
            share = "" if r.share_of_copy_bandwidth is None else f"{r.share_of_copy_bandwidth:.0%}"
            times = [
                f"{r.peer_ms:.2f}",
                f"{r.ours_ms:.2f}",
                f"{r.ratio:.1f}x",
                f"{r.spread[0]:.1f} to {r.spread[1]:.1f}",
            ]
            table.add([r.what, str(r.threads), *times, r.goal, "yes" if r.equal else "NO", share], asdict(r))


if __name__ == "__main__":
    main()
