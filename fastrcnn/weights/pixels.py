"""What weights of VGG16 expect of pixels: order of the channels, mean, scale.

The network takes RGB in 0 .. 255 and normalises by its buffers `pixel_mean` and `pixel_std`. Weights that were trained
on BGR have the channels of conv1_1 reversed as they are loaded, which gives the same sums.

Two sets of weights are in use: torchvision's, and the authors' own, trained in Caffe, also in PyTorch files with
torchvision's names (`vgg16_caffe.pth`). Only the numbers distinguish them. Caffe detectors were trained with conv1_1
frozen, so theirs are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastrcnn.model.fast_rcnn import IMAGENET_MEAN, IMAGENET_STD, FastRCNN


@dataclass(frozen=True)
class Pixels:
    """mean, std: RGB, 0 .. 255. turned: whether the file's conv1_1 takes BGR."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    turned: bool


CAFFE_MEAN = (122.7717, 115.9465, 102.9801)  # PIXEL_MEANS in the author's lib/fast_rcnn/config.py, there BGR
PIXELS = {
    "imagenet_rgb": Pixels(IMAGENET_MEAN, IMAGENET_STD, turned=False),
    "caffe_bgr": Pixels(CAFFE_MEAN, (1.0, 1.0, 1.0), turned=True),
    "caffe_rgb": Pixels(CAFFE_MEAN, (1.0, 1.0, 1.0), turned=False),  # turned by whoever converted them
}


@dataclass(frozen=True)
class Known:
    """Published weights, recognised by numbers of conv1_1.

    bias: of the first filters. centre: the middle weight of the first filter for the first channel.
    forward, backward: the key in PIXELS where that channel is the first, and where it is the last.
    """

    bias: tuple[float, ...]
    centre: float
    forward: str
    backward: str | None


TOLERANCE = 0.001
KNOWN = (
    Known((0.4034, 0.3778, 0.4644, -0.3228, 0.3940, -0.3953, 0.3951, -0.5496), 0.3566, "imagenet_rgb", None),
    Known((0.7343, 0.0934, 0.0678, 0.8863, 0.2599, 0.6643, -0.0158, 0.3249), 0.0387, "caffe_bgr", "caffe_rgb"),
)


def recognise(weight: Tensor, bias: Tensor) -> str | None:
    """The key in PIXELS of published weights, by conv1_1's weight (64, 3, 3, 3) and bias (64,); None for others, of
    VGG16 or of another network."""
    if weight.shape[1:] != (3, 3, 3) or len(bias) < len(KNOWN[0].bias):
        return None
    first, _, last = weight[0, :, 1, 1].tolist()
    for known in KNOWN:
        if (bias[: len(known.bias)] - bias.new_tensor(known.bias)).abs().max() < TOLERANCE:
            if abs(first - known.centre) < TOLERANCE:
                return known.forward
            return known.backward if abs(last - known.centre) < TOLERANCE else None
    return None


def decide(asked: str, weight: Tensor, bias: Tensor, from_caffe: bool) -> tuple[str, str]:
    """The key in PIXELS for weights, and words that say why.

    asked: such a key, which is then taken, or "auto". from_caffe: whether the layers bear Caffe's names.
    """
    recognised = recognise(weight, bias)
    if asked != "auto":
        other = f", though the first layer is that of {recognised}" if recognised not in (None, asked) else ""
        return asked, f"as model.pixels says{other}"
    if recognised is not None:
        return recognised, "known by the numbers of the first layer"
    if from_caffe:
        return "caffe_bgr", "the layers bear Caffe's names"
    return "imagenet_rgb", "no published weights; if they were trained in Caffe, say model.pixels=caffe_bgr"


def means_apart(model: FastRCNN, mean: Sequence[float]) -> float:
    """The largest difference between the model's mean of the pixels and another one, in grey levels."""
    return float((_like(model, mean) - model.pixel_mean.double()).abs().max())


def first_layer_for(model: FastRCNN, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the first convolution for pixels (RGB - mean) / std, in place of the model's.

    The deviations go into the weights, which is exact: a padding of 0 stays 0. A difference d of the means goes into
    the bias, which is exact but for the outermost cells, those that see the padding: 0 there is a pixel of the mean
    colour, so that their padding is lighter or darker by d.
    """
    name, state = model.trunk.network.convs[0].name, model.trunk.convs.state_dict()
    std_before = model.pixel_std.double()
    moved = (_like(model, mean) - model.pixel_mean.double()) / std_before
    weight = state[f"{name}.weight"].double()
    bias = state[f"{name}.bias"].double() + (weight * moved).sum(dim=(1, 2, 3))
    return (weight * _like(model, std) / std_before).float(), bias.float()


def _like(model: FastRCNN, values: Sequence[float]) -> Tensor:
    """Values (3, 1, 1) float64, rounded as the model's are, so that weights for the same pixels stay the same to the
    last bit."""
    return model.pixel_mean.new_tensor(values).view(3, 1, 1).double()
