#!/usr/bin/env python3
"""Benchmark selective search on photographs: time compared to OpenCV, recall, and scaling with cores.

    python scripts/bench_search.py VOCdevkit/VOC2007 [BCCD ...] [--images 40] [--split NAME] [--rows NAME ...]
                                   [--turns 3] [--quick] [--json FILE]

The script prints three tables:

Peer: CPU time of our kernel and of OpenCV's selective search with the same settings and the same surrounding code. Both
    run on each photograph in turn, with one thread. The ratio is the median over photographs, with quartiles. The share
    of rectangles that both find is relative to the number that at least one of them finds.
Recall: share of the objects that are not difficult for which one of the first 500, 1,000 or 2,000 boxes has an IoU of
    at least 0.5 or 0.7, and the average recall from 0.5 to 0.95. The prefix `opencv` in a row's name selects the peer.
Cores: time of `propose_all` on the photographs of the first data set with one process, with two processes, and in two
    independent programs. These alternate, and the time includes their start-up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import cv2
import numpy as np

from fastrcnn.data.frames import read_sample
from fastrcnn.progress import be_silent, progress
from fastrcnn.proposals import kernel, selective_search
from fastrcnn.proposals.generate import propose_all
from fastrcnn.proposals.selective_search import propose
from fastrcnn.settings import SelectiveSearchSettings

if TYPE_CHECKING:  # the proposal workers import this file and do not need torch
    from fastrcnn.structures import Sample

VOC07 = SelectiveSearchSettings(mode="quality", min_side=16)  # settings of configs/data/voc07.yaml
BEFORE = replace(VOC07, k=[50.0, 100.0, 200.0])
ROWS = {
    "voc07": VOC07,
    "fast": replace(VOC07, mode="fast"),
    "k 50 100 200": BEFORE,
    "side 160": replace(VOC07, side=160),
    "side 240": replace(VOC07, side=240),
    "side 500": replace(VOC07, side=500),
}
COUNTS = (500, 1000, 2000)


@contextmanager
def by_opencv() -> Iterator[None]:
    with mock.patch.object(kernel, "library", return_value=None):
        yield


def some(root: Path, images: int, split: str | None) -> tuple[list[Sample], list[str]]:
    """Return evenly spaced samples of a data set, and its class names."""
    from fastrcnn.data.annotations.formats.voc_layout import annotated_ids
    from fastrcnn.data.annotations.splits import class_names, load

    ids = annotated_ids(root)
    if split:
        ids = (root / "ImageSets/Main" / f"{split}.txt").read_text().split()
    classes, _ = class_names(root, ids)
    samples, _ = load(root, ids[:: max(1, len(ids) // images)][:images], classes, skip_bad=True)
    return samples, classes


def peer_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Compare our time to OpenCV's on each photograph, for each instruction set."""
    from measuring import processor, ratio_and_quartiles

    library = kernel.library()
    if library is None:
        raise SystemExit("The compiled kernel is missing. Install a C++ compiler, then reinstall the package.")
    levels = kernel.LEVELS[: library.roi_pool_best_level() + 1]
    ours: dict[str, list[float]] = {level: [] for level in levels}
    theirs, equal = [], []
    for sample in samples:
        image = read_sample(sample)
        for level in levels:
            with mock.patch.dict("os.environ", FASTRCNN_SEARCH_LEVEL=level):
                propose(image, VOC07)
                ours[level].append(processor(lambda: propose(image, VOC07)))  # noqa: B023
        small = selective_search.resized(image, VOC07.side)
        found = {tuple(r) for r in selective_search._search(small, VOC07)[0].tolist()}
        with by_opencv():
            theirs.append(processor(lambda: propose(image, VOC07)))  # noqa: B023
            others = {tuple(r) for r in selective_search._search(small, VOC07)[0].tolist()}
        equal.append(len(found & others) / len(found | others))
    rows = []
    print(f"\nComparison to OpenCV {cv2.__version__}: {len(samples)} photographs, settings of data=voc07, one thread\n")
    print("| instruction set | ours, ms | OpenCV, ms | ratio (quartiles) |\n|---|---|---|---|")
    for level in levels:
        middle, (low, high) = ratio_and_quartiles(theirs, ours[level])
        ms, peer_ms = (1e3 * statistics.median(of) for of in (ours[level], theirs))
        rows.append({"level": level, "ms": ms, "peer_ms": peer_ms, "ratio": middle, "quartiles": [low, high]})
        print(f"| {level} | {ms:.1f} | {peer_ms:.0f} | **{middle:.1f}x** ({low:.1f} to {high:.1f}) |", flush=True)
    share = {"mean": statistics.mean(equal), "least": min(equal), "all": sum(e == 1 for e in equal)}
    print(
        f"\nShare of rectangles that both find: {share['mean']:.4f} on average, {share['least']:.3f} at minimum; all "
        f"rectangles are equal in {share['all']} of {len(equal)} photographs"
    )
    return [*rows, {"equal": share}]


def recall_row(samples: Sequence[Sample], classes: Sequence[str], settings: SelectiveSearchSettings) -> dict[str, Any]:
    from measuring import processor

    from fastrcnn.evaluation.recall import proposal_recall

    found: list[np.ndarray] = []
    spent = 0.0
    for sample in progress(samples, len(samples), "recall"):
        image = read_sample(sample)
        spent += processor(lambda: found.append(propose(image, settings)))  # noqa: B023
    row: dict[str, Any] = {"boxes": statistics.mean(map(len, found)), "seconds": spent / len(samples)}
    for count in COUNTS:
        overlaps = proposal_recall([boxes[:count] for boxes in found], samples, classes).overlaps
        thresholds = np.arange(10) * 0.05 + 0.5
        average = float(np.mean([(overlaps >= threshold - 1e-9).mean() for threshold in thresholds]))
        row[str(count)] = [float((overlaps >= 0.5).mean()), float((overlaps >= 0.7).mean()), average]
    return row | {"objects": len(overlaps)}


def recall_rows(name: str, samples: list[Sample], classes: list[str], rows: Sequence[str]) -> list[dict[str, Any]]:
    print(f"\n{name}, {len(samples)} photographs; recall at IoU 0.5 / at IoU 0.7 / average\n")
    print(f"| settings | boxes | CPU s per image | {' | '.join(f'first {count}' for count in COUNTS)} |")
    print("|---|---|---|" + "---|" * len(COUNTS), flush=True)
    table = []
    for row in rows:
        with by_opencv() if row.startswith("opencv ") else mock.MagicMock():
            found = recall_row(samples, classes, ROWS[row.removeprefix("opencv ")])
        table.append({"set": name, "row": row} | found)
        recalls = " | ".join(" / ".join(f"{share:.3f}" for share in found[str(count)]) for count in COUNTS)
        print(f"| {row} | {found['boxes']:.0f} | {found['seconds']:.3f} | {recalls} |", flush=True)
    return table


def of_processor() -> float:
    """Return the CPU time in seconds of this process and of its finished child processes."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def seconds(images: list[Sample], workers: int) -> tuple[float, float]:
    """Generate proposals for all images. Return the wall-clock time and the CPU time in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        begin, before = time.perf_counter(), of_processor()
        propose_all(images, Path(folder) / "bench.proposals", VOC07, workers)
        return time.perf_counter() - begin, of_processor() - before


def alone(images: list[Sample]) -> None:
    cv2.setNumThreads(1)
    be_silent()
    seconds(images, 1)


def apart(images: list[Sample]) -> float:
    """Return the wall-clock time in seconds of two independent processes that each handle half of the images."""
    context = multiprocessing.get_context("spawn")
    halves = [context.Process(target=alone, args=(images[i::2],)) for i in range(2)]
    begin = time.perf_counter()
    for process in halves:
        process.start()
    for process in halves:
        process.join()
    return time.perf_counter() - begin


def core_row(images: list[Sample], turns: int) -> dict[str, Any]:
    one, two, both = [], [], []
    for _ in range(turns):
        one.append(seconds(images, 1))
        two.append(seconds(images, 2))
        both.append(apart(images))
    row = {
        "images": len(images),
        "turns": turns,
        "efficiency": statistics.median(a / b / 2 for (a, _), (b, _) in zip(one, two, strict=True)),
        "efficiency_apart": statistics.median(a / b / 2 for (a, _), b in zip(one, both, strict=True)),
        "processor": statistics.median(a / b for (_, a), (_, b) in zip(one, two, strict=True)),
        "images_per_second": len(images) / statistics.median(clock for clock, _ in two),
    }
    print(
        f"\n{row['images']} photographs: parallel efficiency {row['efficiency']:.2f} with two processes "
        f"({row['images_per_second']:.0f} photographs per second), {row['efficiency_apart']:.2f} with two independent "
        f"programs; CPU time with one process divided by CPU time with two: {row['processor']:.2f}"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="data sets in VOC layout")
    parser.add_argument("--images", type=int, default=40, help="number of photographs per data set, evenly spaced")
    parser.add_argument("--split", help="split in ImageSets/Main; default: all images with annotations")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="settings in the recall table; can be empty")
    parser.add_argument("--turns", type=int, default=3, help="number of turns for the cores table; 0: skip the table")
    parser.add_argument("--no-peer", action="store_true", help="skip the comparison to OpenCV")
    parser.add_argument("--quick", action="store_true", help="use a few photographs and one turn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.images, options.turns, options.rows = 6, 1, options.rows[:1]
    be_silent()
    cv2.setNumThreads(1)
    sets = {folder.name: some(folder, options.images, options.split) for folder in options.folders}
    first = next(iter(sets.values()))[0]
    report: dict[str, Any] = {"peer": [] if options.no_peer else peer_rows(first), "recall": []}
    for name, (samples, classes) in sets.items() if options.rows else ():
        report["recall"] += recall_rows(name, samples, classes, options.rows)
    report["cores"] = core_row(first, options.turns) if options.turns else None
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
