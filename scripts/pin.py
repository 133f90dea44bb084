"""Write the reference values of tests/test_pinned.py: losses, weights, detections, AP and help texts of small runs.

    python scripts/pin.py [FOLDER]

Run this script after an intentional change of behaviour, and review the diff of tests/pinned before you commit it. The
script uses only the command line, `fastrcnn.load` and the files of a run, so it does not depend on internal modules.
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
IMAGES = [f"data/demo/JPEGImages/{number:06}.jpg" for number in (351, 352, 353)]  # the first images of the test split
TIMES = ("_per_s", "data_wait_share")  # suffixes of scalars that depend on the time


def measure(place: Path) -> dict[str, Any]:
    """Train, evaluate and detect in the empty folder `place`. Return the results as JSON-compatible values."""
    with contextlib.chdir(place):
        # The demo generates the data set, trains from scratch, evaluates and detects.
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
    """Return the package versions, CPU and thread count, which affect floating-point results."""
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
    """Run a command and return its output. Raises SystemExit if the command fails."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(list(arguments))
    if status:
        raise SystemExit(f"fastrcnn {' '.join(arguments)}: failed with exit status {status}\n{said.getvalue()}")
    return printed.getvalue()


def scalars(run: Path) -> dict[str, list[float]]:
    """Return the scalars of each step by name, from TensorBoard, because metrics.csv contains only six digits."""
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {
        tag: [event.value for event in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
        if tag.startswith("train/") and not tag.endswith(TIMES)
    }


def weights(run: Path) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and bytes of the final weights, sorted by name."""
    packed, _, _ = (run / "checkpoints" / f"step-{STEPS}.pt").read_bytes().rpartition(b"\nfastrcnn-sha256:")
    state: Mapping[str, torch.Tensor] = torch.load(io.BytesIO(packed), weights_only=True)["model"]
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def detect_verb() -> list[dict[str, Any]]:
    """Return the detections of `fastrcnn detect`."""
    Path("images.txt").write_text("".join(f"{Path(image).absolute()}\n" for image in IMAGES), encoding="utf-8")
    call("detect", "checkpoint=scratch", "source=images.txt", "output=found", "draw_threshold=0.05")
    rows = json.loads(Path("found/detections.json").read_text(encoding="utf-8"))
    return [{**row, "file": Path(row["file"]).name} for row in rows]


def load_and_detect() -> list[dict[str, Any]]:
    """Return the detections of a detector from `fastrcnn.load`."""
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
    """Return the --help output of the program and of each command."""
    overview = call("--help")
    verbs = re.findall(r"^  ([a-z-]+) {2,}\S", overview, re.MULTILINE)
    texts = {"fastrcnn --help": overview}
    texts |= {f"fastrcnn {verb} --help all": call(verb, "--help", "all") for verb in verbs}
    texts |= {f"fastrcnn {verb} --help": call(verb, "--help") for verb in ("train", "detect")}
    return "\n".join(f"$ {command}\n{text}" for command, text in texts.items())


def write(folder: Path) -> None:
    """Write values.json and help.txt, computed with one thread, without a GPU and without torchrun's environment."""
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
