"""Benchmark evaluation, the data loader and the start-up time of the commands (pipeline rows of BENCHMARKS.md).

    python scripts/bench_pipeline.py [--data VOCdevkit/VOC2007] [--turns 5] [--quick] [--json FILE]

Evaluation: VOC AP on random detections, compared to a plain Python loop and to pycocotools at IoU 0.5 and all areas.
The time to convert the detections for pycocotools is not included. Loader: batches of two images at 600 pixels with
2,000 proposals each, from a folder in VOC layout or from random images. Start-up: commands in separate processes. The
sum of the times in timing.json is subtracted from the wall-clock time of `fastrcnn detect`. Compared runs alternate.
Times are CPU times unless marked as wall-clock times.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from bench_evaluation import evaluation
from measuring import in_turn, processor

from fastrcnn.build import models
from fastrcnn.config.compose import compose
from fastrcnn.data.annotations.formats.voc_layout import annotated_ids
from fastrcnn.data.annotations.splits import class_names, load
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.images import decode, read_bytes
from fastrcnn.data.loader import collate, training_loader
from fastrcnn.data.transforms import Augmentation, resize
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store
from fastrcnn.structures import Sample
from fastrcnn.training import checkpoint

TRAINED = 100  # images/s


def photographs(folder: Path | None, made: Path, number: int) -> list[Sample]:
    if folder:
        ids = annotated_ids(folder)[:number]
        return load(folder, ids, class_names(folder, ids)[0], skip_bad=True)[0]
    rng, nothing = np.random.default_rng(0), (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    for i in range(number):
        smooth = cv2.resize(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), (500, 375))
        cv2.imwrite(str(made / f"{i}.jpg"), smooth)
    return [Sample(str(i), made / f"{i}.jpg", 500, 375, *nothing) for i in range(number)]


def loader(folder: Path | None, made: Path, turns: int, batches: int) -> dict[str, Any]:
    samples = photographs(folder, made, 64)
    boxes = np.sort(np.random.default_rng(0).uniform(0, 330, (2000, 2, 2)), axis=1).reshape(2000, 4).astype(np.float32)
    data = DetectionDataset(samples, store(made, samples, boxes), Augmentation((600,), 1000))
    content = [read_bytes(s.path) for s in samples]
    images = [decode(c, s.path) for c, s in zip(content, samples, strict=True)]
    examples = [data[0, i] for i in range(len(samples))]
    stages: dict[str, Callable[[], Any]] = {
        "reading and decoding": lambda: [data.picture(i) for i in range(len(samples))],
        "resizing": lambda: [resize(image, 600 / min(image.shape[:2])) for image in images],
        "proposals": lambda: [data.proposal_boxes(i) for i in range(len(samples))],
        "collation": lambda: [collate(examples[i : i + 2]) for i in range(0, len(examples), 2)],
        "total, half flipped": lambda: [collate([data[0, i], data[0, i + 1]]) for i in range(0, len(samples) - 1, 2)],
    }
    spent = in_turn(turns, *stages.values(), clock=processor)
    cost = {name: statistics.median(s) * 1e3 / len(samples) for name, s in zip(stages, spent, strict=True)}
    rates: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(turns):
        for workers, found in rates.items():
            source = iter(training_loader(data, 2, workers))
            list(islice(source, 8 * max(workers, 1)))  # exclude batches that were prepared while the workers started
            begin = time.perf_counter()
            list(islice(source, batches))
            found.append(2 * batches / (time.perf_counter() - begin))
            source.close()  # type: ignore[attr-defined]
    waits = {n: [waited_for(data, n, batches) for _ in range(turns)] for n in (1, 2, 4)}
    print("| loader, ms per image | " + ", ".join(f"{name} {ms:.2f}" for name, ms in cost.items()) + " |")
    print("| loader, images/s by workers: median (minimum to maximum) | " + of_turns(rates, "{:.0f}") + " |")
    print(f"| cores for 100 images/s | {cost['total, half flipped'] / 10:.2f} |")
    print(
        f"| share of time that training at {TRAINED} images/s waits for data, by workers: median "
        f"(minimum to maximum) | {of_turns(waits, '{:.1%}')} |",
        flush=True,
    )
    return {"ms": cost, "images_per_s": rates, "waiting": waits}


def of_turns(found: dict[int, list[float]], style: str) -> str:
    """Format the median, minimum and maximum of the turns for each number of workers."""
    parts = (map(style.format, (statistics.median(f), min(f), max(f))) for f in found.values())
    return ", ".join("{}: {} ({} to {})".format(n, *part) for n, part in zip(found, parts, strict=True))


def waited_for(data: DetectionDataset, workers: int, batches: int) -> float:
    """Return the share of time that training waits for data if it takes 2 / TRAINED seconds per batch of two images."""
    source = iter(training_loader(data, 2, workers))
    list(islice(source, 8 * workers))
    waited, begin = 0.0, time.perf_counter()
    for _ in range(batches):
        asked = time.perf_counter()
        next(source)
        waited += time.perf_counter() - asked
        time.sleep(2 / TRAINED)
    share = waited / (time.perf_counter() - begin)
    source.close()  # type: ignore[attr-defined]
    return share


def store(made: Path, samples: list[Sample], boxes: np.ndarray) -> Callable[[str], np.ndarray]:
    items = (ImageProposals(s.image_id, s.height, s.width, boxes) for s in samples)
    write_store(made / "bench.proposals", items, "benchmark", {})
    return ProposalStore(made / "bench.proposals").boxes


def program(*arguments: str) -> tuple[float, float]:
    """Run Python with these arguments in a new process. Return its wall-clock time and CPU time in seconds."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    clock, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def slim_run(made: Path) -> Path:
    """Create the folder of a run with a slim, untrained network."""
    config = compose("train", ["data=custom", f"data.root={made}", "model=vgg16", "model.width=0.05"])
    config.data.classes = ["cat", "dog"]
    model = models.model(config.model, 2, load=False)
    content = {"step": 1, "best": 0.0, "classes": config.data.classes, "config": asdict(config)}
    checkpoint.save(made / "run" / "checkpoints" / "best.pt", content | {"model": model.state_dict()})
    return made / "run"


def start(folder: Path | None, made: Path, turns: int) -> dict[str, Any]:
    (sample,) = photographs(folder, made, 1)
    boxes = np.sort(np.random.default_rng(0).uniform(0, 330, (2000, 2, 2)), axis=1).reshape(2000, 4)
    store(made, [sample], boxes)
    found = made / "found"
    detect = ["detect", f"checkpoint={slim_run(made)}", f"source={sample.path}", f"output={found}"]
    verbs = ["-m", "fastrcnn"]
    programs = {
        "python -c 'import torch'": ["-c", "import torch"],
        "fastrcnn --help": [*verbs, "--help"],
        "fastrcnn train --help": [*verbs, "train", "--help"],
        "misspelled command": [*verbs, "trian"],
        "misspelled key": [*verbs, "train", "solvr.lr=1"],
        "fastrcnn detect": [*verbs, *detect, f"data.proposals={made / 'bench.proposals'}"],
    }
    clock: dict[str, list[float]] = {name: [] for name in programs}
    spent: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, arguments in programs.items():
            seconds, of_processor = program(*arguments)
            if "detect" in arguments:
                seconds -= sum(json.loads((found / "timing.json").read_text())["seconds"].values())
            clock[name].append(seconds)
            spent[name].append(of_processor)
    rows = {name: {"clock": min(clock[name]), "processor": statistics.median(spent[name])} for name in programs}
    for name, row in rows.items():
        print(
            f"| {name} | wall clock: minimum {row['clock']:.2f} s, maximum {max(clock[name]):.2f} s; "
            f"CPU time: {row['processor']:.2f} s |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with images in VOC layout; default: random images")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="evaluate a tenth of the images, in one turn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    turns = 1 if options.quick else options.turns
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))  # for the separate processes
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print("| measurement | result |\n|---|---|", flush=True)
    rows = {"evaluation": evaluation(495 if options.quick else 4952, turns)}
    with tempfile.TemporaryDirectory() as folder:
        rows["loader"] = loader(options.data, Path(folder), turns, 20 if options.quick else 60)
        rows["start"] = start(options.data, Path(folder), turns)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
