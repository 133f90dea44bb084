"""Writes what tests/test_pinned.py compares with: losses, weights, detections, AP and help texts of tiny seeded runs.

    python scripts/pin.py [FOLDER]

Run it after a deliberate change of behaviour, and review the difference in tests/pinned before you commit it. It uses
the command line, `fastrcnn.load` and the files of a run alone, so that internal modules can move without a change here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fastrcnn
from fastrcnn.cli import main

FOLDER = Path(__file__).parents[1] / "tests" / "pinned"
STEPS = 20
TRAIN = [
    "experiment=demo",
    "data.train=[val]",  # the smallest split, 50 images
    "data.short_sides=[64,96]",
    "data.test_short_sides=96",
    "data.selective_search.side=96",
    "data.selective_search.k=[50]",
    "data.selective_search.max_boxes=40",
    "model.width=0.05",
    "model.roi_features=[conv3_3,conv4_3,conv5_3]",
    "model.weights=null",
    f"solver.iterations={STEPS}",
    "solver.rois_per_image=16",
    "detection.score_threshold=0.01",
    "detection.max_per_image=12",
    "runtime.device=cpu",
    "runtime.precision=float32",
    "runtime.threads=1",
    "runtime.workers=0",
    "runtime.log_every=1",
]
SCRATCH = ["recipe=scratch", "solver.warmup=5"]
RUNS = {
    "scratch": SCRATCH,
    "paper": ["recipe=paper", "solver.lr_steps=[10]"],
    "accumulate": ["recipe=modern", "solver.warmup=5", "solver.images_per_batch=2", "solver.accumulate=2"],
    "two_processes": SCRATCH,
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastrcnn"]
IMAGES = [f"data/demo/JPEGImages/{number:06}.jpg" for number in (351, 352, 353)]  # the test set's first
TIMES = ("_per_s", "data_wait_share")  # ends of the names of what a clock measures


def measure(place: Path) -> dict[str, Any]:
    """Trains, evaluates and detects in the empty folder `place`; returns what JSON can hold."""
    with contextlib.chdir(place):
        # The demo draws the data set, trains from scratch, evaluates and detects.
        call("demo", "run=scratch", *TRAIN[1:], *RUNS["scratch"], "data.test=[val]")
        for run in ("paper", "accumulate"):
            call("train", f"run={run}", *TRAIN, *RUNS[run], "data.test=[]")
        arguments = ["train", "run=two_processes", *TRAIN, *RUNS["two_processes"], "data.test=[]"]
        done = subprocess.run([*TORCHRUN, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return {
            "made_with": environment(),
            "scalars": {run: scalars(Path(run)) for run in RUNS},
            "weights": {run: weights(Path(run)) for run in RUNS},
            "metrics": json.loads(Path("scratch/eval/val/metrics.json").read_text(encoding="utf-8")),
            "detect": detect_verb(),
            "load": load_and_detect(),
        }


def environment() -> dict[str, Any]:
    """What floats depend on to their last digit."""
    cpu = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.is_file() else [platform.processor()]
    packages = ("torch", "torchvision", "numpy", "opencv-contrib-python-headless")
    return {
        **{package: version(package) for package in packages if package != "torch"},
        "torch": torch.__version__,
        "cpu": models[0] if models else platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def call(*arguments: str) -> str:
    """Runs a command line, which is to succeed; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(list(arguments))
    if status:
        raise SystemExit(f"fastrcnn {' '.join(arguments)}: status {status}\n{said.getvalue()}")
    return printed.getvalue()


def scalars(run: Path) -> dict[str, list[float]]:
    """Losses and the other numbers of each step, by name: TensorBoard has all their digits, metrics.csv has six."""
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {
        tag: [event.value for event in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
        if tag.startswith("train/") and not tag.endswith(TIMES)
    }


def weights(run: Path) -> str:
    """SHA-256 over the names, shapes, types and bytes of the weights after the last step, sorted by name."""
    packed, _, _ = (run / "checkpoints" / f"step-{STEPS}.pt").read_bytes().rpartition(b"\nfastrcnn-sha256:")
    state: Mapping[str, torch.Tensor] = torch.load(io.BytesIO(packed), weights_only=True)["model"]
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def detect_verb() -> list[dict[str, Any]]:
    """Detections that `fastrcnn detect` writes."""
    Path("images.txt").write_text("".join(f"{Path(image).absolute()}\n" for image in IMAGES), encoding="utf-8")
    call("detect", "checkpoint=scratch", "source=images.txt", "output=found", "draw_threshold=0.05")
    rows = json.loads(Path("found/detections.json").read_text(encoding="utf-8"))
    return [{**row, "file": Path(row["file"]).name} for row in rows]


def load_and_detect() -> list[dict[str, Any]]:
    """Detections of `fastrcnn.load`."""
    detector = fastrcnn.load("scratch", device="cpu", precision="float32")
    return [
        {
            "boxes": found.boxes.tolist(),
            "scores": found.scores.tolist(),
            "classes": [detector.classes[label - 1] for label in found.labels.tolist()],
        }
        for found in detector.detect(IMAGES)
    ]


def help_texts() -> str:
    """What --help prints, of the program and of each verb."""
    overview = call("--help")
    verbs = re.findall(r"^  ([a-z-]+) {2,}\S", overview, re.MULTILINE)
    texts = {"fastrcnn --help": overview}
    texts |= {f"fastrcnn {verb} --help all": call(verb, "--help", "all") for verb in verbs}
    texts |= {f"fastrcnn {verb} --help": call(verb, "--help") for verb in ("train", "detect")}
    return "\n".join(f"$ {command}\n{text}" for command, text in texts.items())


def write(folder: Path) -> None:
    """Writes values.json and help.txt; computed by one thread, without a GPU, and outside of any job of torchrun."""
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "help.txt").write_text(help_texts(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as place:
        values = measure(Path(place))
    (folder / "values.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
