"""Load pre-trained weights and Caffe detectors into the network."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.networks import NETWORKS
from fastrcnn.settings import ModelSettings, NetworkName
from fastrcnn.weights import caffe, safetensors_files, torch_files
from fastrcnn.weights.fitting import BUFFERS, OWN_PIXELS, SHAPE, few, fit, in_lines, layers, misfits, unusable
from fastrcnn.weights.names import OUTPUTS, from_caffe, from_keras, is_ours, translate
from fastrcnn.weights.pixels import PIXELS, decide

log = logging.getLogger(__name__)
PARTS = ("trunk.", "head.")  # prefixes of the layers before the output layers
KNOWN = (
    "no layer has the name of a VGG16 convolution in torchvision (features.0), SSD (0), Caffe (conv1_1), Keras "
    "(block1_conv1) or this project (trunk.convs.conv1_1)"
)
NETWORK_FITS = (
    "use model=vgg16 for weights of VGG16, model=vgg_cnn_m_1024 for VGG_CNN_M_1024 and model=caffenet for CaffeNet, "
    "each with model.width=1"
)
EXPORT_FITS = (
    "for weights of a run or from `fastrcnn export`, set the model.* keys of that run; only model.head can differ"
)
AUTHORS_ROI_SIZE = {"vgg16": 7, "vgg_cnn_m_1024": 6, "caffenet": 6}  # bins per side, from models/*/train.prototxt
DETECTOR_FITS = (
    "a detector must have the network S, M or L of the paper, RoIs pooled to 7 x 7 (VGG16) or 6 x 6 bins, and two "
    "output layers"
)


def torchvision_vgg16() -> dict[str, Tensor]:
    """Return the state dict of torchvision's ImageNet weights of VGG16. It is downloaded once, to torch's hub folder.

    Raises UserError if the download fails.
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
                f"On a machine with internet access, download {url}. Save the file as\n"
                f"  {path}\n"
                "or set model.weights=/path/to/vgg16.pth. To train without these weights, set recipe=scratch."
            ) from error
    return read_state_dict(path)  # torch.hub would execute code that a manipulated file contains


def existing(path: Path) -> Path:
    """Return `path`. Raises UserError if no weights file with this path exists."""
    if not path.is_file():
        raise UserError(
            f"model.weights: {path}: file not found. Set the path of a state dict (.pth, .safetensors) or of a "
            ".caffemodel, or set 'imagenet' for torchvision's VGG16. `scripts/download_voc.sh "
            "weights` downloads the ImageNet weights of the original Fast R-CNN code (Girshick)."
        )
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the weights in a `.pth`, `.safetensors` or `.caffemodel` file, without executing code in it.

    Raises UserError if the file is missing or invalid.
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
        raise UserError(f"{path}: expected a state dict (a dictionary of tensors by name). Use another weights file.")
    return state


def load_pretrained(model: FastRCNN, state: dict[str, Tensor], source: str, pixels: str = "auto") -> dict[str, str]:
    """Load the trunk, fc6 and fc7 (if they fit) and the pixel normalisation of pre-trained weights into `model`.

    state: a state dict with the layer names of Caffe, of this project or, for VGG16, of torchvision, SSD or Keras.
    pixels: see pixels.decide. If it is "auto", weights of this project are used with the normalisation that they
    contain. Returns the other layers before the outputs, which keep their initial values: a dictionary of names and
    reasons. Raises UserError, and loads nothing, if the weights contradict the model or contain invalid values.
    """
    named = translate(state)
    found = fit(model, named)
    fits = (
        EXPORT_FITS
        if is_ours(state)
        else NETWORK_FITS
        if is_ours(named)
        else f"{KNOWN}; the file contains {few(layers(state))}"
    )
    _load(model, found.used, found.problems, source, fits, pixels, from_caffe(state) or from_keras(state))
    convs = model.trunk.network.conv_names
    read = [f"{convs[0]} to {convs[-1]}", *(name for name in ("reduce", "fc6", "fc7") if name in layers(found.used))]
    fresh = [*(f"{layer} ({why})" for layer, why in found.fresh.items()), *OUTPUTS]
    unused = [name for name in layers(named) if name not in (*layers(found.used), *BUFFERS)]
    level = logging.WARNING if any(why.startswith(SHAPE) for why in found.fresh.values()) else logging.INFO
    log.log(
        level, "%s: loaded: %s; initialised: %s; not used: %s", source, ", ".join(read), ", ".join(fresh), few(unused)
    )
    return found.fresh


def detector_settings(state: dict[str, Tensor], source: str) -> tuple[ModelSettings, int]:
    """Return the model settings and the number of object classes of a detector with Caffe's layer names.

    Raises UserError if a layer that determines them is missing, or if its shape does not belong to a known network.
    """
    shapes = {name: tuple(v.shape) for name, v in state.items() if name.endswith(".weight") and v.dim() > 0}
    first_two = [shapes.get(f"{name}.weight", ()) for name in ("conv1", "conv2")]
    grouped = all(len(shape) == 4 for shape in first_two) and 2 * first_two[1][1] == first_two[0][0]
    network: NetworkName = "vgg16" if "conv1_1.weight" in state else "caffenet" if grouped else "vgg_cnn_m_1024"
    first = NETWORKS[network].convs[0]
    lacking = [name for name in (first.name, *OUTPUTS) if len(shapes.get(f"{name}.weight", ())) < 2]
    if lacking:
        raise UserError(
            f"{source}: not a detector. Missing layers: {', '.join(lacking)}. Layers in the file: "
            f"{', '.join(dict.fromkeys(k.rpartition('.')[0] for k in state))}.\n"
            "To start training from these weights, set model.weights=FILE."
        )
    filters = shapes[f"{first.name}.weight"][0]
    if filters > first.channels:
        raise UserError(
            f"{source}: {first.name} has {filters} filters, but a {network} detector can have at most "
            f"{first.channels}. Use a detector with the network S, M or L of the paper."
        )
    names = {fc: f"{fc}_U" if f"{fc}_U.weight" in shapes else fc for fc in ("fc6", "fc7")}
    width = filters / first.channels
    head = [shapes.get(f"{name}.weight", (0,))[0] for name in names.values()]
    ranks = {fc: shapes.get(f"{fc}_L.weight", (None,))[0] for fc in ("fc6", "fc7")}
    settings = ModelSettings(
        network=network,
        width=width,
        head=head if all(head) and tuple(head) != NETWORKS[network].features_of(width) else None,
        roi_size=AUTHORS_ROI_SIZE[network],
        roi_features=[NETWORKS[network].conv_names[-1]],
        finetune_from="conv3_1" if network == "vgg16" else "conv2",
        fc6_rank=ranks["fc6"],
        fc7_rank=ranks["fc7"],
    )
    return settings, shapes["cls_score.weight"][0] - 1


def load_detector(model: FastRCNN, state: dict[str, Tensor], source: str) -> None:
    """Load all layers of a detector with Caffe's layer names into `model`.

    Before saving, the author's code multiplies bbox_pred by the standard deviations of the regression targets and adds
    their means (`snapshot` in lib/fast_rcnn/train.py). Therefore `delta_mean` is set to 0 and `delta_std` to 1.
    Raises UserError if the weights contradict the model or contain invalid values.
    """
    named = translate(state)
    wanted = {k: v for k, v in model.state_dict().items() if k.startswith((*PARTS, *OUTPUTS))}
    _load(model, named, misfits(named, wanted), source, DETECTOR_FITS, "auto", from_caffe(state))
    model.delta_mean.zero_()
    model.delta_std.fill_(1)
    log.info(
        "%s: assuming that the box layer (bbox_pred) predicts unnormalised deltas, as in the models of the original "
        "Fast R-CNN code (Girshick)",
        source,
    )


def _load(
    model: FastRCNN,
    state: dict[str, Tensor],
    problems: list[str],
    source: str,
    fits: str,
    pixels: str,
    caffes: bool,
) -> None:
    """Load a state dict with the layer names of this package, and its pixel normalisation, into `model`.

    fits: advice for the error message. caffes: whether the layers had the names of Caffe or Keras. Raises UserError if
    `problems` is not empty or a tensor contains invalid values.
    """
    if problems := problems or unusable(state):
        raise UserError(f"{source}: the weights do not fit the model ({fits}):\n{in_lines(problems)}")
    if "map_scale" in state:
        model.map_scale = torch.ones_like(state["map_scale"], dtype=torch.float32)
    if state.keys() >= OWN_PIXELS and pixels == "auto":
        log.info("%s: the pixel normalisation was read from the file", source)
        nn.Module.load_state_dict(model, state, strict=False)
        return
    first = f"trunk.convs.{model.trunk.network.convs[0].name}"
    name, why = decide(pixels, state[f"{first}.weight"], state[f"{first}.bias"], caffes)
    log.info("%s: the pixel normalisation is %s (%s)", source, name, why)
    if PIXELS[name].turned:
        state = state | {f"{first}.weight": state[f"{first}.weight"].flip(1)}
    nn.Module.load_state_dict(model, state, strict=False)
    model.pixel_mean.copy_(model.pixel_mean.new_tensor(PIXELS[name].mean).view(3, 1, 1))
    model.pixel_std.copy_(model.pixel_std.new_tensor(PIXELS[name].std).view(3, 1, 1))
