"""`fastrcnn demo`, the first command that a newcomer types, with fewer pictures and steps."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

import fastrcnn.data.demo
from fastrcnn.cli import main


@pytest.mark.parametrize(("split", "images"), [("test", 7), ("val", 2)])
def test_the_demo_makes_data_trains_evaluates_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], split: str, images: int
) -> None:
    monkeypatch.chdir(tmp_path)
    small = functools.partial(fastrcnn.data.demo.write_demo, train=6, val=2, test=7)
    monkeypatch.setattr(fastrcnn.data.demo, "write_demo", small)
    few = ["solver.iterations=2", "solver.images_per_batch=2", "model.width=0.05", "runtime.workers=0"]
    assert main(["demo", *few, f"data.test=[{split}]"]) == 0

    (run,) = (tmp_path / "outputs" / "demo").iterdir()
    metrics = json.loads((run / "eval" / split / "metrics.json").read_text())
    assert metrics["images"] == images
    assert set(metrics["ap"]) == {"circle", "cross", "square", "star", "triangle"}
    assert min(r for r in metrics["proposals"]["recall_50"].values() if r is not None) > 0.9
    held_out = (tmp_path / "data" / "demo" / "ImageSets" / "Main" / "test.txt").read_text().split()
    assert sorted(p.stem for p in (run / "detect").glob("*.png")) == sorted(held_out[:6])
    last = capsys.readouterr().out.splitlines()[-5:]
    assert last[0].startswith(f"4/4  mAP {metrics['mAP']:.3f} on {images} test images")
    assert str(run.relative_to(tmp_path)) in last[1]
    assert str(run.relative_to(tmp_path) / "eval" / split / "report.html") in last[2]
    assert (run / "eval" / split / "report.html").is_file()
    assert str(run.relative_to(tmp_path) / "detect") in last[3]
