"""Define the tables of the paper with the experiment of each cell, and format published and measured numbers.

S, M and L are the paper's names for CaffeNet, VGG_CNN_M_1024 and VGG16. The published numbers are from Girshick, "Fast
R-CNN", ICCV 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

NETWORKS = ("S", "M", "L")
DIGITS = {"mAP": 1, "hours": 3, "s/image": 3}
PAPER_DIGITS = {"mAP": 1, "hours": 1, "s/image": 2}
SVD = ("compress", "fc6=1024", "fc7=256")
NO_REGRESSION = ("eval", "detection.box_regression=false")


@dataclass(frozen=True)
class Work:
    """An experiment (configs/experiment/paper/NAME.yaml), and a command to run on the trained network.

    start: the experiment whose trained network is the starting point, if any.
    then: the `fastrcnn` command and its arguments. If empty, the trained network is evaluated directly.
    server: the test split of the paper's number if it has no public ground truth. A server computes the mAP.
    """

    experiment: str
    start: str | None = None
    then: tuple[str, ...] = ()
    server: str | None = None


@dataclass(frozen=True)
class Cell:
    """A number in a table. measure: "mAP" (per cent), "hours" (training time) or "s/image" (detection time).

    The detection time does not include the generation of proposals.
    """

    row: str
    column: str
    paper: float | None
    work: Work
    measure: str = "mAP"


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    number: int
    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Measured:
    """A measured number.

    value: in the unit of the cell's measure, or None if the split has no public ground truth.
    folder: the folder of the run.
    archive: the submission for the evaluation server, if the value is None and the submission has been written.
    """

    value: float | None
    folder: Path
    archive: Path | None = None


def row(
    name: str,
    numbers: Sequence[float],
    experiment: str = "07",
    measure: str = "mAP",
    start: str | None = None,
    then: tuple[str, ...] = (),
) -> list[Cell]:
    """Return the cells of a row of a table, one per network.

    numbers: the paper's results for the networks S, M and L, in this order. Networks at the end can be omitted.
    experiment, start: names of experiments without the letter of the network.
    """
    cells = []
    for network, paper in zip(NETWORKS, numbers, strict=False):
        letter = network.lower()
        work = Work(f"{letter}_{experiment}", start and f"{letter}_{start}", then)
        cells.append(Cell(name, network, paper, work, measure))
    return cells


def large(name: str, paper: float, experiment: str, server: str | None = None) -> Cell:
    """Return a cell with an mAP of network L.

    name: name of the row. paper: the paper's result. experiment: name of the experiment without the letter `l_`.
    """
    return Cell(name, "L", paper, Work(f"l_{experiment}", server=server))


ONE_SCALE, SECONDS = (57.1, 59.2, 66.9), (0.10, 0.15, 0.32)
TABLES = (
    Table(
        1,
        "VOC 2007 test: mAP for different training sets",
        (
            large("07", 66.9, "07"),
            large("07 without difficult", 68.1, "07_no_difficult"),
            large("07+12", 70.0, "0712"),
        ),
    ),
    Table(
        2,
        "VOC 2010 test: mAP for different training sets",
        (large("12", 66.1, "12", "VOC2010/test"), large("07++12", 68.8, "07pp12", "VOC2010/test")),
    ),
    Table(
        3,
        "VOC 2012 test: mAP for different training sets",
        (large("12", 65.7, "12", "VOC2012/test"), large("07++12", 68.4, "07pp12", "VOC2012/test")),
    ),
    Table(
        4,
        "Training time, detection time and mAP on VOC 2007, with and without truncated SVD",
        (
            *row("training, hours", (1.2, 2.0, 9.5), measure="hours"),
            *row("detection, s/image", SECONDS, measure="s/image"),
            *row("detection with SVD, s/image", (0.06, 0.08, 0.22), measure="s/image", then=SVD),
            *row("mAP", ONE_SCALE),
            *row("mAP with SVD", (56.5, 58.7, 66.6), then=SVD),
        ),
    ),
    Table(
        5,
        "mAP on VOC 2007 for different first trained layers of VGG16",
        (large("fc6", 61.4, "fc6"), large("conv3_1", 66.9, "07"), large("conv2_1", 67.2, "conv2_1")),
    ),
    Table(
        6,
        "Multi-task training: mAP on VOC 2007",
        (
            *row("class loss only", (52.2, 54.7, 62.6), "class_only"),
            *row("multi-task, no box regression at test time", (53.3, 55.5, 63.4), then=NO_REGRESSION),
            *row("stage-wise", (54.6, 56.6, 64.0), "stagewise", start="class_only"),
            *row("multi-task", ONE_SCALE),
        ),
    ),
    Table(
        7,
        "One scale and five scales: mAP and detection time on VOC 2007",
        (
            *row("one scale, s/image", SECONDS, measure="s/image"),
            *row("five scales, s/image", (0.39, 0.64), "five_scales", "s/image"),
            *row("one scale, mAP", ONE_SCALE),
            *row("five scales, mAP", (58.4, 60.7), "five_scales"),
        ),
    ),
    Table(
        8,
        "SVM and softmax: mAP on VOC 2007",
        (*row("SVM", (56.3, 58.7, 66.8), then=("svm",)), *row("softmax", ONE_SCALE)),
    ),
)


def markdown(table: Table, results: Mapping[Cell, Sequence[Measured]], notes: Sequence[str]) -> str:
    """Format a table in Markdown. Each cell is `paper / measured`.

    results: for each cell that was measured, one number per seed. If there are several seeds, the mean and standard
        deviation of the numbers are given. notes: lines below the table.
    """
    columns = list(dict.fromkeys(cell.column for cell in table.cells))
    rows: dict[str, dict[str, str]] = {}
    for cell in table.cells:
        paper = "-" if cell.paper is None else f"{cell.paper:.{PAPER_DIGITS[cell.measure]}f}"
        rows.setdefault(cell.row, {})[cell.column] = f"{paper} / {format_values(cell, results.get(cell, []))}"
    cells = [["paper / measured", *columns]]
    cells += [[name, *(row.get(c, "-") for c in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    archives = dict.fromkeys(v.archive for values in results.values() for v in values if v.archive is not None)
    server = [f"Submission for the evaluation server: {path}" for path in archives]
    return "\n".join([f"Table {table.number}. {table.title}", "", *lines, "", *notes, *server])


def format_values(cell: Cell, values: Sequence[Measured]) -> str:
    """Format the measured numbers of a cell, or the reason why there are none. values: one number per seed."""
    numbers = [v.value for v in values if v.value is not None]
    digits = DIGITS[cell.measure]
    if len(numbers) > 1:
        return f"{mean(numbers):.{digits}f} +- {stdev(numbers):.{digits}f}"
    if numbers:
        return f"{numbers[0]:.{digits}f}"
    if any(v.archive for v in values):
        return "to be submitted"
    return "no ground truth" if values and cell.measure == "mAP" else "-"
