"""The wheel, unpacked into an empty folder, works from another folder: the YAML files are inside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastrcnn.data.demo import write_demo

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content; built from a copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout
    names = [n for n in tracked.decode().split("\0") if n and (ROOT / n).is_file()]
    if not names:
        pytest.skip("not a git checkout, so what belongs into the wheel is not known")
    for name in names:
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    subprocess.run(built, check=True)
    (wheel,) = folder.glob("fastrcnn-*.whl")
    target = folder / "installed"
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m fastrcnn` with the wheel's files before all others."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "fastrcnn", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_brings_its_configuration_and_documents(installed: Path) -> None:
    package = installed / "fastrcnn"
    wanted = {p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yaml")}
    assert {p.relative_to(package / "configs") for p in (package / "configs").rglob("*.yaml")} == wanted
    assert (package / "ops" / "README.md").is_file()
    assert (package / "py.typed").is_file()
    assert list((package / "ops" / "csrc").glob("*.cu"))
    pages = ROOT / "fastrcnn" / "report" / "templates"
    for path in pages.iterdir():
        assert (package / "report" / "templates" / path.name).read_bytes() == path.read_bytes()


def test_training_runs_from_the_wheel_in_another_folder(installed: Path, tmp_path: Path) -> None:
    write_demo(tmp_path / "data" / "demo", train=4, val=1, test=2)
    few = ["solver.iterations=2", "solver.images_per_batch=2", "model.width=0.05", "runtime.workers=0"]
    done = run(installed, tmp_path, "train", "experiment=demo", *few)
    assert done.returncode == 0, done.stderr
    assert "mAP" in done.stdout
    assert len(list((tmp_path / "outputs" / "demo").glob("*/eval/test/metrics.json"))) == 1
    assert len(list((tmp_path / "outputs" / "demo").glob("*/eval/test/report.html"))) == 1
