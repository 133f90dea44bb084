"""Detection against a composition of torchvision's parts: the detection rows of BENCHMARKS.md.

    python scripts/bench_detect.py [--device cpu|cuda] [--repeats 7] [--threads N] [--boxes FILE.mat] [--quick]
                                   [--photos FOLDER] [--json FILE]

The peer (detect_peer.py) is torchvision's VGG16 features without the last pooling, torchvision.ops.roi_pool, the same
fully connected layers and outputs, softmax, decoding, clipping, and what torchvision's RoIHeads do then: scores below
.05 go, then torchvision.ops.batched_nms. On the CPU it computes in float32, on a GPU under autocast in bfloat16. Both
have the same weights, and take turns in one process on pictures drawn afresh, from a uint8 picture of 500 x 375 and
2,000 boxes to detections; a ratio is the median of the turns' ratios, with their quartiles. Weights are random, the
outputs' such that some 2,700 pairs of a RoI and a class score .05, more than in a photograph. `--boxes` reads real
selective-search boxes (a .mat file with `boxes`, x1 y1 x2 y2 from 0), of which a fifth or so coincide at 1/16; drawn
ones hardly ever do. Peak memory is that of a process of its own for each, above what it has before its first
detection.

`--photos` measures detection with its proposals instead, on photographs drawn from a folder. One image: the peer's
proposals are OpenCV's, and the network is the same. A folder of twelve, from files: the peer makes the proposals of as
many images as there are cores, then the network looks at these, then the next ones come.
"""

from __future__ import annotations

import argparse
import copy
import json
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
from measuring import in_turn, machine_details, matmul_rate, peak_above_now, ratio_and_quartiles, work
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
SEARCH = SelectiveSearchSettings(mode="quality", min_side=16)  # of data=voc07
RANKS = (1024, 256)  # of fc6 and fc7, the paper's, section 4.4; random factors take as long as an SVD's


@dataclass
class Row:
    what: str
    peer: float  # milliseconds, or MiB
    ours: float
    ratio: float
    spread: tuple[float, float]  # quartiles of the turns' ratios
    goal: str
    same: str = ""  # as the peer in float32
    of_ceiling: float | None = None  # ours, share of the rate of a large matrix product


class Inputs:
    """Pictures (H, W, 3) uint8 and boxes (ROIS, 4), half-open, drawn afresh at each call."""

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
    """The full VGG16, with fc6 and fc7 of these ranks, with random weights. The logits of a
    class vary over a picture's RoIs by a deviation of 2, its deltas by 1 before they are scaled."""
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
    """What `fastrcnn.load` gives, of a model that it may round the weights of."""
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
    """A picture from its pixels to detections, in float32 and bfloat16."""
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
        row("detection of one picture, float32", "", theirs, ours32, matched(exact(*given), want, 0.01, 1e-4)),
        row("detection of one picture, bfloat16", goal, theirs, ours16, matched(rounded(*given), want, 0.5, 0.02)),
    ]
    for r, run, dtype in zip(rows, (exact, rounded), (torch.float32, torch.bfloat16), strict=True):
        r.of_ceiling = work(partial(run, *given)) * 1e3 / r.ours / matmul_rate(device, dtype)
    return rows


def photo_rows(device: torch.device, inputs: Inputs, repeats: int, folder: Path) -> Iterator[Row]:
    """Photographs to detections, proposals included: one, and a folder of files."""
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
        yield row(f"your own image, proposals included, {name}, against OpenCV's search", goal, *spent)
        if dtype == torch.bfloat16:  # in which the proposals are the larger part
            spent = in_turn(-(-repeats // 3), partial(in_phases, detector), detector.detect, draw=draw)
            each = [[ms / FOLDER for ms in turns] for turns in spent]
            yield row(f"an image of a folder, {name}, against one stage after another", ">= 1x", *each)


def matched(found: Detections, want: Detections, pixels: float, score: float) -> str:
    """How many of the detections wanted were found, the same class, box and score within these bounds."""
    near = (found.boxes[None] - want.boxes[:, None]).abs().amax(2) <= pixels  # (want, found)
    near &= (found.scores[None] - want.scores[:, None]).abs() <= score
    near &= found.labels[None] == want.labels[:, None]
    return f"{int(near.any(1).sum())} of {len(want)} within {pixels:g} px and {score:g}"


def head_rows(device: torch.device, inputs: Inputs, repeats: int) -> list[Row]:
    """Pooling, fc6, fc7, the outputs and the suppression, on the map of a picture's size."""
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
    """20 classes x 2,000 boxes: scores first, then the suppression, against a loop over classes of all boxes. Boxes are
    RoIs moved a little for each class; some 500 of the 40,000 score .05 or more."""
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
    return row("NMS of 20 classes x 2,000 boxes at .05", ">= 50x", *spent, "equal" if same else "NOT EQUAL")


def peak(name: str, device: torch.device, inputs: Inputs) -> float:
    """MiB at most in use while two pictures are looked at, above what there is before; for a process of its own."""
    model = network(device, inputs)
    given = inputs()
    run: Callable
    if name == "pooling":  # torchvision's alone: output and argmax
        given = (torch.rand(1, 512, 38, 50, device=device), on_device(given[1], device))
        run = partial(torchvision.ops.roi_pool, output_size=7, spatial_scale=1 / 16)
    elif name == "torchvision":
        run = peer_detection(model, torch.bfloat16 if device.type == "cuda" else torch.float32)
    else:
        run = our_detection(model, getattr(torch, name))
    run(given[0], given[1][:8])  # libraries, which take memory as well, are loaded by now
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
        command = [sys.executable, __file__, "--device", options.device, "--threads", str(torch.get_num_threads())]
        command += ["--boxes", str(options.boxes)] if options.boxes else []
        done = subprocess.run([*command, "--peak-of", name], capture_output=True, text=True, check=True)
        peaks[name] = float(done.stdout)
    rows = []
    for name in ("float32", "bfloat16"):
        for against, goal in (("torchvision", ">= 2x"), ("pooling", ">= 4x")):
            what = {"torchvision": "the composition's", "pooling": "torchvision's pooling alone"}[against]
            rows.append(row(f"peak MiB of a detection, {name}, against {what}", goal, [peaks[against]], [peaks[name]]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--boxes", type=Path)
    parser.add_argument("--photos", type=Path, help="a folder of images: the rows with proposals, and no others")
    parser.add_argument("--quick", action="store_true", help="two turns of each row, no peaks of memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # a process for one peak
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, inputs = torch.device(options.device), Inputs(int(time.time()), options.boxes)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, not TF32
    if options.peak_of:
        print(peak(options.peak_of, device, inputs))
        return
    described = machine_details(device)
    print(described)
    print(
        "| row | peer, ms or MiB | ours | ratio | quartiles | goal | the same as the peer's |"
        " of the rate of a large matrix product |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    repeats, rows = 2 if options.quick else options.repeats, []
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
            rows.append(r)
            low, high = r.spread
            share = "" if r.of_ceiling is None else f"{r.of_ceiling:.0%}"
            print(
                f"| {r.what} | {r.peer:.4g} | {r.ours:.4g} | {r.ratio:.2f}x | {low:.2f} to {high:.2f} | {r.goal} |"
                f" {r.same} | {share} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"machine": described, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
