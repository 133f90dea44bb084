#!/usr/bin/env python3
"""Train on VOC2007 trainval and evaluate on VOC2007 test, with a data set packed by scripts/pack_dataset.py.

    python scripts/bench_voc07.py PACK WORK [--recipe paper|modern] [--json FILE] [KEY=VALUE ...]

PACK contains the images, the ImageNet convolutions of VGG16 and usually the proposals. fc6 and fc7 are initialised
randomly. Without proposals in PACK, training generates them (0.06 s per image on one core).
The data set is unpacked to WORK/data unless it already exists. The run is the folder WORK/RECIPE; if it exists, it is
resumed. KEY=VALUE arguments are passed to `fastrcnn train`. Next to the JSON file, the files that the evaluation
and the training wrote (metrics.json, report.html, metrics.csv and train.log) are copied with the recipe as a prefix,
even if the run was stopped by SIGTERM, for example at the time limit of a stage of bench_gpu.sh.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from measuring import Table, logged_values, machine_details

KEYS = (
    "data=voc07",
    "model=vgg16",
    "runtime.precision=bfloat16",
    "runtime.evaluate_every=0",
    "runtime.images_every=0",
    "runtime.checkpoint_every=20000",  # a checkpoint has 1 GB
)
COPIED = ("eval/*/metrics.json", "eval/*/report.html", "metrics.csv", "train.log")


def unpacked(pack: Path, work: Path) -> list[str]:
    """Unpack the data set unless WORK/data exists. Return the keys of `fastrcnn train` that use it."""
    data = work / "data"
    if not data.exists():
        script = Path(__file__).with_name("pack_dataset.py")
        subprocess.run([sys.executable, script, "unpack", pack, data], check=True)
    (root,) = (data / "VOCdevkit").iterdir()
    (weights,) = data.glob("*.safetensors")
    splits = [f"data.train=[{root.name}/trainval]", f"data.test=[{root.name}/test]"]
    proposals = [f"data.proposals={store}" for store in data.glob("*.proposals")]
    proposals = proposals or [f"data.proposal_cache={work / 'proposals'}"]
    return [f"data.root={data / 'VOCdevkit'}", *splits, *proposals, f"model.weights={weights}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", choices=["paper", "modern"], default="paper")
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    begin = time.perf_counter()
    keys = unpacked(options.pack, options.work)
    unpacking, run = time.perf_counter() - begin, options.work / options.recipe
    begin = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: None)  # training saves a checkpoint; afterwards, its files are copied
    command = [sys.executable, "-m", "fastrcnn", "train", f"recipe={options.recipe}", *KEYS, *keys, *options.settings]
    done = subprocess.run([*command, f"run={run}", *(["resume=auto"] if run.exists() else [])])
    seconds = time.perf_counter() - begin
    if options.json:
        for path in (file for pattern in COPIED for file in run.glob(pattern)):
            shutil.copy(path, options.json.with_name(f"{options.recipe}-{path.name}"))
    if done.returncode:
        sys.exit(done.returncode)
    (evaluated,) = run.glob("eval/*/metrics.json")
    measured = json.loads(evaluated.read_text())
    logged = logged_values(run)
    row = {
        "recipe": options.recipe,
        "mAP": measured["mAP"],
        "AP": measured["ap"],
        "seconds": seconds,
        "unpacking_s": unpacking,
        "images_per_s_while_training": statistics.median(logged["train/images_per_s"]),
        "share_waiting_for_images": statistics.mean(logged["train/data_wait_share"]),
        "last_loss": logged["train/loss"][-1],
        "command": " ".join(command[1:]),
    }
    columns = ["recipe", "mAP", "seconds", "images/s while training", "share of time waiting for images", "last loss"]
    table = Table(machine_details(torch.device("cuda" if torch.cuda.is_available() else "cpu")), columns, options.json)
    numbers = [
        "none" if row["mAP"] is None else f"{row['mAP']:.4f}",
        f"{seconds:.0f}",
        f"{row['images_per_s_while_training']:.1f}",
    ]
    table.add([options.recipe, *numbers, f"{row['share_waiting_for_images']:.1%}", f"{row['last_loss']:.3f}"], row)


if __name__ == "__main__":
    main()
