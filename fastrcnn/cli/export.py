"""The command `fastrcnn export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fastrcnn import files
from fastrcnn.build.checkpoints import compose_for, evaluations_of, open_trained
from fastrcnn.config.schema import ExportConfig
from fastrcnn.errors import UserError

SUFFIXES = {
    "onnx": ".onnx",
    "pt2": ".pt2",
    "caffemodel": ".caffemodel",
    "safetensors": ".safetensors",
    "torchvision": ".pth",
}
EXAMPLES = [
    "fastrcnn export checkpoint=RUN format=onnx      (to RUN/export/<network>.onnx, with a model card)",
    "fastrcnn export checkpoint=RUN format=caffemodel output=detector.caffemodel",
    "fastrcnn export checkpoint=RUN format=safetensors precision=float16      (half the size)",
    "fastrcnn export checkpoint=RUN format=torchvision output=vgg16.pth",
    "fastrcnn export checkpoint=vgg16_fast_rcnn_iter_40000.caffemodel data=voc07 format=safetensors",
]


def main(arguments: list[str]) -> int:
    """Export the network of a checkpoint to a file of another format, and write a model card next to the file."""
    config = compose_for("export", arguments)
    if config.format is None:
        raise UserError(f"Choose a format with format=FORMAT, one of {', '.join(SUFFIXES)}.")
    if config.precision != "float32" and config.format != "safetensors":
        raise UserError(
            f"precision={config.precision}: format={config.format} supports float32 only. Omit the key `precision`, or "
            "use format=safetensors."
        )
    trained = open_trained(config, arguments)
    import torch

    from fastrcnn.build.models import detection
    from fastrcnn.deploy.card import write_with_card
    from fastrcnn.inference.description import describe

    output = output_file(config, trained.run / "export" / trained.config["model"]["network"])
    source = files.digest(trained.file)
    files.refuse_unusable(output.parent, f"output={output}")
    files.refuse_existing(output, source)
    model = trained.model(torch.device("cpu"))
    moved = detection(config.detection, model.classifier).box_regression
    whole = trained.config | {"data": asdict(config.data), "detection": asdict(config.detection)}
    rounded = {} if config.precision == "float32" else {"precision": config.precision}
    metrics, record = evaluations_of(trained), trained.record | rounded
    about = describe(model, trained.classes, trained.step, whole, metrics, record)
    card = write_with_card(model, about, moved, output, source, getattr(torch, config.precision))
    print(f"model card: {card}")
    print(f"Wrote {output} ({output.stat().st_size / 2**20:,.1f} MiB)")
    return 0


def output_file(config: ExportConfig, default: Path) -> Path:
    """Return the file to write: the key `output` or, if it is null, `default` with the suffix of the format.

    Raises UserError if `output` has a different suffix, because programs recognise the format by the suffix.
    """
    suffix = SUFFIXES[str(config.format)]
    if config.output is None:
        return default.with_name(default.name + suffix)
    output = Path(config.output).expanduser()
    if output.suffix != suffix:
        raise UserError(f"output={output}: the file name must end in {suffix}.")
    return output
