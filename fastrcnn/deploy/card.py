"""A deployed detector with its model card: what whoever runs it needs to know, as Markdown; see model_card.md.j2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fastrcnn import __version__, files
from fastrcnn.deploy.onnx_graph import write_onnx
from fastrcnn.deploy.program import LEAST_SIDE, write_program
from fastrcnn.inference.onnx_network import Description
from fastrcnn.model.fast_rcnn import FastRCNN


def model_card(description: Description, file: str, box_regression: bool) -> str:
    """The card of the network in the file called `file`, an .onnx or a .pt2."""
    here = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=here, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    mean, std = (", ".join(f"{v:g}" for v in description.pixels[key]) for key in ("mean", "std"))
    return pages.get_template("model_card.md.j2").render(
        file=file,
        onnx=file.endswith(".onnx"),
        version=__version__,
        box_regression=box_regression,
        least_side=LEAST_SIDE,
        mean=mean,
        std=std,
        g=lambda number: f"{number:g}",
        classes=description.classes,
        step=description.step,
        metrics=description.metrics,
        **{group: description.config[group] for group in ("model", "data", "detection")},
        config=json.dumps(description.config, indent=1, ensure_ascii=False),
    )


def write_with_card(
    model: FastRCNN, description: Description, box_regression: bool, output: Path, source: str | None = None
) -> Path:
    """Writes the network as an .onnx or a .pt2, by the name of `output`, and its card beside it, which is returned.

    See write_onnx.
    """
    card = output.with_name(f"{output.name}.md")
    files.refuse_existing(card, source)
    write = write_onnx if output.suffix == ".onnx" else write_program
    write(model, description, box_regression, output, source)
    with files.write_derived(card, source) as path:
        path.write_text(model_card(description, output.name, box_regression), encoding="utf-8")
    return card


def evaluations(run: Path) -> dict[str, Any]:
    """What the evaluations of a run found, by split."""
    found = {}
    for file in sorted(run.glob("eval/*/metrics.json")):
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
            found[file.parent.name] = {key: metrics[key] for key in ("metric", "mAP", "images", "ap")}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half written, or by another program: the card does without
    return found
