"""fastrcnn export"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fastrcnn import files
from fastrcnn.build.checkpoints import compose_for, open_trained
from fastrcnn.config.schema import ExportConfig
from fastrcnn.errors import UserError

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
        from fastrcnn.build.models import detection
        from fastrcnn.deploy.card import evaluations, write_with_card
        from fastrcnn.inference.onnx_network import describe

        moved = detection(config.detection, model.classifier).box_regression
        whole = trained.config | {"data": asdict(config.data), "detection": asdict(config.detection)}
        about = describe(model, trained.classes, trained.step, whole, evaluations(trained.run))
        print(f"how to use it: {write_with_card(model, about, moved, output, source)}")
    elif config.format == "caffemodel":
        export.write_caffemodel(model, output, source)
    elif config.format == "torchvision":
        export.write_torchvision(model, output, source)
    else:
        shape = {key: value for key, value in known.items() if key not in TRAINING}
        export.write_safetensors(model, shape, trained.classes, output, source)
    print(f"written to {output}, {output.stat().st_size / 2**20:,.1f} MiB")
    return 0


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
