"""Determine the pixel normalisation that weights of VGG16 expect: channel order, mean and scale.

The network accepts RGB values from 0 to 255 and normalises them with its buffers `pixel_mean` and `pixel_std`. If
weights were trained on BGR, the input channels of conv1_1 are reversed on loading, which is equivalent.

Two sets of weights are in common use: torchvision's weights, and the weights of the VGG authors, which were trained in
Caffe. The VGG authors' weights also exist in PyTorch files with torchvision's names (`vgg16_caffe.pth`). Only the
values distinguish such a file from torchvision's. Caffe detectors were trained with conv1_1 frozen, so their first
layer has the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastrcnn.model.fast_rcnn import IMAGENET_MEAN, IMAGENET_STD, FastRCNN


@dataclass(frozen=True)
class Pixels:
    """A pixel normalisation. mean, std: RGB, for values from 0 to 255. turned: whether the weights expect BGR."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    turned: bool


CAFFE_MEAN = (122.7717, 115.9465, 102.9801)  # RGB; PIXEL_MEANS (BGR) in the author's lib/fast_rcnn/config.py
PIXELS = {
    "imagenet_rgb": Pixels(IMAGENET_MEAN, IMAGENET_STD, turned=False),
    "caffe_bgr": Pixels(CAFFE_MEAN, (1.0, 1.0, 1.0), turned=True),
    "caffe_rgb": Pixels(CAFFE_MEAN, (1.0, 1.0, 1.0), turned=False),  # channels reversed during conversion
}


@dataclass(frozen=True)
class Known:
    """Published weights, which are recognised by values of conv1_1.

    bias: biases of the first filters. centre: the central weight of the first filter for one input channel.
    forward, backward: the key in PIXELS if this is the first channel, and if it is the last channel.
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
    """Return the key in PIXELS for published weights, or None for other weights.

    weight, bias: the parameters of the first convolution; (64, 3, 3, 3) and (64,) for VGG16.
    """
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
    """Return the key in PIXELS for weights, and the reason for the choice.

    asked: the key to return, or "auto". weight, bias: the parameters of the first convolution. from_caffe: whether the
    layers have the names of Caffe or Keras, whose VGG16 weights were trained in Caffe.
    """
    recognised = recognise(weight, bias)
    if asked != "auto":
        other = f", although the first layer was recognised as {recognised}" if recognised not in (None, asked) else ""
        return asked, f"set by model.pixels{other}"
    if recognised is not None:
        return recognised, "recognised by the values of the first layer"
    if from_caffe:
        return "caffe_bgr", "the layers have the names of Caffe or Keras"
    return "imagenet_rgb", "the weights are unknown; if they were trained in Caffe, set model.pixels=caffe_bgr"


def means_apart(model: FastRCNN, mean: Sequence[float]) -> float:
    """Return the largest difference between the model's pixel mean and `mean`, in grey levels."""
    return float((_like(model, mean) - model.pixel_mean.double()).abs().max())


def first_layer_for(model: FastRCNN, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of the first convolution, converted to expect pixels (RGB - mean) / std.

    The standard deviations are folded into the weights, which is exact. A difference of the means is folded into the
    bias. This is exact except at the border of the image, where filters overlap the padding. The padding of 0 stands
    for the mean colour, which is now a different colour.
    """
    name, state = model.trunk.network.convs[0].name, model.trunk.convs.state_dict()
    std_before = model.pixel_std.double()
    moved = (_like(model, mean) - model.pixel_mean.double()) / std_before
    weight = state[f"{name}.weight"].double()
    bias = state[f"{name}.bias"].double() + (weight * moved).sum(dim=(1, 2, 3))
    return (weight * _like(model, std) / std_before).float(), bias.float()


def _like(model: FastRCNN, values: Sequence[float]) -> Tensor:
    """Convert values to (3, 1, 1) float64. They are first rounded to the model's dtype, so that equal values cancel."""
    return model.pixel_mean.new_tensor(values).view(3, 1, 1).double()
