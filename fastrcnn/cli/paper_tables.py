"""The tables of the paper as work to do: which experiment each number is of, and what the paper has there.

S, M and L are the paper's names of CaffeNet, VGG_CNN_M_1024 and VGG16. Numbers: Girshick, Fast R-CNN, ICCV 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

NETWORKS = ("S", "M", "L")


@dataclass(frozen=True)
class Work:
    """An experiment (configs/experiment/paper/NAME.yaml), and what is done with the trained network.

    start: the experiment whose network it begins with.
    then: a verb and its arguments, run on the trained network; none: the evaluation at the end of training counts.
    server: the split, without public truth, whose detections the paper's number was computed from.
    """

    experiment: str
    start: str | None = None
    then: tuple[str, ...] = ()
    server: str | None = None


@dataclass(frozen=True)
class Cell:
    """One number. measure: "mAP" in per cent, "hours" of training, or "s/image" of detection without proposals."""

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


def whole(network: str) -> Work:
    """A network on VOC07 as the paper trains it."""
    return Work(f"{network.lower()}_07")


def compressed(network: str) -> Work:
    """The same with fc6 and fc7 of ranks 1024 and 256."""
    return Work(f"{network.lower()}_07", then=("compress", "fc6=1024", "fc7=256"))


def across(row: str, numbers: tuple[float | None, ...], works: list[Work], measure: str = "mAP") -> list[Cell]:
    """A row of a table with a column for each of the networks S, M and L, as far as there are works."""
    return [Cell(row, n, p, w, measure) for n, p, w in zip(NETWORKS, numbers, works, strict=False)]


def on_server(year: str, numbers: tuple[float, float]) -> tuple[Cell, ...]:
    trained = (("12", "l_12"), ("07++12", "l_07pp12"))
    return tuple(
        Cell(row, "L", paper, Work(name, server=f"VOC{year}/test"))
        for (row, name), paper in zip(trained, numbers, strict=True)
    )


def stage(network: str) -> Work:
    n = network.lower()
    return Work(f"{n}_stagewise", start=f"{n}_class_only")


TABLES = (
    Table(
        1,
        "VOC 2007 test: mAP by what the network was trained on",
        (
            Cell("07", "L", 66.9, whole("L")),
            Cell("07 without difficult", "L", 68.1, Work("l_07_no_difficult")),
            Cell("07+12", "L", 70.0, Work("l_0712")),
        ),
    ),
    Table(2, "VOC 2010 test: mAP by what the network was trained on", on_server("2010", (66.1, 68.8))),
    Table(3, "VOC 2012 test: mAP by what the network was trained on", on_server("2012", (65.7, 68.4))),
    Table(
        4,
        "Time of training and detection, and mAP on VOC 2007, with and without truncated SVD",
        (
            *across("training, hours", (1.2, 2.0, 9.5), [whole(n) for n in NETWORKS], "hours"),
            *across("detection, s/image", (0.10, 0.15, 0.32), [whole(n) for n in NETWORKS], "s/image"),
            *across("detection with SVD, s/image", (0.06, 0.08, 0.22), [compressed(n) for n in NETWORKS], "s/image"),
            *across("mAP", (57.1, 59.2, 66.9), [whole(n) for n in NETWORKS]),
            *across("mAP with SVD", (56.5, 58.7, 66.6), [compressed(n) for n in NETWORKS]),
        ),
    ),
    Table(
        5,
        "mAP on VOC 2007 by the first layer of VGG16 that is trained",
        (
            Cell("fc6", "L", 61.4, Work("l_fc6")),
            Cell("conv3_1", "L", 66.9, whole("L")),
            Cell("conv2_1", "L", 67.2, Work("l_conv2_1")),
        ),
    ),
    Table(
        6,
        "Multi-task training: mAP on VOC 2007",
        (
            *across("class loss only", (52.2, 54.7, 62.6), [Work(f"{n.lower()}_class_only") for n in NETWORKS]),
            *across(
                "multi-task, no box regression at test",
                (53.3, 55.5, 63.4),
                [Work(f"{n.lower()}_07", then=("eval", "detection.box_regression=false")) for n in NETWORKS],
            ),
            *across("stage-wise", (54.6, 56.6, 64.0), [stage(n) for n in NETWORKS]),
            *across("multi-task", (57.1, 59.2, 66.9), [whole(n) for n in NETWORKS]),
        ),
    ),
    Table(
        7,
        "One and five scales: mAP on VOC 2007 and time of detection",
        (
            *across("one scale, s/image", (0.10, 0.15, 0.32), [whole(n) for n in NETWORKS], "s/image"),
            *across("five scales, s/image", (0.39, 0.64), [Work(f"{n}_five_scales") for n in "sm"], "s/image"),
            *across("one scale, mAP", (57.1, 59.2, 66.9), [whole(n) for n in NETWORKS]),
            *across("five scales, mAP", (58.4, 60.7), [Work(f"{n}_five_scales") for n in "sm"]),
        ),
    ),
    Table(
        8,
        "SVMs and softmax: mAP on VOC 2007",
        (
            *across("SVM", (56.3, 58.7, 66.8), [Work(f"{n.lower()}_07", then=("svm",)) for n in NETWORKS]),
            *across("softmax", (57.1, 59.2, 66.9), [whole(n) for n in NETWORKS]),
        ),
    ),
)
