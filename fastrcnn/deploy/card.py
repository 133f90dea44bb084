"""Write an exported detector and its model card, a Markdown file that describes it (template: model_card.md.j2)."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fastrcnn import __version__, files
from fastrcnn.deploy.onnx_graph import write_onnx
from fastrcnn.deploy.program import LEAST_SIDE, write_program
from fastrcnn.inference.description import Description, sound_evaluation
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.head import parameter_count
from fastrcnn.names import escape_markdown
from fastrcnn.weights import export

log = logging.getLogger(__name__)
SAME = 5e-4  # a smaller difference between two mAPs is treated as rounding, for example due to another precision


def model_card(description: Description, output: Path, box_regression: bool, parameters: int) -> str:
    """Return the Markdown text of the model card of the exported file `output`, whose suffix is the export format.

    box_regression: whether the exported network applies box regression. parameters: number of parameters.
    """
    here = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=here, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    mean, std = (", ".join(f"{v:g}" for v in description.pixels[key]) for key in ("mean", "std"))
    objects = description.record.get("objects", {})
    columns = [metrics.get("ap", {}) for metrics in description.metrics.values()]
    rows = [
        [cell(name), *([f"{objects.get(name, 0):,}"] if objects else []), *(figure(ap.get(name)) for ap in columns)]
        for name in description.classes
    ]
    unsaid = ""
    if output.suffix == ".caffemodel":  # the file contains only weights
        data, listed = description.config["data"], json.dumps(description.classes, ensure_ascii=False)
        keys = {
            "classes": listed,
            "test_short_sides": json.dumps(data["test_short_sides"]),
            "long_side": data["long_side"],
        }
        unsaid = "".join(f" \\\n    {shlex.quote(f'data.{key}={value}')}" for key, value in keys.items())
    file = output.name if re.fullmatch(r"[\w.,+=@-]+", output.name) else f"MODEL{output.suffix}"
    return pages.get_template("model_card.md.j2").render(
        file=file,
        kind=output.suffix[1:],
        size=output.stat().st_size,
        parameters=parameters,
        version=__version__,
        box_regression=box_regression,
        least_side=LEAST_SIDE,
        mean=mean,
        std=std,
        g=lambda number: f"{number:g}",
        cell=cell,
        escape=escape_markdown,
        sentence=sentence,
        figure=figure,
        classes=description.classes,
        unsaid=unsaid,
        precision=precision(output, description),
        metrics=description.metrics,
        reached={split: reach for split, m in description.metrics.items() if (reach := proposal_reach(m))},
        rows=rows if any(columns) else [],
        record={"data": [], "recipe": [], "objects": {}, "precision": None, **description.record},
        **{group: description.config[group] for group in ("model", "data", "detection")},
        config=json.dumps(description.config, indent=1, ensure_ascii=False),
    )


def precision(output: Path, description: Description) -> str:
    """Describe the precision of the weights in the exported file `output`."""
    rounded = description.record.get("precision")
    if rounded is None:
        return "float32"
    if output.suffix == ".safetensors":
        return f"weights rounded to {rounded}; normalisation and statistics float32"
    return f"float32, converted from weights that were rounded to {rounded}"


def proposal_reach(metrics: Mapping[str, Any]) -> str:
    """Describe the recall of the proposals, or return "" if it is not known. metrics: the results of one split."""
    shares = [(share, name) for name, share in (metrics.get("recall") or {}).items() if share is not None]
    if not shares:
        return ""
    (least, worst), (most, best) = min(shares), max(shares)
    if least == most:
        return f"{100 * least:.1f} % of the objects of every class"
    low, high = f"{100 * least:.1f} % ({escape_markdown(worst)})", f"{100 * most:.1f} % ({escape_markdown(best)})"
    return f"{low} to {high} of the objects of each class"


def cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return escape_markdown(text).replace("|", "\\|")


def sentence(text: str) -> str:
    """Escape HTML and links in a sentence of the training record, which can contain code spans."""
    return re.sub(r"[<\[]", r"\\\g<0>", " ".join(text.split()))


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def write_with_card(
    model: FastRCNN,
    description: Description,
    box_regression: bool,
    output: Path,
    source: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the network in the format given by the suffix of `output`, and its model card. Return the card's path.

    source: see files.write_derived. dtype: dtype of the weights, for .safetensors only.
    """
    card = output.with_name(f"{output.name}.md")
    files.refuse_existing(card, source)
    match output.suffix:
        case ".onnx":
            write_onnx(model, description, box_regression, output, source)
        case ".pt2":
            write_program(model, description, box_regression, output, source)
        case ".caffemodel":
            export.write_caffemodel(model, output, source)
        case ".safetensors":
            export.write_safetensors(model, description.metadata(), output, source, dtype)
        case _:
            export.write_torchvision(model, output, source)
    with files.write_derived(card, source) as path:
        text = model_card(description, output, box_regression, parameter_count(model))
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return card


def evaluations(run: Path, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the evaluation results of a run by split: metric, mAP, image count, and AP and proposal recall per class.

    Results that may belong to another checkpoint of the run have the additional key `unsure`.
    own: the evaluation result that is stored in the checkpoint (`split`, `metric` and `mAP`), if it has one. If the
        run's folder contains a different mAP for this split, that result belongs to another checkpoint or to other
        settings. In this case, a warning is logged, and the result for this split contains only the values of `own`.
    """
    found = {}
    for file in sorted(run.glob("eval/*/metrics.json")):
        split = file.parent.name
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
            kept = {key: metrics[key] for key in ("metric", "mAP", "images", "ap")}
            kept["recall"] = metrics.get("proposals", {}).get("recall_50", {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # incomplete, or written by another program
        if not sound_evaluation(kept) or kept["mAP"] is None:
            continue
        agrees = own is not None and kept["metric"] == own["metric"] and abs(kept["mAP"] - own["mAP"]) < SAME
        if own is not None and split == own["split"] and not agrees:
            log.warning(
                "%s: the mAP %.4f (%s) in this file differs from the mAP of the checkpoint, %.4f (%s). Therefore, the "
                "model card does not include the AP per class. To include it, run `fastrcnn eval checkpoint=...` and "
                "export again.",
                file,
                kept["mAP"],
                kept["metric"],
                own["mAP"],
                own["metric"],
            )
            continue
        found[split] = kept if own is not None and split == own["split"] else kept | {"unsure": True}
    if own is not None and own["split"] not in found:
        found[own["split"]] = {"metric": own["metric"], "mAP": own["mAP"], "images": None, "ap": {}}
    return found
