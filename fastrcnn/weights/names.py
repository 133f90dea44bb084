"""Layers of VGG16, VGG_CNN_M_1024 and CaffeNet under the names that other programs give them, and under ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from fastrcnn.model.networks import NETWORKS, VGG16

OUTPUTS = ("cls_score", "bbox_pred")
CAFFE_NAMES = {
    **{name: f"trunk.convs.{name}" for network in NETWORKS.values() for name in network.conv_names},
    **{fc + part: f"head.{fc}{part.replace('_', '.')}" for fc in ("fc6", "fc7") for part in ("", "_L", "_U")},
    **{name: name for name in OUTPUTS},
}
CAFFE_TRUNK = re.compile(r"conv[1-5](_[0-9])?\.(weight|bias)$")  # VGG19 has VGG16's and three more
# torchvision's VGG16 (features.0.weight), also inside another module, and SSD's (0.weight, vgg.0.weight).
FEATURES = re.compile(r"((?:(?:module|backbone|model|vgg|base|features)\.)*)([0-9]{1,4})\.weight$")
CLASSIFIER = re.compile(r"((?:(?:module|backbone|model|vgg)\.)*classifier\.)([0-9]{1,4})\.weight$")
# Keras' block1_conv1.weight, block1_conv1_W_1:0, block1_conv1/kernel:0, also below folders of an HDF5 file.
KERAS = re.compile(r"(?:.*[./])?block([1-5])_conv([1-9])[._/](weight|kernel|W|bias|b)(?:_[0-9]+)?(?::0)?$")


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names of Caffe, torchvision, SSD or Keras with ours, or as it is where it has ours.

    A layer that is none of the trunk, fc6, fc7, cls_score and bbox_pred keeps its name. With batch normalisation too
    (torchvision's vgg16_bn). Weights of fc6 and fc7 that are convolutions become (out, in), which is the same sum;
    Keras' fc1 and fc2 count the cells of a RoI in another order, and are left alone.
    """
    if is_ours(state):
        return dict(state)
    if from_caffe(state):
        return _renamed(state, CAFFE_NAMES)
    if from_keras(state):
        named = {}
        for key, values in state.items():
            match = KERAS.match(key)
            part = "weight" if match and match[3] in ("weight", "kernel", "W") else "bias"
            named[f"trunk.convs.conv{match[1]}_{match[2]}.{part}" if match else key] = values
        return named
    return _renamed(state, _torchvision_names(state))


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether the layers have our names."""
    return any(key.startswith("trunk.convs.") for key in state)


def from_caffe(state: Mapping[str, Tensor]) -> bool:
    """Whether the layers have Caffe's names."""
    return not state.keys().isdisjoint({"conv1_1.weight", "conv1.weight"})


def from_keras(state: Mapping[str, Tensor]) -> bool:
    """Whether the layers have the names of VGG16 in Keras, whose numbers are Caffe's."""
    return any(KERAS.match(key) for key in state)


def _torchvision_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name of each layer, by their order: `classifier` has 0 and 3 in torchvision's files, 1 and 4 in some that
    were made of Caffe's."""
    ours = {
        (FEATURES, 4): iter([f"trunk.convs.{name}" for name in VGG16.conv_names]),
        (FEATURES, 1): iter([f"trunk.norms.{name}" for name in VGG16.conv_names]),
        (CLASSIFIER, 2): iter(["head.fc6", "head.fc7"]),
    }
    names = {}
    for form in (FEATURES, CLASSIFIER):
        matches = [match for match in map(form.match, state) if match]
        numbers = sorted(int(match[2]) for match in matches if match[1] == matches[0][1])
        for number in numbers:
            layer = f"{matches[0][1]}{number}"
            if (name := next(ours.get((form, state[f"{layer}.weight"].dim()), iter([])), None)) is not None:
                names[layer] = name
    return names


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for key, values in state.items():
        layer, _, part = key.rpartition(".")
        name = f"{names[layer]}.{part}" if layer in names else key
        renamed[name] = values.flatten(1) if name.startswith("head.") and values.dim() == 4 else values
    return renamed
