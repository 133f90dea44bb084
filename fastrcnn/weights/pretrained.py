"""Reading weights into the network."""

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
PARTS = ("trunk.", "head.")  # of a detector, beside its outputs
KNOWN = (
    "no layer has the name of one of VGG16's convolutions in torchvision (features.0), SSD (0), Caffe (conv1_1), Keras "
    "(block1_conv1) or here (trunk.convs.conv1_1)"
)
NETWORK_FITS = "VGG16's fit model=vgg16, VGG_CNN_M_1024's model=vgg_cnn_m_1024, CaffeNet's model=caffenet, of width 1"
EXPORT_FITS = "a run, or what `fastrcnn export` wrote of it, fits the model.* keys of that run; model.head may differ"
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


def load_pretrained(model: FastRCNN, state: dict[str, Tensor], source: str, pixels: str = "auto") -> dict[str, str]:
    """Puts the weights of the trunk, and those of fc6 and fc7 where they fit, into `model`, and what they expect of
    pixels into its buffers. Returns why each other layer below the outputs stays as it was initialised, by its name.

    state: with Caffe's names, (VGG16) torchvision's, SSD's or Keras', or our own. pixels: see pixels.decide; our own
    weights bring along what they expect. Raises UserError for what contradicts the model; nothing is loaded then.
    """
    named = translate(state)
    found = fit(model, named)
    fits = (
        EXPORT_FITS if is_ours(state) else NETWORK_FITS if is_ours(named) else f"{KNOWN}; it has {few(layers(state))}"
    )
    _load(model, found.used, found.problems, source, fits, pixels, from_caffe(state) or from_keras(state))
    convs = model.trunk.network.conv_names
    read = [f"{convs[0]} to {convs[-1]}", *(name for name in ("reduce", "fc6", "fc7") if name in layers(found.used))]
    fresh = [*(f"{layer} ({why})" for layer, why in found.fresh.items()), *OUTPUTS]
    unused = [name for name in layers(named) if name not in (*layers(found.used), *BUFFERS)]
    level = logging.WARNING if any(why.startswith(SHAPE) for why in found.fresh.values()) else logging.INFO
    log.log(level, "%s: read %s; initialised: %s; not used: %s", source, ", ".join(read), ", ".join(fresh), few(unused))
    return found.fresh


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
    """Puts all layers of a detector with Caffe's names into `model`.

    The author's training multiplies bbox_pred by the deviations of the regression targets and adds their means before
    it saves (`snapshot` in lib/fast_rcnn/train.py), so `delta_mean` becomes 0 and `delta_std` 1.
    Raises UserError as load_pretrained does.
    """
    named = translate(state)
    wanted = {k: v for k, v in model.state_dict().items() if k.startswith((*PARTS, *OUTPUTS))}
    _load(model, named, misfits(named, wanted), source, DETECTOR_FITS, "auto", from_caffe(state))
    model.delta_mean.zero_()
    model.delta_std.fill_(1)
    log.info("%s: bbox_pred taken as not normalised, as the author's code saves it", source)


def _load(
    model: FastRCNN,
    state: dict[str, Tensor],
    problems: list[str],
    source: str,
    fits: str,
    pixels: str,
    caffes: bool,
) -> None:
    """Puts a state dict with our names into the model, and what it expects of pixels; raises UserError for problems."""
    if problems := problems or unusable(state):
        raise UserError(f"{source}: these weights do not fit the model ({fits}):\n{in_lines(problems)}")
    if "map_scale" in state:
        model.map_scale = torch.ones_like(state["map_scale"], dtype=torch.float32)
    if state.keys() >= OWN_PIXELS and pixels == "auto":
        log.info("%s: pixels as the file says", source)
        nn.Module.load_state_dict(model, state, strict=False)
        return
    first = f"trunk.convs.{model.trunk.network.convs[0].name}"
    name, why = decide(pixels, state[f"{first}.weight"], state[f"{first}.bias"], caffes)
    log.info("%s: pixels as %s (%s)", source, name, why)
    if PIXELS[name].turned:
        state = state | {f"{first}.weight": state[f"{first}.weight"].flip(1)}
    nn.Module.load_state_dict(model, state, strict=False)
    model.pixel_mean.copy_(model.pixel_mean.new_tensor(PIXELS[name].mean).view(3, 1, 1))
    model.pixel_std.copy_(model.pixel_std.new_tensor(PIXELS[name].std).view(3, 1, 1))
