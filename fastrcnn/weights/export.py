"""A trained network in files for other programs: the author's Caffe layout, safetensors, torchvision's VGG16.

What a format cannot express is refused, all of it at once, by a UserError. source: see files.write_derived.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastrcnn.errors import UserError
from fastrcnn.files import write_derived
from fastrcnn.model.fast_rcnn import IMAGENET_MEAN, IMAGENET_STD, FastRCNN, box_layer_for, fold_map_scale
from fastrcnn.model.networks import VGG16
from fastrcnn.progress import progress
from fastrcnn.weights import caffe, safetensors_files
from fastrcnn.weights.names import CAFFE_NAMES, OUTPUTS
from fastrcnn.weights.pixels import CAFFE_MEAN, first_layer_for, means_apart
from fastrcnn.weights.pretrained import AUTHORS_ROI_SIZE

log = logging.getLogger(__name__)
# Of a layer's length: twice what rounding to the 11 bits of float16 can change where no number is below 6e-5.
LARGE_CHANGE = 2**-10


def write_caffemodel(model: FastRCNN, output: Path, source: str | None = None) -> None:
    """The author's layout: layers of his names, the first one for BGR pixels less his PIXEL_MEANS, and a box layer that
    is not normalised, as `snapshot` in his lib/fast_rcnn/train.py saves it.

    The deviations of the pixels go into the first layer, and a difference of the means of
    up to one grey level too; see first_layer_for. Margins of SVMs are cls_score as they are, the author's TEST.SVM.
    """
    problems = []
    if model.roi_op != "fast_rcnn":
        problems.append(f"model.roi_op={model.roi_op}: Caffe's RoI pooling is fast_rcnn")
    if model.bbox_pred.out_features == 4:
        problems.append("model.class_agnostic=true: the author's box layer has four numbers for every class")
    state = _state_for("a .caffemodel", model, AUTHORS_ROI_SIZE, CAFFE_MEAN, (1.0, 1.0, 1.0), problems)
    first = f"{CAFFE_NAMES[model.trunk.network.convs[0].name]}.weight"
    state[first] = state[first].flip(1)
    zero = torch.zeros_like(model.delta_mean)
    state |= dict(zip(("bbox_pred.weight", "bbox_pred.bias"), box_layer_for(model, zero, zero + 1), strict=True))
    layers = {
        name: {part: state[f"{ours}.{part}"] for part in ("weight", "bias") if f"{ours}.{part}" in state}
        for name, ours in CAFFE_NAMES.items()
        if f"{ours}.weight" in state
    }
    with write_derived(output, source) as path, path.open("wb") as file:
        caffe.write(
            file, f"fast_rcnn_{model.trunk.network.name}", progress(layers.items(), len(layers), "export", "layer")
        )
    network = model.trunk.network
    head = () if model.head.features == network.features_of(model.trunk.width) else ("fc6", "fc7")
    named = (*OUTPUTS, "fc6_L", "fc7_L", *head)
    sizes = {name: len(parts["weight"]) for name, parts in layers.items() if name.removesuffix("_U") in named}
    log.info("num_output in the prototxt: %s", ", ".join(f"{name} {n}" for name, n in sizes.items()))
    if any(state[f"{CAFFE_NAMES[c.name]}.weight"].shape[0] != c.channels for c in model.trunk.network.convs):
        log.info("and of all other layers, as this network is a slim one")
    if model.classifier == "svm":
        log.info("its cls_score are margins of SVMs: the author's code wants TEST.SVM with it")


def write_safetensors(
    model: FastRCNN,
    metadata: Mapping[str, str],
    output: Path,
    source: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """The whole state dict under our names, buffers included.

    metadata: what the file says of itself, see inference/description.py. dtype: see state_in.
    """
    safetensors_files.write(state_in(model, dtype, str(output)), metadata, output, source)


def state_in(model: FastRCNN, dtype: torch.dtype, what: str) -> dict[str, Tensor]:
    """The state dict on the CPU, the weights and biases of convolutions and linear layers rounded to `dtype`.

    Batch normalisation, and the statistics of pixels and of regression targets, stay float32: they are a thousandth of
    the file. Warns where a layer's weights are so small that float16 has fewer digits for them.
    Raises UserError, which begins with `what`, where a number is too large for `dtype`.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    kept = {k: v.to(dtype) if k.rpartition(".")[0] in layers else v for k, v in state.items()}
    large = [f"  {k}: {float(state[k].abs().max()):g}" for k, v in kept.items() if not v.isfinite().all()]
    if large:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"{what}: {kind} holds numbers up to {torch.finfo(dtype).max:,.0f}, and these weights have larger ones:\n"
            + "\n".join(large)
            + "\nExport with precision=float32."
        )
    for name, values in kept.items():
        if name.endswith(".weight") and values.dtype == torch.float16:
            change = float(
                (values.double() - state[name].double()).norm() / state[name].double().norm().clamp_min(1e-300)
            )
            if change > LARGE_CHANGE:
                log.warning("%s: float16 changes these weights by %.2g %%, as they are very small", name, 100 * change)
    return kept


def write_torchvision(model: FastRCNN, output: Path, source: str | None = None) -> None:
    """The trunk, fc6 and fc7 as a state dict with the names of torchvision's VGG16, for RGB pixels that are normalised
    as torchvision's weights want them. `load_state_dict` takes it with strict=False: the class layer is not there.
    """
    problems = []
    if model.trunk.network is VGG16:
        convs = model.trunk.convs
        if any(convs[c.name].out_channels != c.channels for c in VGG16.convs):
            problems.append("model.width: torchvision's is 1")
        elif (found := model.head.features) != (VGG16.fc6, VGG16.fc7):
            problems.append(f"model.head={list(found)}: torchvision's fc6 and fc7 have 4096 features")
        if any(name.endswith(".U.weight") for name in model.head.state_dict()):
            problems.append("fc6 or fc7 is two layers: export the checkpoint that this one was compressed from")
    sizes = {"vgg16": AUTHORS_ROI_SIZE["vgg16"]}
    state = _state_for("torchvision's VGG16", model, sizes, IMAGENET_MEAN, IMAGENET_STD, problems)
    places, place = {}, 0
    for conv in VGG16.convs:
        place += len(conv.before)
        places[f"trunk.convs.{conv.name}"] = f"features.{place}"
        place += 2  # with its ReLU
    places |= {"head.fc6": "classifier.0", "head.fc7": "classifier.3"}
    named = {
        f"{theirs}.{part}": state[f"{ours}.{part}"].cpu().contiguous()
        for ours, theirs in places.items()
        for part in ("weight", "bias")
    }
    with write_derived(output, source) as path, path.open("wb") as file:
        try:
            torch.save(named, file)
        except RuntimeError as error:  # raised while its file is closed, on top of the reason
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _state_for(
    what: str,
    model: FastRCNN,
    sizes: Mapping[str, int],
    mean: Sequence[float],
    std: Sequence[float],
    problems: list[str],
) -> dict[str, Tensor]:
    """The model's state dict, with a first layer for pixels (RGB - mean) / std.

    what: the format, for messages. sizes: of the pooled RoIs, in those of the author's networks that may be.
    Raises UserError with the problems, and what else makes network or pixels too different.
    """
    model = fold_map_scale(model)
    network = model.trunk.network
    last, size = network.conv_names[-1], sizes.get(network.name)
    apart = means_apart(model, mean)
    if size is None:
        problems = [f"model.network={network.name}: only {', '.join(sizes)} can", *problems]
    else:
        found, cells = ",".join(model.roi_features), f"{size} x {size} cells"
        unlike = (
            (bool(model.trunk.norms), "model.batch_norm=true: there is no batch normalisation"),
            (found != last, f"model.roi_features=[{found}]: RoIs are pooled from {last} alone"),
            (model.roi_size != size, f"model.roi_size={model.roi_size}: fc6 is for {cells}"),
        )
        problems = [text for differs, text in unlike if differs] + problems
    if apart > 1:  # from one value of a pixel to the next; torchvision's mean and Caffe's differ by .90
        own, other = (", ".join(f"{v:g}" for v in values) for values in (model.pixel_mean.flatten().tolist(), mean))
        problems.append(
            f"this network subtracts {own} from red, green and blue, other programs {other}. What is more than one "
            "grey level apart cannot be made up for where the picture is padded."
        )
    refuse(what, problems)
    if apart > 0:
        log.warning(
            "the means of the pixels differ by up to %.2f of 255; the first layer's bias makes up for it, "
            "exactly but for the outermost cells, which see the padding",
            apart,
        )
    first = f"trunk.convs.{model.trunk.network.convs[0].name}"
    state = {k: v.detach() for k, v in model.state_dict().items()}
    state[f"{first}.weight"], state[f"{first}.bias"] = first_layer_for(model, mean, std)
    return state


def refuse(what: str, problems: list[str]) -> None:
    """Raises UserError that names the problems, all of them, if there are any."""
    if problems:
        raise UserError(
            f"this network cannot be written as {what}:\n"
            + "\n".join(f"  {p}" for p in problems)
            + "\nformat=safetensors takes any network."
        )
