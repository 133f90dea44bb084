"""fastrcnn export"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrcnn import files
from fastrcnn.build.checkpoints import Trained, compose_for, open_trained
from fastrcnn.config.compose import to_dict
from fastrcnn.config.schema import ExportConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.model.fast_rcnn import FastRCNN

SUFFIXES = {
    "onnx": ".onnx",
    "pt2": ".pt2",
    "caffemodel": ".caffemodel",
    "safetensors": ".safetensors",
    "torchvision": ".pth",
}
TRAINING = ("weights", "pixels", "finetune_from", "dropout")  # keys of the model that do not shape the network
EXAMPLES = [
    "fastrcnn export checkpoint=RUN format=onnx      (to RUN/export/<network>.onnx, with a model card beside it)",
    "fastrcnn export checkpoint=RUN format=caffemodel output=detector.caffemodel",
    "fastrcnn export checkpoint=RUN format=safetensors      (to RUN/export/<network>.safetensors)",
    "fastrcnn export checkpoint=RUN format=torchvision output=vgg16.pth",
    "fastrcnn export checkpoint=vgg16_fast_rcnn_iter_40000.caffemodel data=voc07 format=safetensors",
]


def main(arguments: list[str]) -> int:
    """Writes the network of a checkpoint in another format."""
    config = compose_for("export", arguments)
    if config.format is None:
        raise UserError(f"which format? format=FORMAT, one of {', '.join(SUFFIXES)}.")
    trained = open_trained(config, arguments)
    import torch

    from fastrcnn.weights import export

    known = trained.config["model"]
    output = output_file(config, trained.run / "export" / known["network"])
    source = files.digest(trained.file)
    files.refuse_existing(output, source)
    model = trained.model(torch.device("cpu"))
    if config.format in ("onnx", "pt2"):
        deploy(config, trained, model, output, source)
    elif config.format == "caffemodel":
        export.write_caffemodel(model, known["network"], output, source)
    elif config.format == "torchvision":
        export.write_torchvision(model, known["network"], output, source)
    else:
        shape = {key: value for key, value in known.items() if key not in TRAINING}
        export.write_safetensors(model, shape, trained.classes, output, source)
    print(f"written to {output}, {output.stat().st_size / 2**20:,.1f} MiB")
    return 0


def deploy(config: ExportConfig, trained: Trained, model: FastRCNN, output: Path, source: str) -> None:
    """Writes the network as a file that runs by itself, and its model card, the same name and .md, beside it."""
    from fastrcnn.build import training
    from fastrcnn.deploy.card import model_card
    from fastrcnn.deploy.onnx_graph import write_onnx
    from fastrcnn.deploy.program import write_program
    from fastrcnn.inference.description import describe

    card = output.with_name(f"{output.name}.md")
    files.refuse_existing(card, source)
    moved = training.detection(config.detection, model.classifier).box_regression
    whole = trained.config | {key: value for key, value in to_dict(config).items() if key in ("data", "detection")}
    description = describe(model, trained.classes, trained.step, whole, evaluations(trained.run))
    write = write_onnx if config.format == "onnx" else write_program
    write(model, description, moved, output, source)
    with files.write_derived(card, source) as path:
        path.write_text(model_card(description, output.name, moved), encoding="utf-8")
    print(f"how to use it: {card}")


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


def output_file(config: ExportConfig, default: Path) -> Path:
    """The file to write: `output`, or `default` with the format's suffix. Raises UserError for another suffix, by which
    no program would know the format."""
    suffix = SUFFIXES[str(config.format)]
    if config.output is None:
        return default.with_name(default.name + suffix)
    output = Path(config.output).expanduser()
    if output.suffix != suffix:
        raise UserError(f"output={output}: should be the name of a file that ends in {suffix}.")
    return output
