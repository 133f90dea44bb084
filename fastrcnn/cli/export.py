"""fastrcnn export"""

from __future__ import annotations

from pathlib import Path

from fastrcnn.cli.checkpoints import opened, require, run_of
from fastrcnn.cli.compose import compose
from fastrcnn.cli.derived import network
from fastrcnn.config import ExportConfig
from fastrcnn.errors import UserError, nearest

SUFFIXES = {"caffemodel": ".caffemodel", "safetensors": ".safetensors", "torchvision": ".pth"}
TRAINING = ("weights", "pixels", "finetune_from", "dropout")  # keys of the model that do not shape the network
EXAMPLES = [
    "fastrcnn export checkpoint=RUN format=caffemodel output=detector.caffemodel",
    "fastrcnn export checkpoint=RUN format=safetensors      (to RUN/export/<network>.safetensors)",
    "fastrcnn export checkpoint=RUN format=torchvision output=vgg16.pth",
    "fastrcnn export checkpoint=vgg16_fast_rcnn_iter_40000.caffemodel data=voc07 format=safetensors",
]


def main(arguments: list[str]) -> int:
    """Writes the network of a checkpoint in another format."""
    require("export", arguments)
    config = compose("export", arguments)
    check_format(config)
    config, path, content = opened("export", config, arguments)
    import torch

    from fastrcnn import export

    known = content["config"]["model"]
    output = output_file(config, run_of(path) / "export" / known["network"])
    export.refuse_existing(output)
    names = content["classes"]
    model = network(path, content["config"], names, content.pop("model"), torch.device("cpu"))
    if config.format == "caffemodel":
        export.write_caffemodel(model, known["network"], output)
    elif config.format == "torchvision":
        export.write_torchvision(model, known["network"], output)
    else:
        shape = {key: value for key, value in known.items() if key not in TRAINING}
        export.write_safetensors(model, shape, names, output)
    print(f"written to {output}, {output.stat().st_size / 2**20:,.1f} MiB")
    return 0


def check_format(config: ExportConfig) -> None:
    """Raises UserError where the format is none that can be written."""
    if config.format is None:
        raise UserError(f"which format? format=FORMAT, one of {', '.join(SUFFIXES)}.")
    if config.format not in SUFFIXES:
        raise UserError(
            f"format={config.format}: should be one of {', '.join(SUFFIXES)}.{nearest(config.format, SUFFIXES)}"
        )


def output_file(config: ExportConfig, default: Path) -> Path:
    """The file to write: `output`, or `default` with the format's suffix. Raises UserError for another suffix, by which
    no program would know the format."""
    assert config.format is not None
    suffix = SUFFIXES[config.format]
    if config.output is None:
        return default.with_name(default.name + suffix)
    output = Path(config.output).expanduser()
    if output.suffix != suffix:
        raise UserError(f"output={output}: should be the name of a file that ends in {suffix}.")
    return output
