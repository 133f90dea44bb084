#!/usr/bin/env python3
"""What selective search costs on real photographs: recall and time by the size that is searched, and by processes.

    python scripts/bench_search.py VOCdevkit/VOC2007 [BCCD ...] [--pictures 40] [--turns 3] [--quick] [--json FILE]

Recall is the share of the objects that are not difficult that a proposal overlaps by IoU .5 or .7; seconds are of the
processor, on one thread. Processes: the pictures of the first data set by `propose_all` in one and in two processes,
and by two programs that share nothing but the machine, turn by turn, their start included. On a machine that does other
work besides, the last say what two processes can have on the clock, and the processor's seconds what they cost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from fastrcnn.data.frames import read_sample
from fastrcnn.progress import be_silent
from fastrcnn.proposals.generate import Image, propose_all
from fastrcnn.proposals.selective_search import propose
from fastrcnn.settings import SelectiveSearchSettings

if TYPE_CHECKING:  # the processes that make proposals import this file, and need no torch
    from fastrcnn.structures import Sample

MODES = {"fast": (25.0, 50.0, 100.0, 200.0), "quality": (25.0, 50.0, 100.0, 200.0)}
SIDES = (160, 240, 320, 500)


def some(root: Path, pictures: int) -> tuple[list[Sample], list[str]]:
    """Samples spread over a data set, and the names of its classes."""
    from fastrcnn.data.annotations.splits import class_names, load
    from fastrcnn.data.annotations.voc_layout import annotated_ids

    ids = annotated_ids(root)
    classes, _ = class_names(root, ids)
    samples, _ = load(root, ids[:: max(1, len(ids) // pictures)][:pictures], classes, skip_bad=True)
    return samples, classes


def recall_row(samples: Sequence[Sample], classes: Sequence[str], settings: SelectiveSearchSettings) -> dict[str, Any]:
    from fastrcnn.evaluation.recall import proposal_recall

    found, spent = [], 0.0
    for sample in samples:
        image = read_sample(sample)
        begin = time.process_time()
        found.append(propose(image, settings))
        spent += time.process_time() - begin
    recall = proposal_recall(found, samples, classes)
    return {
        "mode": settings.mode,
        "side": settings.side,
        "boxes": recall.proposals,
        "seconds": spent / len(samples),
        "objects": recall.all.objects,
        "at_50": recall.all.at_50,
        "at_70": recall.all.at_70,
    }


def recall_rows(root: Path, pictures: int, sides: Sequence[int]) -> list[dict[str, Any]]:
    samples, classes = some(root, pictures)
    print(f"\n{root.name}, {len(samples)} photographs\n\n| mode | side | recall .5 | .7 | boxes | s of one core |")
    print("|---|---|---|---|---|---|", flush=True)
    rows = []
    for mode, k in MODES.items():
        for side in sides:
            row = recall_row(samples, classes, SelectiveSearchSettings(mode=mode, side=side, k=k))
            rows.append({"set": root.name} | row)
            shares = f"{row['at_50']:.3f} | {row['at_70']:.3f}"
            print(f"| {mode} | {side} | {shares} | {row['boxes']:.0f} | {row['seconds']:.2f} |", flush=True)
    return rows


def of_processor() -> float:
    """Seconds of this process and of those that it has started and that have ended."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def seconds(images: list[Image], settings: SelectiveSearchSettings, workers: int) -> tuple[float, float]:
    """The clock's and the processor's, of proposals for all images into a store."""
    with tempfile.TemporaryDirectory() as folder:
        begin, before = time.perf_counter(), of_processor()
        propose_all(images, Path(folder) / "bench.proposals", settings, workers)
        return time.perf_counter() - begin, of_processor() - before


def alone(images: list[Image], settings: SelectiveSearchSettings) -> None:
    cv2.setNumThreads(1)
    be_silent()
    seconds(images, settings, 1)


def apart(images: list[Image], settings: SelectiveSearchSettings) -> float:
    """The clock's seconds of two programs, started like the processes, that do half of the images each."""
    context = multiprocessing.get_context("spawn")
    halves = [context.Process(target=alone, args=(images[i::2], settings)) for i in range(2)]
    begin = time.perf_counter()
    for process in halves:
        process.start()
    for process in halves:
        process.join()
    return time.perf_counter() - begin


def process_row(root: Path, pictures: int, turns: int) -> dict[str, Any]:
    cv2.setNumThreads(1)  # one process is to take one core
    samples, _ = some(root, pictures)
    images = [(s.image_id, s.path, s.turn) for s in samples]
    settings = SelectiveSearchSettings(mode="quality", side=240)
    one, two, both = [], [], []
    for _ in range(turns):
        one.append(seconds(images, settings, 1))
        two.append(seconds(images, settings, 2))
        both.append(apart(images, settings))
    return {
        "pictures": len(images),
        "turns": turns,
        "efficiency": statistics.median(a / b / 2 for (a, _), (b, _) in zip(one, two, strict=True)),
        "efficiency_apart": statistics.median(a / b / 2 for (a, _), b in zip(one, both, strict=True)),
        "processor": statistics.median(a / b for (_, a), (_, b) in zip(one, two, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="data sets in VOC's layout")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="*", default=SIDES, help="none: processes alone")
    parser.add_argument("--quick", action="store_true", help="a few pictures, small sides, one turn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.pictures, options.turns, options.sides = 6, 1, SIDES[:2]
    be_silent()
    cv2.setNumThreads(1)
    rows = []
    for folder in options.folders if options.sides else ():
        rows += recall_rows(folder, options.pictures, options.sides)
    row = process_row(options.folders[0], options.pictures, options.turns)
    print(
        f"\n{row['pictures']} photographs: two processes make {row['efficiency']:.2f} of twice what one makes, two "
        f"programs that share nothing {row['efficiency_apart']:.2f}; of the processor's seconds of two processes one "
        f"needs {row['processor']:.2f}"
    )
    if options.json:
        options.json.write_text(json.dumps({"recall": rows, "processes": row}, indent=1) + "\n")


if __name__ == "__main__":
    main()
