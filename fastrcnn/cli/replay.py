"""The command `fastrcnn replay`."""

from __future__ import annotations

import math
from pathlib import Path

from fastrcnn.build.checkpoints import check_content
from fastrcnn.config.compose import compose
from fastrcnn.config.schema import RuntimeConfig
from fastrcnn.errors import UserError

EXAMPLES = ["fastrcnn replay outputs/train/RUN/failed-step-1200.pt"]
NEEDED = {"image_ids", "images", "sizes", "scales", "rois", "labels", "deltas", "loss_cls", "loss_box", "dropout_seed"}


def main(arguments: list[str]) -> int:
    """Repeat a step whose loss was not finite. Print which inputs, weights, layer and RoIs have non-finite values."""
    plain = [a for a in arguments if "=" not in a or Path(a).is_file()]
    config = compose("replay", [f"file={a}" if a in plain else a for a in arguments])
    if config.file is None:
        raise UserError(
            "Specify the file that training wrote when the step failed: fastrcnn replay RUN/failed-step-N.pt"
        )
    from fastrcnn.build import machine, models
    from fastrcnn.training import checkpoint
    from fastrcnn.training.replay import replay

    path = Path(config.file).expanduser()
    content = checkpoint.load(path, finite=False)
    if not content.keys() >= NEEDED:
        raise UserError(f"{path}: this checkpoint does not contain a failed step. Use a failed-step-N.pt file.")
    content = check_content(path, content)
    device = machine.device(RuntimeConfig(device=config.device))
    model = models.trained_model(content["config"], len(content["classes"]))
    model.load_state_dict(content["model"])
    model.to(device)
    found = replay(model, content)
    print(f"step {content['step']} of {path.parent}: {len(content['rois'])} RoIs of {', '.join(content['image_ids'])}")
    print(f"recorded:  class loss {content['loss_cls']:.6g}, box loss {content['loss_box']:.6g}")
    print(
        f"replayed:  class loss {found.loss_cls:.6g}, box loss {found.loss_box:.6g}  ({content['precision']}, {device})"
    )
    if found.inputs:
        print(f"inputs that are not finite: {', '.join(found.inputs)}")
    if found.weights:
        print(f"weights that are not finite: {', '.join(found.weights)}")
    if found.layer is not None:
        print(f"first layer with an output that is not finite: {found.layer}")
    if found.rois:
        print(f"RoIs with outputs that are not finite: {len(found.rois)}{', the first 10:' if found.rois[10:] else ''}")
    for number in found.rois[:10]:
        image, *box = content["rois"][number].tolist()
        label = content["labels"][number].item()
        name = "background" if label == 0 else content["classes"][label - 1]
        where = content["image_ids"][int(image)] if math.isfinite(image) else "?"
        print(f"  RoI {number} in {where}, {name}: {', '.join(f'{v:.1f}' for v in box)}")
    if math.isfinite(found.loss_cls + found.loss_box):
        print(
            "The loss is finite this time. Possible causes: a different device or torch version, or a hardware fault."
        )
    return 0
