"""Benchmark how time and memory grow with images, RoIs, classes and image size (scaling table of BENCHMARKS.md).

    python scripts/bench_scaling.py [--quick] [--only images rois classes sides] [--json FILE]

The time is the CPU time, the minimum of three calls. The memory is the peak during a call, above the usage before it.
The last column is the exponent p of time ~ n^p between a row and the row of the previous size. For linear growth, p is
1. If n is the side of an image, a time proportional to the number of pixels gives p = 2. A much larger value for the
largest sizes indicates a performance problem. The network is an untrained VGG16 of width 1/16.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_evaluation import drawn
from measuring import peak_above_now, processor

from fastrcnn.audit.check import Settings, Task, read_one
from fastrcnn.data.demo import write_demo
from fastrcnn.data.transforms import Augmentation
from fastrcnn.evaluation.evaluate import compare
from fastrcnn.evaluation.recall import proposal_recall
from fastrcnn.evaluation.voc_ap import detections_by_class, mean_ap
from fastrcnn.inference.detector import Detector
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.postprocess import best_boxes
from fastrcnn.proposals.selective_search import propose
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store
from fastrcnn.report.report import make_report
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Detections, Sample

Run = Callable[[], Any]
SIZES = {
    "images": (10, 100, 1_000, 10_000),
    "rois": (100, 1_000, 10_000, 45_000),
    "classes": (1, 10, 100, 1_000),
    "sides": (300, 1_000, 2_000, 4_000),
}


def boxes_in(count: int, width: float, height: float) -> np.ndarray:
    """Generate boxes (count, 4) float32, at least one pixel wide and high."""
    corners = np.sort(np.random.default_rng(count).random((count, 2, 2)), axis=1)
    corners = corners * (width - 1, height - 1) + [[[0, 0], [1, 1]]]
    return corners.reshape(count, 4).astype(np.float32)


def samples_of(images: int, classes: int, each: int = 3) -> list[Sample]:
    rng = np.random.default_rng(images)
    path = Path("none.jpg")
    return [
        Sample(
            f"{n:06d}",
            path,
            500,
            375,
            boxes_in(each, 500, 375),
            rng.integers(1, classes + 1, each),
            np.zeros(each, bool),
        )
        for n in range(images)
    ]


def found_in(images: int, classes: int, each: int) -> list[Detections]:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.from_numpy(boxes_in(each, 500, 375))
    return [
        Detections(
            boxes, torch.rand(each, generator=generator), torch.randint(1, classes + 1, (each,), generator=generator)
        )
        for _ in range(images)
    ]


def images(n: int, folder: Path) -> Iterator[tuple[str, Run]]:
    found, truth = drawn(n, 100, 20, np.random.default_rng(0))
    yield "AP, 100 detections per image", lambda: mean_ap(found, truth)
    boxes = boxes_in(2000, 500, 375)
    path = folder / f"{n}.proposals"
    if n <= 1_000:
        samples = samples_of(n, 20)
        names = [f"class {k}" for k in range(20)]
        yield "recall of 2,000 proposals per image", lambda: proposal_recall([boxes] * n, samples, names)
        yield "check of images and their annotations", checking(n, folder)
    small = boxes[:200]
    items = lambda: (ImageProposals(f"{i:06d}", 375, 500, small) for i in range(n))  # noqa: E731
    yield "writing a store with 200 proposals per image", lambda: write_store(path, items(), "benchmark", {})
    store = ProposalStore(path)
    yield "reading this store", lambda: [store.boxes(f"{i:06d}") for i in range(n)]


def checking(n: int, folder: Path) -> Run:
    """Return a function that reads n copies of an image like `fastrcnn check`."""
    root = write_demo(folder / "set", train=1, val=1, test=1)
    (name,) = (root / "ImageSets" / "Main" / "train.txt").read_text().split()
    for i in range(n):
        for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            (root / kind / f"{i:06d}x.{ending}").hardlink_to(root / kind / f"{name}.{ending}")
    tasks = [Task("train", "train", root, f"{i:06d}x") for i in range(n)]
    return lambda: [read_one(task, Settings(), {}) for task in tasks]


def rois(n: int, folder: Path) -> Iterator[tuple[str, Run]]:
    model = FastRCNN(20, 1 / 16).eval()
    maps = [torch.rand(1, 32, 38, 63).contiguous(memory_format=torch.channels_last)]
    boxes = torch.from_numpy(boxes_in(n, 1000, 600))
    given = torch.cat((torch.zeros(n, 1), boxes), 1)
    network = TorchNetwork(model)

    @torch.no_grad()
    def head() -> None:
        network.roi_outputs(maps, given)

    yield "pooling, fc6 and fc7 of a slim network", head
    scores = (torch.randn(n, 21, generator=torch.Generator().manual_seed(0)) * 3).softmax(1)
    every = boxes[:, None].expand(n, 21, 4)
    yield "scores to detections, 20 classes", lambda: best_boxes(scores, every)


def classes(n: int, folder: Path) -> Iterator[tuple[str, Run]]:
    scores = torch.rand(300, n + 1, generator=torch.Generator().manual_seed(0))
    boxes = torch.from_numpy(boxes_in(300, 1000, 600))[:, None].expand(300, n + 1, 4)
    yield "scores of 300 RoIs to detections, none below the threshold", lambda: best_boxes(scores, boxes)
    names = [f"class {k}" for k in range(n)]
    some = found_in(1_000, n, 100)
    yield "100,000 detections class by class", lambda: detections_by_class(some, names)
    found, truth = drawn(1_000, 100, n, np.random.default_rng(0))
    yield "AP of 100,000 detections", lambda: mean_ap(found, truth)
    samples = samples_of(300, n)
    result = compare(detections_by_class(some[:300], names), samples, names, "voc07")
    with_pictures(samples, folder)
    yield "report on 30,000 detections", lambda: make_report(result, "benchmark", [])


def with_pictures(samples: list[Sample], folder: Path) -> None:
    """Write an image for all samples, because the gallery of the report reads the images."""
    import cv2

    cv2.imwrite(str(folder / "none.jpg"), np.zeros((375, 500, 3), np.uint8))
    for sample in samples:
        object.__setattr__(sample, "path", folder / "none.jpg")


def sides(n: int, folder: Path) -> Iterator[tuple[str, Run]]:
    model = FastRCNN(20, 1 / 16).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = [f"class {k}" for k in range(20)]
    scaling = Augmentation((n,), 4 * n)
    detector = Detector(TorchNetwork(model), names, DetectionSettings(), scaling, propose)
    image = np.random.default_rng(0).integers(0, 256, (n, n, 3), dtype=np.uint8)
    boxes = boxes_in(300, n, n)
    yield "detection of a square image at its original size, 300 RoIs", lambda: detector.detect(image, boxes)


def measured(run: Run) -> tuple[float, float]:
    """Return the CPU time in seconds (minimum of three calls) and the peak memory in MiB."""
    spent: list[float] = []
    memory = peak_above_now(lambda: spent.append(processor(run)))
    return min([*spent, *(processor(run) for _ in range(2))]), memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="skip the largest sizes")
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    tables = {"images": images, "rois": rois, "classes": classes, "sides": sides}
    print("| measurement | n | ms | MiB | exponent |\n|---|---|---|---|---|", flush=True)
    for name in options.only:
        last: dict[str, tuple[int, float]] = {}
        for n in SIZES[name][: -1 if options.quick else None]:
            with tempfile.TemporaryDirectory() as folder:
                for what, run in tables[name](n, Path(folder)):
                    seconds, memory = measured(run)
                    exponent = None
                    if what in last:
                        exponent = math.log(seconds / last[what][1]) / math.log(n / last[what][0])
                    last[what] = n, seconds
                    rows.append({"what": what, name: n, "seconds": seconds, "mib": memory, "exponent": exponent})
                    shown = "" if exponent is None else f"{exponent:.2f}"
                    print(f"| {what} | {n:,} {name} | {seconds * 1e3:,.1f} | {memory:.0f} | {shown} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"time": time.ctime(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
