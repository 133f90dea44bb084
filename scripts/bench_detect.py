"""Benchmark detection against a detector built from torchvision's components (detection rows of BENCHMARKS.md).

    python scripts/bench_detect.py [--device cpu|cuda] [--repeats 7] [--threads N] [--boxes FILE.mat] [--quick]
                                   [--photos FOLDER] [--json FILE]

The peer (detect_peer.py) consists of torchvision's VGG16 features without the last pooling, torchvision.ops.roi_pool,
the same fully connected layers and outputs, softmax, box decoding and clipping. As in torchvision's RoIHeads, it then
drops scores below 0.05 and applies torchvision.ops.batched_nms. It uses float32 on the CPU and bfloat16 autocast on a
GPU.

Both detectors have the same weights. They alternate in one process on new random images, from a uint8 image of 500 x
375 and 2,000 boxes to detections. The ratio is the median of the ratios per turn, with quartiles. The weights are
random and scaled so that about 2,700 pairs of RoI and class score 0.05 or more, which is more than in a photograph.
`--boxes` reads real selective search boxes from a .mat file with `boxes` (zero-based x1 y1 x2 y2). About a fifth of
these coincide at scale 1/16, while random boxes rarely do. Peak memory is measured in a separate process for each
detector, relative to the usage before the first detection.

`--photos` measures detection including proposal generation, on photographs from a folder. For single images, the peer
generates proposals with OpenCV and uses the same network. For a folder of 12 files, the peer generates proposals for
one image per core, then runs the network on these images, and then continues with the next ones.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
import torchvision
from bench_train import CLASSES
from detect_peer import HEIGHT, SCALE, SETTINGS, WIDTH, Detect, on_device, peer_detection, peer_head, peer_of, scaled
from measuring import Table, in_turn, machine_details, matmul_rate, peak_above_now, ratio_and_quartiles, work
from torch import Tensor

from fastrcnn import boxes as box_ops
from fastrcnn.data.transforms import Augmentation
from fastrcnn.inference.detector import Detector, as_array
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN, round_weights
from fastrcnn.model.postprocess import best_boxes
from fastrcnn.parallel.ahead import threads
from fastrcnn.proposals import kernel
from fastrcnn.proposals.selective_search import propose
from fastrcnn.settings import SelectiveSearchSettings
from fastrcnn.structures import Detections

ROIS = 2000
BORDER = (WIDTH, HEIGHT, WIDTH, HEIGHT)
FOLDER = 12  # images
SEARCH = SelectiveSearchSettings(mode="quality", min_side=16)  # settings of data=voc07
RANKS = (1024, 256)  # of fc6 and fc7, as in section 4.4 of the paper; random factors are as fast as SVD factors


@dataclass
class Row:
    what: str
    peer: float  # milliseconds, or MiB
    ours: float
    ratio: float
    spread: tuple[float, float]  # quartiles of the ratios per turn
    goal: str
    same: str = ""  # agreement with the peer in float32
    of_ceiling: float | None = None  # our rate as a fraction of the rate of a large matrix product


class Inputs:
    """Generate a random image (H, W, 3) uint8 and half-open boxes (ROIS, 4), which are new on each call."""

    def __init__(self, seed: int, file: Path | None) -> None:
        self.rng = np.random.default_rng(seed)
        self.boxes = None
        if file is not None:
            from scipy.io import loadmat

            read = loadmat(str(file))["boxes"].astype(np.float32) + np.float32([0, 0, 1, 1])
            read = np.minimum(read, np.float32(BORDER))
            self.boxes = read[(read[:, 2:] > read[:, :2]).all(1)]

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        coarse = self.rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        if self.boxes is not None:
            return picture, self.rng.permutation(self.boxes)[:ROIS]
        longest = np.float32([WIDTH, HEIGHT])
        sides = 20 * (longest / 20) ** self.rng.random((ROIS, 2), dtype=np.float32)
        corners = self.rng.random((ROIS, 2), dtype=np.float32) * (longest - sides)
        return picture, np.concatenate([corners, corners + sides], 1).round()


@torch.no_grad()
def network(device: torch.device, inputs: Inputs, ranks: tuple[int | None, int | None] = (None, None)) -> FastRCNN:
    """Return VGG16 of width 1 with random weights and with the given ranks of fc6 and fc7.

    Over the RoIs of an image, the standard deviation of the logits of a class is 2, that of its unscaled deltas is 1.
    """
    torch.manual_seed(0)
    model = FastRCNN(CLASSES, fc6_rank=ranks[0], fc7_rank=ranks[1]).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    model.delta_std[:] = model.delta_std.new_tensor([0.1, 0.1, 0.2, 0.2])
    picture, boxes = inputs()
    maps = model.features(scaled(picture).to(device))
    logits, deltas = model.classify(maps, on_device(boxes[::8], device))
    for layer, out, deviation in ((model.cls_score, logits, 2.0), (model.bbox_pred, deltas.flatten(1), 1.0)):
        layer.weight *= (deviation / out.std(0))[:, None]
        layer.bias -= out.mean(0) * deviation / out.std(0)
    model.cls_score.bias[0] += 6
    return model


def our_detector(
    model: FastRCNN, dtype: torch.dtype, propose: Callable[[np.ndarray], np.ndarray] = propose
) -> Detector:
    """Return a detector like that of `fastrcnn.load`. Rounds the weights of the model to `dtype`."""
    round_weights(model, dtype)
    names = [str(i) for i in range(CLASSES)]
    scaling = Augmentation((round(HEIGHT * SCALE),), 1000, flip=False)
    return Detector(TorchNetwork(model, dtype), names, SETTINGS, scaling, propose)


def our_detection(model: FastRCNN, dtype: torch.dtype) -> Detect:
    return our_detector(model, dtype).detect


def our_head(model: FastRCNN, dtype: torch.dtype) -> Callable[[Tensor, np.ndarray], Detections]:
    round_weights(model, dtype)
    network, device = TorchNetwork(model, dtype), model.delta_mean.device

    @torch.no_grad()
    def detect(maps: Tensor, boxes: np.ndarray) -> Detections:
        scores, deltas = network.roi_outputs([maps], on_device(boxes, torch.device("cpu")), SETTINGS.rois_per_chunk)
        found = box_ops.clip(box_ops.decode(torch.from_numpy(boxes).to(device), deltas), HEIGHT, WIDTH)
        kept = best_boxes(scores, found, SETTINGS)
        return Detections(kept.boxes.cpu(), kept.scores.cpu(), kept.labels.cpu())

    return detect


def row(what: str, goal: str, peer: list[float], ours: list[float], same: str = "") -> Row:
    ratio, spread = ratio_and_quartiles(peer, ours)
    return Row(what, statistics.median(peer), statistics.median(ours), ratio, spread, goal, same)


def detection_rows(device: torch.device, inputs: Inputs, repeats: int) -> list[Row]:
    """Measure detection of an image, from pixels to detections, in float32 and bfloat16."""
    cuda = device.type == "cuda"
    model = network(device, inputs)
    reference = peer_detection(model, torch.float32)
    peer = peer_detection(model, torch.bfloat16) if cuda else reference
    exact, rounded = our_detection(copy.deepcopy(model), torch.float32), our_detection(model, torch.bfloat16)
    given = inputs()
    want = reference(*given)
    theirs, ours32, ours16 = in_turn(repeats, peer, exact, rounded, draw=inputs)
    goal = ">= 2x; <= 4 ms" if cuda else ">= 3x"
    rows = [
        row("detection of one image, float32", "", theirs, ours32, matched(exact(*given), want, 0.01, 1e-4)),
        row("detection of one image, bfloat16", goal, theirs, ours16, matched(rounded(*given), want, 0.5, 0.02)),
    ]
    for r, run, dtype in zip(rows, (exact, rounded), (torch.float32, torch.bfloat16), strict=True):
        r.of_ceiling = work(partial(run, *given)) * 1e3 / r.ours / matmul_rate(device, dtype)
    return rows


def photo_rows(device: torch.device, inputs: Inputs, repeats: int, folder: Path) -> Iterator[Row]:
    """Measure detection including proposal generation, for one photograph and for a folder of files."""
    model, rng = network(device, inputs), np.random.default_rng(int(time.time()))
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".png"))

    def draw() -> tuple[list[Path]]:
        return ([files[i] for i in rng.choice(len(files), FOLDER)],)

    def by_opencv(detector: Detector, image: np.ndarray) -> Detections:
        with mock.patch.object(kernel, "library", return_value=None):
            return detector.detect(image)

    def in_phases(detector: Detector, paths: list[Path]) -> None:
        with ThreadPool(threads()) as pool:
            for start in range(0, len(paths), threads()):
                images = [as_array(path) for path in paths[start : start + threads()]]
                detector.detect(images, pool.map(detector.propose, images, chunksize=1))

    for dtype, goal in ((torch.bfloat16, ">= 1.5x"), (torch.float32, ">= 1.3x")):
        detector = our_detector(copy.deepcopy(model), dtype, partial(propose, settings=SEARCH))
        name = str(dtype).removeprefix("torch.")
        spent = in_turn(repeats, partial(by_opencv, detector), detector.detect, draw=lambda: (as_array(draw()[0][0]),))
        yield row(f"one image including proposals, {name}, compared to OpenCV's selective search", goal, *spent)
        if dtype == torch.bfloat16:  # most of the time is spent on proposals
            spent = in_turn(-(-repeats // 3), partial(in_phases, detector), detector.detect, draw=draw)
            each = [[ms / FOLDER for ms in turns] for turns in spent]
            yield row(f"image from a folder, {name}, compared to sequential stages", ">= 1x", *each)


def matched(found: Detections, want: Detections, pixels: float, score: float) -> str:
    """Return as text how many detections in `want` were found with the same class and within these tolerances."""
    near = (found.boxes[None] - want.boxes[:, None]).abs().amax(2) <= pixels  # (want, found)
    near &= (found.scores[None] - want.scores[:, None]).abs() <= score
    near &= found.labels[None] == want.labels[:, None]
    return f"{int(near.any(1).sum())} of {len(want)} within {pixels:g} px and {score:g}"


def head_rows(device: torch.device, inputs: Inputs, repeats: int) -> list[Row]:
    """Measure pooling, fc6, fc7, the outputs and non-maximum suppression on the feature map of an image."""
    whole, low = network(device, inputs), network(device, inputs, RANKS)
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    peer, runs = peer_head(whole, dtype), []
    for model in (whole, low):
        runs += [our_head(copy.deepcopy(model), torch.float32), our_head(model, torch.bfloat16)]
    maps = peer_of(network(device, inputs)).features(scaled(inputs()[0]).to(device).float() / 60 - 2).detach()
    last = maps.contiguous(memory_format=torch.channels_last)

    def ours(run: Callable, x: Tensor) -> Callable:
        return lambda boxes: run(x, boxes)

    feeds = [last, last.bfloat16()] * 2
    own = [ours(run, x) for run, x in zip(runs, feeds, strict=True)]
    theirs, *spent = in_turn(repeats, ours(peer, maps), *own, draw=lambda: inputs()[1:])
    names = ("float32", "bfloat16", "float32, SVD 1024 and 256", "bfloat16, SVD 1024 and 256")
    goals = ("", "", ">= 4x", ">= 4x")
    return [row(f"detection head, {n}", g, theirs, s) for n, g, s in zip(names, goals, spent, strict=True)]


def nms_row(device: torch.device, inputs: Inputs, repeats: int) -> Row:
    """Measure NMS for 20 classes x 2,000 boxes.

    `best_boxes` drops low scores before NMS. The peer runs NMS on all boxes of each class. Boxes are RoIs that are
    shifted slightly for each class. About 500 of the 40,000 scores are 0.05 or more.
    """
    generator = torch.Generator().manual_seed(int(time.time()))

    def draw() -> tuple[Tensor, Tensor]:
        logits = 2 * torch.randn(ROIS, CLASSES + 1, generator=generator)
        logits[:, 0] += 9
        deltas = 0.1 * torch.randn(ROIS, CLASSES + 1, 4, generator=generator)
        boxes = box_ops.clip(box_ops.decode(torch.from_numpy(inputs()[1]), deltas), HEIGHT, WIDTH)
        return logits.softmax(1).to(device), boxes.to(device)

    def peer(scores: Tensor, boxes: Tensor) -> list[Tensor]:
        found = []
        for label in range(1, CLASSES + 1):
            own, at = boxes[:, label].contiguous(), scores[:, label].contiguous()
            kept = torchvision.ops.nms(own, at, SETTINGS.nms_iou)
            found.append(own[kept[at[kept] >= 0.05]].cpu())
        return found

    def ours(scores: Tensor, boxes: Tensor) -> Tensor:
        return best_boxes(
            scores, boxes, replace(SETTINGS, score_threshold=0.05, max_per_class=None, max_per_image=None)
        ).boxes.cpu()

    given = draw()
    same = sorted(torch.cat(peer(*given)).tolist()) == sorted(ours(*given).tolist())
    spent = in_turn(3 * repeats, peer, ours, draw=draw)
    return row(
        "NMS, 20 classes x 2,000 boxes, score threshold 0.05", ">= 50x", *spent, "equal" if same else "NOT EQUAL"
    )


def peak(name: str, device: torch.device, inputs: Inputs) -> float:
    """Return the peak memory in MiB during two detections, above the usage before.

    On a CPU, call it in a separate process.
    """
    model = network(device, inputs)
    given = inputs()
    run: Callable
    if name == "pooling":  # only torchvision's pooling: output and argmax
        given = (torch.rand(1, 512, 38, 50, device=device), on_device(given[1], device))
        run = partial(torchvision.ops.roi_pool, output_size=7, spatial_scale=1 / 16)
    elif name == "torchvision":
        run = peer_detection(model, torch.bfloat16 if device.type == "cuda" else torch.float32)
    else:
        run = our_detection(model, getattr(torch, name))
    run(given[0], given[1][:8])  # load the libraries before the measurement, because they use memory too
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            run(*given)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return peak_above_now(lambda: run(*given), times=2)


def memory_rows(options: argparse.Namespace) -> list[Row]:
    peaks = {}
    for name in ("pooling", "torchvision", "float32", "bfloat16"):
        if options.device == "cuda":
            torch.cuda.empty_cache()
            peaks[name] = peak(name, torch.device("cuda"), Inputs(0, options.boxes))
            continue
        command = [sys.executable, __file__, "--device", options.device, "--threads", str(torch.get_num_threads())]
        command += ["--boxes", str(options.boxes)] if options.boxes else []
        done = subprocess.run([*command, "--peak-of", name], capture_output=True, text=True, check=True)
        peaks[name] = float(done.stdout)
    rows = []
    for name in ("float32", "bfloat16"):
        for against, goal in (("torchvision", ">= 2x"), ("pooling", ">= 4x")):
            what = {"torchvision": "the peer", "pooling": "torchvision's pooling only"}[against]
            rows.append(
                row(f"peak MiB of a detection, {name}, compared to {what}", goal, [peaks[against]], [peaks[name]])
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--boxes", type=Path)
    parser.add_argument("--photos", type=Path, help="measure only detection with proposals, on images from this folder")
    parser.add_argument("--quick", action="store_true", help="only two turns per row, without peak memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # measures one peak in this process
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, inputs = torch.device(options.device), Inputs(int(time.time()), options.boxes)
    torch.backends.cudnn.allow_tf32 = False  # float32 must not use TF32
    if options.peak_of:
        print(peak(options.peak_of, device, inputs))
        return
    columns = "row, peer (ms or MiB), ours, ratio, quartiles, goal, agreement with the peer"
    columns += ", share of the rate of a large matrix product"
    table = Table(machine_details(device), columns.split(", "), options.json)
    repeats = 2 if options.quick else options.repeats
    parts: list[Callable[[], Iterable[Row]]] = [
        lambda: [nms_row(device, inputs, repeats)],
        lambda: detection_rows(device, inputs, repeats),
        lambda: head_rows(device, inputs, repeats),
        lambda: [] if options.quick else memory_rows(options),
    ]
    if options.photos:
        parts = [lambda: photo_rows(device, inputs, repeats, options.photos)]
    for part in parts:
        for r in part():
            low, high = r.spread
            share = "" if r.of_ceiling is None else f"{r.of_ceiling:.0%}"
            measured = [f"{r.peer:.4g}", f"{r.ours:.4g}", f"{r.ratio:.2f}x", f"{low:.2f} to {high:.2f}"]
            table.add([r.what, *measured, r.goal, r.same, share], asdict(r))


if __name__ == "__main__":
    main()
