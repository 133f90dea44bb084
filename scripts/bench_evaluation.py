"""Benchmark VOC AP on random detections against a plain Python loop and pycocotools (part of bench_pipeline.py)."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
import tracemalloc
from typing import Any

import numpy as np
from measuring import in_turn, processor, ratio_and_quartiles, spread
from pycocotools.cocoeval import COCOeval

from fastrcnn.evaluation.coco_ap import _coco
from fastrcnn.evaluation.voc_ap import ClassDetections, ClassTruth, mean_ap

Found, Truth = dict[str, ClassDetections], dict[str, ClassTruth]


def drawn(images: int, each: int, classes: int, rng: np.random.Generator) -> tuple[Found, Truth]:
    """Generate 2.5 objects per image, some of them difficult, and detections, half of which are shifted objects."""
    number, count = images * each, images * 5 // 2
    place, label = rng.integers(0, images, count), rng.integers(0, classes, count)
    boxes = np.sort(rng.uniform(0, 500, (count, 2, 2)), axis=1).reshape(count, 4)
    source = rng.integers(0, count, number)
    near = rng.random(number) < 0.5
    at = np.where(near, place[source], rng.integers(0, images, number))
    of = np.where(near, label[source], rng.integers(0, classes, number))
    moved = boxes[source] + rng.normal(0, 15, (number, 4))
    scores, hard = rng.random(number), rng.random(count) < 0.2
    names = {f"class {k}": k for k in range(classes)}
    found = {name: ClassDetections(at[of == k], scores[of == k], moved[of == k]) for name, k in names.items()}
    truth = {name: ClassTruth(place[label == k], boxes[label == k], hard[label == k]) for name, k in names.items()}
    return found, truth


def plain_ap(found: ClassDetections, truth: ClassTruth) -> float:
    """Return the area under the precision-recall curve, computed like the devkit in plain Python."""
    objects: dict[int, list[list[Any]]] = {}
    for image, box, difficult in zip(
        truth.images.tolist(), truth.boxes.tolist(), truth.difficult.tolist(), strict=True
    ):
        objects.setdefault(image, []).append([box, difficult, False])
    images, boxes, scores = found.images.tolist(), found.boxes.tolist(), found.scores.tolist()
    right = wrong = 0
    curve = [(0.0, 0.0)]
    positives = max(1, int((~truth.difficult).sum()))
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        x1, y1, x2, y2 = boxes[i]
        best, match = 0.0, None
        for candidate in objects.get(images[i], ()):
            a1, b1, a2, b2 = candidate[0]
            width, height = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
            if width > 0 and height > 0:
                union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - width * height
                if width * height / union > best:
                    best, match = width * height / union, candidate
        if best > 0.5 and match and match[1]:
            continue
        if best > 0.5 and match and not match[2]:
            match[2] = True
            right += 1
        else:
            wrong += 1
        curve.append((right / positives, right / (right + wrong)))
    area, highest = 0.0, 0.0
    for (recall, precision), (before, _) in zip(curve[:0:-1], curve[-2::-1], strict=True):
        highest = max(highest, precision)
        area += (recall - before) * highest
    return area


def entries(of_class: ClassDetections | ClassTruth, category: int) -> list[dict[str, Any]]:
    """Return the boxes of a class as entries of a COCO file."""
    return [
        {"image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3]}
        for image, box in zip(
            of_class.images.tolist(),
            np.concatenate((of_class.boxes[:, :2], of_class.sizes), axis=1).tolist(),
            strict=True,
        )
    ]


def evaluation(images: int, turns: int) -> dict[str, Any]:
    found, truth = drawn(images, 100, 20, np.random.default_rng(int(time.time())))
    ours, plain = mean_ap(found, truth, "voc10").ap, {name: plain_ap(found[name], truth[name]) for name in truth}
    difference = max(abs((ours[name] or 0.0) - plain[name]) for name in truth)
    objects = [e | {"iscrowd": 0} for k, name in enumerate(truth, 1) for e in entries(truth[name], k)]
    results = [
        e | {"score": s}
        for k, name in enumerate(truth, 1)
        for e, s in zip(entries(found[name], k), found[name].scores.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        pair = [_coco(listed, list(range(images)), list(truth)) for listed in (objects, results)]

    def peer() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(*pair, "bbox")
            run.params.iouThrs, run.params.areaRng = np.array([0.5]), [[0, 1e10]]
            run.params.areaRngLbl, run.params.maxDets = ["all"], [100]
            run.evaluate()
            run.accumulate()

    def loops() -> None:
        for name in truth:
            plain_ap(found[name], truth[name])

    own, loop, coco = in_turn(turns, lambda: mean_ap(found, truth, "voc10"), loops, peer, clock=processor)
    to_loop, to_coco = ratio_and_quartiles(loop, own), ratio_and_quartiles(coco, own)
    tracemalloc.start()
    mean_ap(found, truth, "voc10")
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    held = sum(d.boxes.nbytes + d.scores.nbytes + d.images.nbytes for d in found.values()) / 2**20
    seconds = statistics.median(own)
    row = {"images": images, "detections": images * 100, "seconds": seconds, "loop": to_loop, "pycocotools": to_coco}
    row |= {"difference": difference, "peak_mib": peak, "input_mib": held}
    print(
        f"| AP, {images * 100:,} boxes | {seconds:.2f} s CPU time; speedup: {spread(to_loop)} over a plain loop "
        f"(goal 10x), {spread(to_coco)} over pycocotools (goal 50x); maximum difference {difference:.1e}; "
        f"{peak:.0f} MiB in addition to {held:.0f} MiB of input |",
        flush=True,
    )
    return row
