"""The patches of CONTRIBUTING.md, applied to a copy, add what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATCH = re.compile(r"```diff\n(.*?)```", re.DOTALL)
TRIAL = """
import sys
from pathlib import Path
import torch
from fastrcnn.build.models import model
from fastrcnn.config.compose import compose
from fastrcnn.proposals.files import open_proposals
from fastrcnn.model.fast_rcnn import pool_rois

config = compose("train", ["model=vgg11", "model.roi_op=bin_centre", "model.width=0.05"]).model
config.weights = None
network = model(config, 3).eval()
assert sum(name.startswith("trunk") and name.endswith("weight") for name, _ in network.named_parameters()) == 8
logits, _ = network(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.tensor([[0, 0, 0, 32.0, 32]]))
assert logits.shape == (1, 4)

ramp = torch.arange(20.0).expand(1, 1, 20, 20)  # each column's number, which stands half a cell further right
centres = pool_rois(ramp, torch.tensor([[0, 2.0, 2, 10, 10]]), 4, 1.0, "bin_centre")[0, 0, 0]
assert torch.allclose(centres, torch.tensor([2.5, 4.5, 6.5, 8.5])), centres

Path("x.boxes").write_text("a 1 2 3 4\\nb 5 6 7 8\\na 0 0 9 9\\n")
found = open_proposals(Path("x.boxes"))
assert found.ids == ["a", "b"]
assert found.boxes(0)[0].tolist() == [[1, 2, 3, 4], [0, 0, 9, 9]]
print("all three")
"""


def test_what_the_patches_add_works(tmp_path: Path) -> None:
    patches = PATCH.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(patches) == 3
    for folder in ("fastrcnn", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for patch in patches:
        changed = [n for n in patch.splitlines() if n.startswith(("+", "-")) and not n.startswith(("+++", "---"))]
        assert len(changed) < 20
        subprocess.run(["git", "apply", "--unidiff-zero", "-"], cwd=tmp_path, input=patch, text=True, check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", TRIAL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "all three\n"), done.stderr
