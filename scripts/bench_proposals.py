#!/usr/bin/env python3
"""Benchmark the proposal store in a data loader worker: additional memory, and time to look up the boxes of an image.

The peer is a dictionary with an array of boxes per image, as loaded from a pickle. A worker is a forked process that
looks up images in random order. Its memory is its proportional set size (Linux) minus that of an idle worker.

    python scripts/bench_proposals.py [--images 1000 16000 1000000] [--boxes 2000] [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store

READS = 20_000  # look-ups per worker


def drawn(images: int, boxes: int) -> Iterator[ImageProposals]:
    """Yield images of 500 x 375 that share the same random boxes, because new boxes would take too long to generate."""
    corners = np.sort(np.random.default_rng(0).random((boxes, 2, 2)), axis=1) * (500, 375)
    ready = corners.reshape(boxes, 4).astype(np.float32)
    for n in range(images):
        yield ImageProposals(f"{n:08d}", 375, 500, ready[n % 7 :])


def proportional_set_size() -> int:
    """Return the proportional set size of this process in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def work(
    look_up: Callable[[str], np.ndarray] | None, images: int, answer: multiprocessing.connection.Connection
) -> None:
    """Look up images, and send the memory of this process in bytes and the median seconds per look-up."""
    seconds, order = [], random.Random(0)
    for _ in range(READS if look_up else 0):
        image_id = f"{order.randrange(images):08d}"
        begin = time.perf_counter()
        look_up(image_id).sum()  # type: ignore[misc]
        seconds.append(time.perf_counter() - begin)
    answer.send((proportional_set_size(), float(np.median(seconds)) if seconds else 0.0))


def measured(look_up: Callable[[str], np.ndarray] | None, images: int) -> tuple[int, float]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(look_up, images, theirs))
    process.start()
    found = ours.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 16_000, 1_000_000])
    parser.add_argument("--boxes", type=int, default=2_000)
    parser.add_argument(
        "--most", type=int, default=40_000_000, help="maximum number of boxes in a store; limits the boxes per image"
    )
    parser.add_argument("--folder", type=Path, help="folder for the stores; default: a temporary folder")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("| images | boxes per image | store: memory | store: look-up | arrays: memory |\n|---|---|---|---|---|")
    for images in arguments.images:
        boxes = min(arguments.boxes, max(1, arguments.most // images))
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "bench.proposals"
            write_store(path, drawn(images, boxes), "benchmark", {})
            store = ProposalStore(path)
            idle, _ = measured(None, images)
            busy, seconds = measured(store.boxes, images)
            peer = None
            if images * boxes <= 50_000_000:
                arrays = {image.image_id: image.boxes.copy() for image in drawn(images, boxes)}
                with_arrays, _ = measured(arrays.__getitem__, images)
                peer = with_arrays - idle
                del arrays
        rows.append({"images": images, "boxes": boxes, "bytes": busy - idle, "seconds": seconds, "peer_bytes": peer})
        memory = "" if peer is None else f"{peer / 1e6:.0f} MB"
        print(
            f"| {images:,} | {boxes:,} | {(busy - idle) / 1e6:.0f} MB | {seconds * 1e6:.0f} us | {memory} |", flush=True
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
