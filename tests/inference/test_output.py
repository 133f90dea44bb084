"""The files of `fastrcnn detect`: names of images and classes in a table that a spreadsheet opens."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastrcnn.data.transforms import Augmentation
from fastrcnn.inference.detector import Detector
from fastrcnn.inference.output import Output
from fastrcnn.names import csv_cell
from fastrcnn.proposals.selective_search import propose
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Detections


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|x", "'+cmd|x"),
        ("-a", "'-a"),
        ("@sum", "'@sum"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("-1.5", "-1.5"),
        ("+2e-3", "+2e-3"),
        ("-1.5+x", "'-1.5+x"),
        ("cat=1", "cat=1"),
        ("'=1", "'=1"),
    ],
)
def test_a_spreadsheet_runs_no_name(text: str, written: str) -> None:
    assert csv_cell(text) == written


def test_names_in_the_table_are_no_formulas(tmp_path: Path) -> None:
    """Only text is changed: the frame -1.5 and x1 = -3 stay numbers. The carriage return ends no row."""
    network: Any = SimpleNamespace(device=torch.device("cpu"))
    detector = Detector(network, ["=1+1"], DetectionSettings(), Augmentation(), propose)
    output = Output(tmp_path, "s", ["file", "time"], ["csv"], detector, [], [])
    boxes, scores, labels = torch.tensor([[-3.0, 1, 5, 6]]), torch.tensor([0.5]), torch.tensor([1])
    output.add("-x\r=y", Detections(boxes, scores, labels, classes=("=1+1",)), ["@f.png", -1.5])
    output.write_detections()
    with (tmp_path / "detections.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    names = {"image_id": "'-x\r=y", "file": "'@f.png", "category": "'=1+1"}
    numbers = {"time": "-1.5", "category_id": "1", "score": "0.5", "x1": "-3.0", "y1": "1.0", "x2": "5.0", "y2": "6.0"}
    assert row == names | numbers
