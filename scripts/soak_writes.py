#!/usr/bin/env python3
"""End commands with signals at each of their renames, and check that nothing is lost and nothing is left over.

    python scripts/soak_writes.py [COMMAND ...]

Files get their final names by renames, so a process that is killed there could lose a file or leave one behind. Each
command that replaces its previous output finds it in its folder. Before each of its renames, and after the last one,
it gets SIGKILL, SIGTERM or SIGINT. Then the same command runs again. Counted are:

  losses      files that existed before, or were complete, and are missing or incomplete after the signal
  leftovers   temporary files after SIGTERM or SIGINT, and after the second run in any case
  errors      tracebacks, wrong exit statuses, and second runs that fail

Needs Linux. The commands run in forks of one process, because starting each with its imports would take an hour.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import pkgutil
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads cannot be forked safely

from soak import SETTINGS

import fastrcnn
from fastrcnn import files
from fastrcnn.cli import main as fastrcnn_main
from fastrcnn.data.demo import write_demo

SMALL = [*SETTINGS, "solver.iterations=2"]
CHECKPOINT = "checkpoint=base/checkpoints/step-2.pt"
DATA = ["data=demo", "data.root=data/demo"]
COMMANDS = {
    "propose": [
        "propose",
        *DATA,
        "source=data/demo/JPEGImages",
        "output=own.proposals",
        "data.selective_search.k=[50]",
    ],
    "convert": ["propose", *DATA, "convert=boxes.csv", "output=converted.proposals"],
    "train": ["train", "run=run", *SMALL],
    "resume": ["train", "run=base", "resume=auto", "solver.iterations=4"],
    "eval": ["eval", CHECKPOINT, "output=evaluated"],
    "detect": ["detect", CHECKPOINT, "source=data/demo/JPEGImages", "output=found", "draw_threshold=0.1"],
    "labels": [
        *("detect", CHECKPOINT, "source=data/demo/JPEGImages", "output=found", "draw_threshold=0.1"),
        "formats=[voc,yolo,coco]",
    ],
    "compress": ["compress", CHECKPOINT, "output=small.pt", "fc6=8", "fc7=8"],
    "svm": ["svm", CHECKPOINT, "output=svm.pt"],
    "safetensors": ["export", CHECKPOINT, "format=safetensors", "output=net.safetensors"],
    "onnx": ["export", CHECKPOINT, "format=onnx", "output=net.onnx"],
    "check": ["check", *DATA, "output=checked"],
}
GROWING = ("metrics.csv", "train.log", "command.txt")
TEMPORARY = re.compile(r"\.(part|new|old)$")
NEW = ("train", "resume", "labels")  # commands that do not replace a previous output
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass
class Count:
    ends: int = 0
    losses: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def forked(
    place: Path, arguments: Sequence[str], at: int = -1, total: int = -1, number: int = 0
) -> tuple[int, str, int]:
    """Run a command in a fork in the folder `place`. Return its status, its output and the number of its renames.

    at: the process sends itself the signal `number` before the rename with this index, or after the last of `total`.
    """
    notes = Path(tempfile.mkdtemp(prefix="soak-"))
    process = os.fork()
    if process == 0:
        os.chdir(place)
        output = os.open(notes / "said", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        done = 0

        def counted(rename: Callable[..., Any]) -> Callable[..., Any]:
            def renames(*given: Any, **named: Any) -> Any:
                nonlocal done
                if done == at:
                    os.kill(os.getpid(), number)
                result = rename(*given, **named)
                done += 1
                (notes / "renames").write_text(str(done))
                if done == at == total:
                    os.kill(os.getpid(), number)
                return result

            return renames

        os.rename, os.replace, files._exchange = map(counted, (os.rename, os.replace, files._exchange))
        status = 99
        try:
            status = fastrcnn_main(list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    text = (notes / "said").read_text(errors="replace")
    renames = int((notes / "renames").read_text()) if (notes / "renames").exists() else 0
    shutil.rmtree(notes)
    return code, text, renames


def contents(place: Path) -> dict[str, str]:
    """Return the digest of each file below `place` by its path, except temporary files and files that only grow."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_file() and path.name not in GROWING and "events.out" not in name and not TEMPORARY.search(name):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def temporary(place: Path) -> list[str]:
    """Return the temporary files and folders below `place`."""
    return [str(p.relative_to(place)) for p in place.rglob("*") if TEMPORARY.search(p.name)]


def copy(template: Path) -> Path:
    place = template.with_name("place")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place)
    return place


def again(arguments: Sequence[str], place: Path) -> list[str]:
    """Return the arguments that repeat a command. A run that has begun is resumed."""
    if arguments[0] == "train" and (place / "run" / "config.yaml").exists():
        return ["train", "run=run", "resume=auto"]
    return list(arguments)


def soak(name: str, arguments: Sequence[str], template: Path) -> Count:
    """Try all moments and signals for one command in copies of the folder `template`."""
    count = Count()
    place = copy(template)
    code, text, total = forked(place, arguments)
    if code:
        raise SystemExit(f"{name} failed without a signal (status {code}):\n{text}")
    want, extra = contents(place), temporary(place)
    place = copy(template)
    forked(place, arguments)
    repeated = contents(place)
    same = {path for path in want if repeated.get(path) == want[path]}  # others contain times or random ids
    before = contents(template)
    for number in SIGNALS:
        for at in range(total + 1):
            moment = f"{name}, {number.name} at rename {at} of {total}"
            place = copy(template)
            code, text, _ = forked(place, arguments, at, total, number)
            count.ends += 1
            found = contents(place)
            wanted = -number if number == signal.SIGKILL else 128 + number
            if code == 0 and want.keys() <= found.keys():
                wanted = 0  # after its last step, a command completes its work
            if code != wanted or "Traceback" in text:
                count.errors.append(f"{moment}: status {code}\n{text[-1500:]}")
            for path in before.keys() & want.keys() - found.keys():
                count.losses.append(f"{moment}: {path} is missing")
            for path in found.keys() & same:
                if found[path] not in (before.get(path), want[path]):
                    count.losses.append(f"{moment}: {path} is incomplete")
            if number != signal.SIGKILL and (left := temporary(place)):
                count.leftovers.append(f"{moment}: {left}")
            code, text, _ = forked(place, again(arguments, place))
            if "labels that you corrected" in text:  # complete labels are never overwritten: move them away
                for labels in (place / "found").glob("labels_*"):
                    shutil.rmtree(labels)
                code, text, _ = forked(place, again(arguments, place))
            if code:
                count.errors.append(f"{moment}: the second run ended with status {code}\n{text[-1500:]}")
            elif missing := want.keys() - contents(place).keys():
                count.losses.append(f"{moment}: missing after the second run: {sorted(missing)[:5]}")
            if left := [path for path in temporary(place) if path not in extra]:
                count.leftovers.append(f"{moment}, after the second run: {left}")
    return count


def prepare(folder: Path) -> Path:
    """Create the folder in which the commands run: a data set, a file with proposals, and a run of two steps."""
    template = folder / "template"
    root = write_demo(template / "data" / "demo", train=4, val=2, test=3)
    ids = sorted(p.stem for p in (root / "JPEGImages").iterdir())
    rows = "".join(f"{i},10,10,60,50\n{i},20,5,90,70\n" for i in ids)
    (template / "boxes.csv").write_text(f"image_id,x1,y1,x2,y2\n{rows}")
    must(template, ["train", "run=base", *SMALL])
    return template


def must(place: Path, arguments: Sequence[str]) -> None:
    code, text, _ = forked(place, arguments)
    if code:
        raise SystemExit(f"{arguments} failed:\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"default: {' '.join(COMMANDS)}")
    chosen = parser.parse_args().commands or list(COMMANDS)
    for module in pkgutil.walk_packages(fastrcnn.__path__, "fastrcnn."):
        if not module.name.endswith(("__main__", "._roi_cpu", "._selective_search")):
            importlib.import_module(module.name)
    failed = False
    print(
        "| command | ends by a signal | losses | leftovers | errors | seconds |\n|---|---|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        template = prepare(Path(name))
        for command in chosen:
            began, own = time.monotonic(), template.with_name("own")
            shutil.rmtree(own, ignore_errors=True)
            shutil.copytree(template, own)
            if command not in NEW:
                must(own, COMMANDS[command])  # its previous output
            count = soak(command, COMMANDS[command], own)
            numbers = [count.ends, len(count.losses), len(count.leftovers), len(count.errors)]
            print(f"| {command} | {' | '.join(map(str, numbers))} | {time.monotonic() - began:.0f} |", flush=True)
            for problem in (*count.losses, *count.leftovers, *count.errors):
                print(f"  {problem}", file=sys.stderr)
            failed = failed or any(numbers[1:])
    sys.exit(failed)


if __name__ == "__main__":
    main()
