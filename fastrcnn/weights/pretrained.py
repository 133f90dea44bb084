"""Reading weights into the network."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.networks import NETWORKS, VGG16
from fastrcnn.settings import ModelSettings, NetworkName
from fastrcnn.weights import caffe, safetensors_files, torch_files
from fastrcnn.weights.pixels import PIXELS, decide

log = logging.getLogger(__name__)
LAYER_WEIGHT = re.compile(r"(features|classifier)\.([0-9]{1,4})\.weight$")  # in torchvision's VGG16
PARTS = ("trunk.", "head.")  # of the network that other weights are put into
OUTPUTS = ("cls_score", "bbox_pred")
OWN_PIXELS = {"pixel_mean", "pixel_std"}  # what weights of ours have, and no others
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CAFFE_NAMES = {
    **{name: f"trunk.convs.{name}" for network in NETWORKS.values() for name in network.conv_names},
    **{fc + part: f"head.{fc}{part.replace('_', '.')}" for fc in ("fc6", "fc7") for part in ("", "_L", "_U")},
    **{name: name for name in OUTPUTS},
}
NETWORK_FITS = "VGG16's fit model=vgg16, VGG_CNN_M_1024's model=vgg_cnn_m_1024, CaffeNet's model=caffenet, of width 1"
EXPORT_FITS = "what `fastrcnn export` wrote fits the model.* keys of the run that it came from"
AUTHORS_ROI_SIZE = {"vgg16": 7, "vgg_cnn_m_1024": 6, "caffenet": 6}  # cells along a side, in models/*/train.prototxt
DETECTOR_FITS = (
    "a detector has one of the paper's three networks, RoIs pooled to 7 x 7 (VGG16) or 6 x 6, and two outputs"
)


def torchvision_vgg16() -> dict[str, Tensor]:
    """State dict of torchvision's VGG16 trained on ImageNet; downloaded once into torch's hub folder.

    Raises UserError where it cannot be downloaded.
    """
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.split("-")[1])
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"The ImageNet weights of VGG16 could not be downloaded ({error}).\n"
                f"On a machine with network, fetch {url} and put the file as\n"
                f"  {path}\n"
                "or name it: model.weights=/path/to/vgg16.pth. To train without them: recipe=scratch."
            ) from error
    return read_state_dict(path)  # torch.hub would run what a changed file asks it to


def existing(path: Path) -> Path:
    """The path of a file of weights. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(
            f"model.weights: there is no file {path}. Give the path of a state dict (.pth, .safetensors) or of a "
            ".caffemodel, or 'imagenet' for torchvision's VGG16. scripts/download_voc.sh weights fetches Caffe's."
        )
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights in a `.pth`, `.safetensors` or `.caffemodel` file, read without running anything in it.

    Raises UserError.
    """
    existing(path)
    if path.suffix == ".caffemodel":
        return caffe.read(path)
    if path.suffix == ".safetensors":
        return safetensors_files.read(path)[0]
    state = torch_files.read(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path}: expected a state dict, names to tensors.")
    return state


def misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What keeps a state dict from being put into a network, whose own is `wanted`, in lines; values are not looked at.

    Layers' counts of batches may be missing, as in files from before 2018."""
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    problems = [f"{k}: missing, {tuple(wanted[k].shape)} wanted" for k in missing]
    for k, v in state.items():
        if k not in wanted:
            problems.append(f"{k}: not in the model")
        elif v.shape != wanted[k].shape:
            problems.append(f"{k}: {tuple(v.shape)}, {tuple(wanted[k].shape)} wanted")
        elif v.dtype not in (FLOATS if wanted[k].is_floating_point() else (torch.int64,)):
            problems.append(f"{k}: numbers of type {v.dtype}, {wanted[k].dtype} wanted")
    return in_lines(problems)


def in_lines(problems: Sequence[str], most: int = 12) -> str:
    """The first problems, each a line."""
    lines = [f"  {problem}" for problem in problems[:most]]
    return "\n".join([*lines, *([f"  and {len(problems) - most} more"] if len(problems) > most else [])])


def unusable(state: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the numbers of a state dict: not finite in float32, or nothing that can be divided by."""
    problems = []
    for name, values in state.items():
        if not values.numel():
            continue
        # NaN is both least and largest of any numbers that have it
        least, most = (float(end.float()) for end in values.aminmax())
        if not math.isfinite(least) or not math.isfinite(most):
            problems.append(f"{name}: not all finite")
        elif name.endswith("running_var") and least < 0:
            problems.append(f"{name}: {least:g}, but a variance is never negative")
        elif name == "pixel_std" and least <= 0:
            problems.append(f"{name}: {least:g}, but a standard deviation is more than 0")
    return problems


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with torchvision's names (`features.0.weight`, `classifier.0.weight`) or Caffe's (`conv1_1.weight`,
    `fc6.weight`) with ours.

    The classifier's last layer, ImageNet's thousand classes, is left out, and with torchvision's names all that is
    neither in `features` nor in `classifier`. With batch normalisation too (torchvision's vgg16_bn). Other layers of a
    Caffe network keep their names, so that they are noticed.
    """
    parts = [(*key.rpartition(".")[::2], values) for key, values in state.items()]
    if from_caffe(state):
        return {f"{CAFFE_NAMES.get(layer, layer)}.{part}": v for layer, part, v in parts if layer != "fc8"}
    names = {
        ("features", 4): iter([f"trunk.convs.{name}" for name in VGG16.conv_names]),
        ("features", 1): iter([f"trunk.norms.{name}" for name in VGG16.conv_names]),
        # By their order: 0 and 3 in torchvision's files, 1 and 4 in some that were made of Caffe's.
        ("classifier", 2): iter(["head.fc6", "head.fc7"]),
    }
    renamed: dict[str, str | None] = {}
    for match in sorted(filter(None, map(LAYER_WEIGHT.match, state)), key=lambda m: int(m[2])):
        renamed[f"{match[1]}.{match[2]}"] = next(names.get((match[1], state[match[0]].dim()), iter([])), None)
    return {f"{renamed[layer]}.{part}": v for layer, part, v in parts if renamed.get(layer) is not None}


def from_caffe(state: Mapping[str, Tensor]) -> bool:
    """Whether the layers bear Caffe's names."""
    return not state.keys().isdisjoint({"conv1_1.weight", "conv1.weight"})


def load_pretrained(model: FastRCNN, state: dict[str, Tensor], source: str, pixels: str = "auto") -> None:
    """Puts weights of its network, with Caffe's names, (VGG16) torchvision's, or our own, into the trunk and fc6, fc7
    of `model`, and what they expect of pixels into its buffers.

    pixels: see pixels.decide; our own weights bring along what they expect. Raises UserError with the layers and shapes
    that do not fit; nothing is loaded then.
    """
    if state.keys() >= OWN_PIXELS:
        log.info("%s: of this detector the layers for its classes are left out", source)
        kept = {k: v for k, v in state.items() if k.startswith((*PARTS, "reduce.", *OWN_PIXELS))}
        mixed = ["reduce."] if any(k.startswith("reduce.") for k in kept) else []
        _load(model, kept, (*PARTS, *mixed, *OWN_PIXELS), source, EXPORT_FITS, pixels, caffe_names=False)
        return
    translated = translate(state)
    outputs = [k for k in translated if k.startswith(OUTPUTS)]
    if outputs:
        log.info("%s: of this detector the layers for its classes are left out: %s", source, ", ".join(outputs))
    kept = {k: v for k, v in translated.items() if k not in outputs}
    _load(model, kept, PARTS, source, NETWORK_FITS, pixels, from_caffe(state))


def detector_settings(state: dict[str, Tensor], source: str) -> tuple[ModelSettings, int]:
    """The model of a detector with Caffe's names, as the author trained it, and its number of object classes.

    Raises UserError where the layers that tell are not there.
    """
    shapes = {name: tuple(v.shape) for name, v in state.items() if name.endswith(".weight") and v.dim() > 0}
    first_two = [shapes.get(f"{name}.weight", ()) for name in ("conv1", "conv2")]
    grouped = all(len(shape) == 4 for shape in first_two) and 2 * first_two[1][1] == first_two[0][0]
    network: NetworkName = "vgg16" if "conv1_1.weight" in state else "caffenet" if grouped else "vgg_cnn_m_1024"
    first = NETWORKS[network].convs[0]
    lacking = [name for name in (first.name, *OUTPUTS) if len(shapes.get(f"{name}.weight", ())) < 2]
    if lacking:
        raise UserError(
            f"{source}: not a detector, it has no {', '.join(lacking)} (there are: "
            f"{', '.join(dict.fromkeys(k.rpartition('.')[0] for k in state))}).\n"
            "Weights to begin a training from are given as model.weights=FILE."
        )
    filters = shapes[f"{first.name}.weight"][0]
    if filters > first.channels:
        raise UserError(
            f"{source}: {first.name} has {filters} filters; {network} has {first.channels}, a slim one fewer."
        )
    ranks = {fc: shapes.get(f"{fc}_L.weight", (None,))[0] for fc in ("fc6", "fc7")}
    settings = ModelSettings(
        network=network,
        width=filters / first.channels,
        roi_size=AUTHORS_ROI_SIZE[network],
        roi_features=[NETWORKS[network].conv_names[-1]],
        finetune_from="conv3_1" if network == "vgg16" else "conv2",
        fc6_rank=ranks["fc6"],
        fc7_rank=ranks["fc7"],
    )
    return settings, shapes["cls_score.weight"][0] - 1


def load_detector(model: FastRCNN, state: dict[str, Tensor], source: str) -> None:
    """Puts all layers of a detector with Caffe's names into `model`.

    The author's training multiplies bbox_pred by the deviations of the regression targets and adds their means before
    it saves (`snapshot` in lib/fast_rcnn/train.py), so `delta_mean` becomes 0 and `delta_std` 1.
    Raises UserError as load_pretrained does.
    """
    _load(model, translate(state), (*PARTS, *OUTPUTS), source, DETECTOR_FITS, "auto", from_caffe(state))
    model.delta_mean.zero_()
    model.delta_std.fill_(1)
    log.info("%s: bbox_pred taken as not normalised, as the author's code saves it", source)


def _load(
    model: FastRCNN,
    state: dict[str, Tensor],
    parts: tuple[str, ...],
    source: str,
    fits: str,
    pixels: str,
    caffe_names: bool,
) -> None:
    """Puts a state dict with our names into those `parts` of the model, and what it expects of pixels."""
    wanted = {k: v for k, v in model.state_dict().items() if k.startswith(parts)}
    if problems := misfits(state, wanted) or in_lines(unusable(state)):
        raise UserError(f"{source}: these weights do not fit the model ({fits}):\n{problems}")
    if state.keys() >= OWN_PIXELS and pixels == "auto":
        log.info("%s: pixels as the file says", source)
        nn.Module.load_state_dict(model, state, strict=False)
        return
    first = f"trunk.convs.{model.trunk.network.convs[0].name}"
    name, why = decide(pixels, state[f"{first}.weight"], state[f"{first}.bias"], caffe_names)
    log.info("%s: pixels as %s (%s)", source, name, why)
    if PIXELS[name].turned:
        state = state | {f"{first}.weight": state[f"{first}.weight"].flip(1)}
    nn.Module.load_state_dict(model, state, strict=False)
    model.pixel_mean.copy_(model.pixel_mean.new_tensor(PIXELS[name].mean).view(3, 1, 1))
    model.pixel_std.copy_(model.pixel_std.new_tensor(PIXELS[name].std).view(3, 1, 1))
