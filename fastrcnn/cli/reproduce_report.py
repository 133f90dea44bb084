"""What `reproduce` prints and writes: a table of the paper with the paper's numbers and the measured ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.cli.paper_tables import Cell, Table

if TYPE_CHECKING:
    from fastrcnn.cli.reproduce_runs import Measured, Plan

DIGITS = {"mAP": 1, "hours": 3, "s/image": 3}
PAPER_DIGITS = {"mAP": 1, "hours": 1, "s/image": 2}


def write(table: Table, results: dict[Cell, list[Measured]], plan: Plan, folder: Path) -> str:
    """Writes table-N.md and table-N.json into `folder`; returns the Markdown.

    results: of each cell of the table, as far as it is measured, the numbers of all seeds.
    """
    text = markdown(table, results, plan)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"table-{table.number}.md").write_text(text + "\n", encoding="utf-8")
    (folder / f"table-{table.number}.json").write_text(
        json.dumps(content(table, results, plan), indent=2) + "\n", encoding="utf-8"
    )
    return f"{text}\n\nwritten to {folder / f'table-{table.number}.md'} and .json"


def markdown(table: Table, results: dict[Cell, list[Measured]], plan: Plan) -> str:
    """The table, each cell as `paper / here`, with the mean and the deviation where there are several seeds."""
    columns = list(dict.fromkeys(cell.column for cell in table.cells))
    rows: dict[str, dict[str, str]] = {}
    for cell in table.cells:
        paper = "-" if cell.paper is None else f"{cell.paper:.{PAPER_DIGITS[cell.measure]}f}"
        rows.setdefault(cell.row, {})[cell.column] = f"{paper} / {shown(cell, results.get(cell, []))}"
    cells = [["paper / here", *columns], *([row, *(found.get(c, "-") for c in columns)] for row, found in rows.items())]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join([f"Table {table.number}. {table.title}", "", *lines, "", *notes(results, plan)])


def notes(results: dict[Cell, list[Measured]], plan: Plan) -> list[str]:
    """What a reader of the table must know: data, seeds, what was given that is not the paper's."""
    config = plan.config
    found = [f"Seeds: {', '.join(map(str, config.seeds))}."]
    if plan.own_data:
        found.append(f"Measured on the data set {config.data.name} (AP: {config.data.metric}), not on the paper's.")
    if plan.small:
        found.append("Slim networks from scratch on drawn pictures: a rehearsal, not to be compared with the paper.")
    other = [a for a in plan.given if a.partition("=")[0] not in ("data", "data.root", "data.proposals")]
    if other:
        found.append(f"Not as in the paper: {' '.join(other)}")
    archives = [v.archive for values in results.values() for v in values if v.archive is not None]
    return found + [f"For the evaluation server: {path}" for path in dict.fromkeys(archives)]


def shown(cell: Cell, values: list[Measured]) -> str:
    """A cell's measured part."""
    numbers = [v.value for v in values if v.value is not None]
    if not numbers:
        if any(v.archive for v in values):
            return "for the server"
        return "no ground truth" if values and cell.measure == "mAP" else "-"
    digits = DIGITS[cell.measure]
    mean = sum(numbers) / len(numbers)
    if len(numbers) == 1:
        return f"{mean:.{digits}f}"
    deviation = math.sqrt(sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1))
    return f"{mean:.{digits}f} +- {deviation:.{digits}f}"


def content(table: Table, results: dict[Cell, list[Measured]], plan: Plan) -> dict[str, Any]:
    """The same for programs: every number of every seed, and the run that it comes from."""
    from fastrcnn.training.tracking import environment

    return {
        "table": table.number,
        "title": table.title,
        "data": plan.config.data.name,
        "metric": plan.config.data.metric,
        "given": plan.given,
        "seeds": list(plan.config.seeds),
        "environment": environment(),
        "cells": [
            {
                "row": cell.row,
                "column": cell.column,
                "measure": cell.measure,
                "paper": cell.paper,
                "measured": [v.value for v in values],
                "runs": [str(v.folder) for v in values],
                "experiment": f"paper/{cell.work.experiment}",
                "then": list(plan.then(cell.work)),
            }
            for cell, values in results.items()
        ],
    }
