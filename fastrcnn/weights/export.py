"""A trained network in files for other programs: the author's Caffe layout, safetensors, torchvision's VGG16.

What a format cannot express is refused, all of it at once. A file gets its name when it is whole; `source` says which
file it may replace, see outputs.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastrcnn.errors import UserError
from fastrcnn.files import write_derived
from fastrcnn.model.fast_rcnn import IMAGENET_MEAN, IMAGENET_STD, FastRCNN, box_layer_for
from fastrcnn.model.networks import NETWORKS, VGG16
from fastrcnn.progress import progress
from fastrcnn.weights import caffe
from fastrcnn.weights.pixels import CAFFE_MEAN, first_layer_for
from fastrcnn.weights.pretrained import AUTHORS_ROI_SIZE, CAFFE_NAMES, OUTPUTS

log = logging.getLogger(__name__)


def write_caffemodel(model: FastRCNN, network: str, output: Path, source: str | None = None) -> None:
    """The author's layout: layers of his names, the first one for BGR pixels less his PIXEL_MEANS, and a box layer that
    is not normalised, as `snapshot` in his lib/fast_rcnn/train.py saves it.

    network: its key in NETWORKS. The deviations of the pixels go into the first layer, and a difference of the means of
    up to one grey level too; see first_layer_for. Margins of SVMs are cls_score as they are, the author's TEST.SVM.

    Raises UserError for what the author's network cannot express, and where the file cannot be written.
    """
    problems = _unlike_the_authors(model, network, AUTHORS_ROI_SIZE)
    if model.roi_op != "fast_rcnn":
        problems.append(f"model.roi_op={model.roi_op}: Caffe's RoI pooling is fast_rcnn")
    if model.bbox_pred.out_features == 4:
        problems.append("model.class_agnostic=true: the author's box layer has four numbers for every class")
    changed = _first_layer(model, CAFFE_MEAN, (1.0, 1.0, 1.0), problems) if network in NETWORKS else None
    refuse("a .caffemodel", problems)
    assert changed is not None
    weight, bias = changed
    state = {k: v.detach() for k, v in model.state_dict().items()}
    first = CAFFE_NAMES[NETWORKS[network].convs[0].name]
    state |= {f"{first}.weight": weight.flip(1), f"{first}.bias": bias}
    zero = torch.zeros_like(model.delta_mean)
    state |= dict(zip(("bbox_pred.weight", "bbox_pred.bias"), box_layer_for(model, zero, zero + 1), strict=True))
    layers = {
        name: {part: state[f"{ours}.{part}"] for part in ("weight", "bias") if f"{ours}.{part}" in state}
        for name, ours in CAFFE_NAMES.items()
        if f"{ours}.weight" in state
    }
    with write_derived(output, source) as path, path.open("wb") as file:
        caffe.write(file, f"fast_rcnn_{network}", progress(layers.items(), len(layers), "export", "layer"))
    sizes = {name: len(parts["weight"]) for name, parts in layers.items() if name in OUTPUTS or name.endswith("_L")}
    log.info("num_output in the prototxt: %s", ", ".join(f"{name} {n}" for name, n in sizes.items()))
    if any(state[f"{CAFFE_NAMES[c.name]}.weight"].shape[0] != c.channels for c in NETWORKS[network].convs):
        log.info("and of all other layers, as this network is a slim one")
    if model.classifier == "svm":
        log.info("its cls_score are margins of SVMs: the author's code wants TEST.SVM with it")


def write_safetensors(
    model: FastRCNN,
    description: Mapping[str, object],
    names: Sequence[str],
    output: Path,
    source: str | None = None,
) -> None:
    """The whole state dict under our names, buffers included, which `model.weights=` reads.

    Metadata, each a JSON text: `network`, the `description`; `classes`, the `names`, whose label is their place counted
    from 1; `pixels`, the mean and deviation, of RGB in 0 .. 255. Raises UserError where it cannot be written.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise UserError(
            f"{output}: writing it needs the package safetensors: pip install 'fastrcnn[safetensors]'."
        ) from None
    pixels = {"order": "RGB", "mean": model.pixel_mean.flatten().tolist(), "std": model.pixel_std.flatten().tolist()}
    metadata = {
        "format": "pt",
        "network": json.dumps(dict(description)),
        "classes": json.dumps(list(names)),
        "pixels": json.dumps(pixels),
    }
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with write_derived(output, source) as path:
        try:
            save_file(state, path, metadata)
        except SafetensorError as error:
            raise UserError(f"{output}: cannot be written ({error}).") from error


def write_torchvision(model: FastRCNN, network: str, output: Path, source: str | None = None) -> None:
    """The trunk, fc6 and fc7 as a state dict with the names of torchvision's VGG16, for RGB pixels that are normalised
    as torchvision's weights want them. `load_state_dict` takes it with strict=False: the class layer is not there.

    Raises UserError for another network, and where the file cannot be written.
    """
    problems = _unlike_the_authors(model, network, {"vgg16": AUTHORS_ROI_SIZE["vgg16"]})
    if not problems:
        convs = model.trunk.convs
        if any(convs[c.name].out_channels != c.channels for c in VGG16.convs) or model.head.out_features != VGG16.fc7:
            problems.append("model.width: torchvision's is 1")
        if any("_" in name for name in _head_layers(model)):
            problems.append("fc6 or fc7 is two layers: export the checkpoint that this one was compressed from")
    changed = _first_layer(model, IMAGENET_MEAN, IMAGENET_STD, problems) if network in NETWORKS else None
    refuse("torchvision's VGG16", problems)
    assert changed is not None
    weight, bias = changed
    state = {k: v.detach() for k, v in model.state_dict().items()}
    first = VGG16.convs[0].name
    state |= {f"trunk.convs.{first}.weight": weight, f"trunk.convs.{first}.bias": bias}
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


def _unlike_the_authors(model: FastRCNN, network: str, sizes: Mapping[str, int]) -> list[str]:
    """What keeps the network from being one of the author's; sizes: of the pooled RoIs in those that may be."""
    if network not in sizes:
        return [f"model.network={network}: only {', '.join(sizes)} can"]
    problems = []
    last = NETWORKS[network].conv_names[-1]
    if model.trunk.norms:
        problems.append("model.batch_norm=true: there is no batch normalisation")
    if model.roi_features != (last,):
        problems.append(f"model.roi_features=[{','.join(model.roi_features)}]: RoIs are pooled from {last} alone")
    if model.roi_size != sizes[network]:
        problems.append(f"model.roi_size={model.roi_size}: fc6 is for {sizes[network]} x {sizes[network]} cells")
    return problems


def refuse(what: str, problems: list[str]) -> None:
    """Raises UserError that names the problems, all of them, if there are any."""
    if problems:
        raise UserError(
            f"this network cannot be written as {what}:\n"
            + "\n".join(f"  {p}" for p in problems)
            + "\nformat=safetensors takes any network."
        )


def _first_layer(
    model: FastRCNN, mean: Sequence[float], std: Sequence[float], problems: list[str]
) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the first convolution for other pixels; None, and a problem more, where there are none.

    Says so where they are not exact.
    """
    try:
        weight, bias, apart = first_layer_for(model, mean, std)
    except UserError as error:
        problems.append(str(error))
        return None
    if apart > 0 and not problems:
        log.warning(
            "the means of the pixels differ by up to %.2f of 255; the first layer's bias makes up for it, "
            "exactly but for the outermost cells, which see the padding",
            apart,
        )
    return weight, bias


def _head_layers(model: FastRCNN) -> list[str]:
    """Caffe's names of what fc6 and fc7 are made of."""
    state = model.state_dict()
    return [name for name, ours in CAFFE_NAMES.items() if ours.startswith("head.") and f"{ours}.weight" in state]
