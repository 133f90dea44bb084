"""Execute the instructions of the Dockerfile in a new Debian system within a folder, on a machine without Docker.

    sudo python scripts/try_dockerfile.py FOLDER [--suite trixie] [-- demo solver.iterations=5]

Requires root, debootstrap, 15 GB of disk space and network access. FROM creates a new Debian system of the suite. RUN
uses chroot; only the network settings of the host are passed on (resolv.conf, certificates, proxies, pip settings).
COPY copies the files that are tracked by git and not excluded by .dockerignore. Finally, the entry point is run as the
image's user, without arguments and then with the arguments after `--`. The script stops at the first command that
fails.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NETWORK = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf", "/etc/apt/apt.conf.d")


@dataclass
class Stage:
    """A build stage: its root folder and the current values of ENV, WORKDIR, USER, ENTRYPOINT and CMD."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    folder: str = "/"
    user: str = "0"
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def instructions(text: str) -> list[tuple[str, str]]:
    """Return pairs of instruction and arguments. Continuation lines are joined, and comments are removed."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def context() -> list[str]:
    """Return the files of the build context: those tracked by git and not excluded by .dockerignore."""
    ignored = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines() if line.strip()]
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [n for n in names if n and not any(fnmatch.fnmatch(n, i) or n.startswith(f"{i}/") for i in ignored)]


def copied(source: str, target: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of file and target for the files that `COPY source target` copies. names: the build context."""
    inside = [n for n in names if n.startswith(f"{source}/")]
    target = target.removeprefix("./")
    if inside:
        return [(n, f"{target.rstrip('/')}/{n[len(source) + 1 :]}") for n in inside]
    if source not in names:
        raise SystemExit(f"COPY {source}: the file is not in the build context")
    return [(source, f"{target}{source}" if not target or target.endswith("/") else target)]


def run(stage: Stage, command: Sequence[str], user: str) -> None:
    """Run a command in the stage with chroot. Its output goes to the terminal."""
    for file in map(Path, NETWORK):  # before every command, because packages can overwrite these files
        if file.exists():
            target = stage.root / file.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-aL", str(file), str(target.parent)], check=True)
    passed = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.lower().endswith("_proxy")}
    setting = [f"{k}={v}" for k, v in (passed | stage.environment | {"HOME": "/tmp"}).items()]
    inside = f"cd {shlex.quote(stage.folder)} && exec {shlex.join(command)}"
    whole = ["chroot", f"--userspec={user}:{user}", str(stage.root), "env", "-i", *setting, "sh", "-c", inside]
    print("+", shlex.join(command), file=sys.stderr, flush=True)
    if subprocess.run(whole, check=False).returncode:
        raise SystemExit(f"Command failed: {shlex.join(command)}")


def fresh(place: Path, name: str, suite: str) -> Stage:
    """Create a stage with a new Debian system."""
    base, root = place / f"base-{suite}", place / name
    if not base.exists():
        subprocess.run(["debootstrap", "--variant=minbase", suite, str(base)], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "-a", str(base), str(root)], check=True)
    (root / "dev" / "shm").mkdir(exist_ok=True)  # exists in a container
    (root / "dev" / "shm").chmod(0o1777)
    return Stage(root)


def carry_out(text: str, place: Path, suite: str) -> Stage:
    """Build the stages of a Dockerfile within a folder and return the last one. text: content of the Dockerfile."""
    stages: dict[str, Stage] = {}
    stage = Stage(place)
    for word, rest in instructions(text):
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "last"
            stage = stages[name] = fresh(place, name, suite)
        elif word == "ENV":
            name, _, value = rest.partition("=")
            stage.environment[name] = string.Template(value).substitute(stage.environment)
        elif word == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = rest
        elif word == "ENTRYPOINT":
            stage.entry = json.loads(rest)
        elif word == "CMD":
            stage.command = json.loads(rest)
        elif word == "RUN":
            run(stage, ["sh", "-c", rest], stage.user)
        elif word == "COPY" and rest.startswith("--from="):
            origin, source, target = rest.removeprefix("--from=").split()
            (stage.root / target.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            there = stages[origin].root / source.lstrip("/")
            subprocess.run(["cp", "-a", "--reflink=auto", str(there), str(stage.root / target.lstrip("/"))], check=True)
        elif word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                for name, to in copied(source, target, context()):
                    path = stage.root / stage.folder.lstrip("/") / to
                    path.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, path)
        elif word != "ARG":
            raise SystemExit(f"{word}: this script does not support this Dockerfile instruction")
    return stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suite", default="trixie", help="Debian suite: bookworm has Python 3.11, trixie has 3.13")
    ours, _, arguments = " ".join(map(shlex.quote, sys.argv[1:])).partition(" -- ")
    options = parser.parse_args(shlex.split(ours))
    options.folder.mkdir(parents=True, exist_ok=True)
    stage = carry_out((ROOT / "Dockerfile").read_text(), options.folder.resolve(), options.suite)
    run(stage, [*stage.entry, *stage.command], stage.user)
    if arguments:
        run(stage, [*stage.entry, *shlex.split(arguments)], stage.user)


if __name__ == "__main__":
    main()
