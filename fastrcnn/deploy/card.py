"""The model card of a deployed detector: what whoever runs it needs to know, as Markdown; see model_card.md.j2."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fastrcnn import __version__
from fastrcnn.deploy.program import LEAST_SIDE
from fastrcnn.inference.description import Description


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
