"""What `reproduce` prints and writes: a table of the paper with the paper's numbers and the measured ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn.cli.paper_tables import Cell, Table
from fastrcnn.config import ReproduceConfig

if TYPE_CHECKING:
    from fastrcnn.cli.reproduce import Measured

DIGITS = {"mAP": 1, "hours": 3, "s/image": 3}
PAPER_DIGITS = {"mAP": 1, "hours": 1, "s/image": 2}


def write(table: Table, results: list[list[Measured]], config: ReproduceConfig, folder: Path) -> str:
    """Writes table-N.md and table-N.json into `folder`; returns the Markdown.

    results: of each cell of the table the numbers of all seeds.
    """
    text = markdown(table, results, config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"table-{table.number}.md").write_text(text + "\n", encoding="utf-8")
    (folder / f"table-{table.number}.json").write_text(
        json.dumps(content(table, results, config), indent=2) + "\n", encoding="utf-8"
    )
    return f"{text}\n\nwritten to {folder / f'table-{table.number}.md'} and .json"


def markdown(table: Table, results: list[list[Measured]], config: ReproduceConfig) -> str:
    """The table, each cell as `paper / here`, with the mean and the deviation where there are several seeds."""
    columns = list(dict.fromkeys(cell.column for cell in table.cells))
    rows: dict[str, dict[str, str]] = {}
    for cell, values in zip(table.cells, results, strict=True):
        paper = "-" if cell.paper is None else f"{cell.paper:.{PAPER_DIGITS[cell.measure]}f}"
        rows.setdefault(cell.row, {})[cell.column] = f"{paper} / {shown(cell, values)}"
    cells = [["paper / here", *columns], *([row, *(found.get(c, "-") for c in columns)] for row, found in rows.items())]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    notes = [f"Data: {config.data.name}. Seeds: {', '.join(map(str, config.seeds))}."]
    if config.data.name == "demo":
        notes.append("Slim networks from scratch on drawn pictures: a rehearsal, not to be compared with the paper.")
    archives = [v.archive for values in results for v in values if v.archive is not None]
    notes += [f"For the evaluation server: {path}" for path in dict.fromkeys(archives)]
    return "\n".join([f"Table {table.number}. {table.title}", "", *lines, "", *notes])


def shown(cell: Cell, values: list[Measured]) -> str:
    """A cell's measured part."""
    numbers = [v.value for v in values if v.value is not None]
    if not numbers:
        return "for the server" if any(v.archive for v in values) else "-"
    digits = DIGITS[cell.measure]
    mean = sum(numbers) / len(numbers)
    if len(numbers) == 1:
        return f"{mean:.{digits}f}"
    deviation = math.sqrt(sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1))
    return f"{mean:.{digits}f} +- {deviation:.{digits}f}"


def content(table: Table, results: list[list[Measured]], config: ReproduceConfig) -> dict[str, Any]:
    """The same for programs: every number of every seed, and the run that it comes from."""
    from fastrcnn.training.tracking import environment

    return {
        "table": table.number,
        "title": table.title,
        "data": config.data.name,
        "seeds": list(config.seeds),
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
                "then": list(cell.work.then),
            }
            for cell, values in zip(table.cells, results, strict=True)
        ],
    }
