"""Write a trained network for other programs: as a .caffemodel, as safetensors, or for torchvision's VGG16.

If a format cannot represent the network, a UserError lists all reasons. For `source`, see files.write_derived.
"""

from __future__ import annotations

import io
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
# A larger relative change of a layer's weights is logged. The limit is twice the maximum relative rounding error of
# normal float16 numbers, 2^-11. Only subnormal numbers have larger errors.
LARGE_CHANGE = 2**-10


def write_caffemodel(model: FastRCNN, output: Path, source: str | None = None) -> None:
    """Write a .caffemodel for the author's code.

    The layers have the names of the author's code. The input is BGR minus the PIXEL_MEANS of this code. The box layer
    (bbox_pred) predicts deltas that are not normalised, as in `snapshot` in the author's lib/fast_rcnn/train.py. The
    standard deviations of the pixels, and a difference of the pixel means of up to one grey level, are folded into the
    first layer; see first_layer_for. SVM weights are written to cls_score, for the author's option TEST.SVM.
    """
    problems = []
    if model.roi_op != "fast_rcnn":
        problems.append(f"model.roi_op={model.roi_op}: the format only supports fast_rcnn")
    if model.bbox_pred.out_features == 4:
        problems.append("model.class_agnostic=true: the box layer of Girshick's code has four outputs per class")
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
    log.info("Set num_output in the prototxt: %s", ", ".join(f"{name} {n}" for name, n in sizes.items()))
    if any(state[f"{CAFFE_NAMES[c.name]}.weight"].shape[0] != c.channels for c in model.trunk.network.convs):
        log.info(
            "For all layers that are not in this list, multiply num_output in the prototxt of the original %s by %g",
            network.name,
            model.trunk.width,
        )
    if model.classifier == "svm":
        log.info("Set TEST.SVM in the configuration of Girshick's code, because cls_score contains SVM weights")


def write_safetensors(
    model: FastRCNN,
    metadata: Mapping[str, str],
    output: Path,
    source: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the complete state dict, including buffers, as a .safetensors file.

    metadata: see Description.metadata. dtype: dtype of the weights of convolutions and linear layers.
    """
    safetensors_files.write(state_in(model, dtype, str(output)), metadata, output, source)


def state_in(model: FastRCNN, dtype: torch.dtype, what: str) -> dict[str, Tensor]:
    """Return the state dict on the CPU, with weights and biases of convolutions and linear layers converted to `dtype`.

    Batch normalisation and the statistics of pixels and regression targets stay float32, because they take up only
    about 0.1 % of the file. A warning is logged if a layer's weights are so small that float16 loses precision.
    Raises UserError if a value is too large for `dtype`. The message starts with `what`.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    kept = {k: v.to(dtype) if k.rpartition(".")[0] in layers else v for k, v in state.items()}
    large = [f"  {k}: {float(state[k].abs().max()):g}" for k, v in kept.items() if not v.isfinite().all()]
    if large:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"{what}: these weights contain values larger than {torch.finfo(dtype).max:,.0f}, the maximum of {kind}:\n"
            + "\n".join(large)
            + "\nExport with precision=float32."
        )
    for name, values in kept.items():
        if name.endswith(".weight") and values.dtype == torch.float16:
            change = float(
                (values.double() - state[name].double()).norm() / state[name].double().norm().clamp_min(1e-300)
            )
            if change > LARGE_CHANGE:
                log.warning(
                    "%s: float16 changes these weights by %.2g %%, because they are very small", name, 100 * change
                )
    return kept


def write_torchvision(model: FastRCNN, output: Path, source: str | None = None) -> None:
    """Write the trunk, fc6 and fc7 as a state dict for torchvision's VGG16, with torchvision's pixel normalisation.

    `load_state_dict` needs strict=False, because the classification layer is not included.
    """
    problems = []
    if model.trunk.network is VGG16:
        convs = model.trunk.convs
        if any(convs[c.name].out_channels != c.channels for c in VGG16.convs):
            problems.append(f"model.width={model.trunk.width:g}: torchvision's VGG16 exists only with width 1")
        elif (found := model.head.features) != (VGG16.fc6, VGG16.fc7):
            problems.append(f"model.head={list(found)}: torchvision's fc6 and fc7 have 4096 features")
        if any(name.endswith(".U.weight") for name in model.head.state_dict()):
            problems.append("fc6 or fc7 is compressed: export the uncompressed checkpoint instead")
    sizes = {"vgg16": AUTHORS_ROI_SIZE["vgg16"]}
    state = _state_for("torchvision's VGG16", model, sizes, IMAGENET_MEAN, IMAGENET_STD, problems)
    places, place = {}, 0
    for conv in VGG16.convs:
        place += len(conv.before)
        places[f"trunk.convs.{conv.name}"] = f"features.{place}"
        place += 2  # the convolution and its ReLU
    places |= {"head.fc6": "classifier.0", "head.fc7": "classifier.3"}
    named = {
        f"{theirs}.{part}": state[f"{ours}.{part}"].cpu().contiguous()
        for ours, theirs in places.items()
        for part in ("weight", "bias")
    }
    content = io.BytesIO()  # on a full disk, torch's writer ends the process
    torch.save(named, content)
    with write_derived(output, source) as path:
        path.write_bytes(content.getbuffer())


def _state_for(
    what: str,
    model: FastRCNN,
    sizes: Mapping[str, int],
    mean: Sequence[float],
    std: Sequence[float],
    problems: list[str],
) -> dict[str, Tensor]:
    """Return the model's state dict with a first layer that expects pixels (RGB - mean) / std.

    what: the format, for messages. sizes: the supported networks, each with the number of bins along a side of a RoI.
    problems: known reasons why the format cannot represent the network.
    Raises UserError if `problems` is not empty or if the network or its pixel normalisation is not supported.
    """
    model = fold_map_scale(model)
    network = model.trunk.network
    last, size = network.conv_names[-1], sizes.get(network.name)
    apart = means_apart(model, mean)
    if size is None:
        problems = [f"model.network={network.name}: the format only supports {', '.join(sizes)}", *problems]
    else:
        found, bins = ",".join(model.roi_features), f"{size} x {size} bins"
        unlike = (
            (bool(model.trunk.norms), "model.batch_norm=true: the format does not support batch normalisation"),
            (found != last, f"model.roi_features=[{found}]: the format only supports pooling from {last}"),
            (model.roi_size != size, f"model.roi_size={model.roi_size}: the format only supports {bins}"),
        )
        problems = [text for differs, text in unlike if differs] + problems
    if apart > 1:  # grey level; the means of torchvision and Caffe differ by 0.90
        own, other = (", ".join(f"{v:g}" for v in values) for values in (model.pixel_mean.flatten().tolist(), mean))
        problems.append(
            f"the network subtracts {own} from red, green and blue, but the format requires {other}. A difference of "
            "more than one grey level cannot be compensated at the padded border"
        )
    refuse(what, problems)
    if apart > 0:
        log.warning(
            "The pixel means of the network differ from the means that the format requires by up to %.2f on a scale of "
            "0 to 255. The bias of the first layer compensates for this exactly, except at the border of the image, "
            "where the padding has an effect.",
            apart,
        )
    first = f"trunk.convs.{model.trunk.network.convs[0].name}"
    state = {k: v.detach() for k, v in model.state_dict().items()}
    state[f"{first}.weight"], state[f"{first}.bias"] = first_layer_for(model, mean, std)
    return state


def refuse(what: str, problems: list[str]) -> None:
    """If there are problems, raise a UserError that lists them. what: the export format, for the message."""
    if problems:
        raise UserError(
            f"this network cannot be written as {what}:\n"
            + "\n".join(f"  {p}" for p in problems)
            + "\nUse format=safetensors, which supports every network."
        )
