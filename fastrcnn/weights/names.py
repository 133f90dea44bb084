"""Translate layer names of other programs for VGG16, VGG_CNN_M_1024 and CaffeNet to the names of this project."""

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
# This also matches the three additional layers of VGG19, which are then reported as unknown.
CAFFE_TRUNK = re.compile(r"conv[1-5](_[0-9])?\.(weight|bias)$")
# Names in torchvision's VGG16 (features.0.weight), also as a submodule, and in SSD (0.weight, vgg.0.weight).
FEATURES = re.compile(r"((?:(?:module|backbone|model|vgg|base|features)\.)*)([0-9]{1,4})\.weight$")
CLASSIFIER = re.compile(r"((?:(?:module|backbone|model|vgg)\.)*classifier\.)([0-9]{1,4})\.weight$")
# Names in Keras (block1_conv1.weight, block1_conv1_W_1:0, block1_conv1/kernel:0), also within HDF5 groups.
KERAS = re.compile(r"(?:.*[./])?block([1-5])_conv([1-9])[._/](weight|kernel|W|bias|b)(?:_[0-9]+)?(?::0)?$")


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the layers of a state dict from Caffe, torchvision, SSD or Keras names to the names of this project.

    Names of this project and layers other than the trunk, fc6, fc7, cls_score and bbox_pred are unchanged. The
    batch normalisation of torchvision's vgg16_bn is supported. If fc6 and fc7 are convolutions, their weights are
    flattened to (out, in), which is equivalent. Keras' fc1 and fc2 are not translated, because their inputs are in a
    different order.
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
    """Return whether the layers have the names that this project uses."""
    return any(key.startswith("trunk.convs.") for key in state)


def from_caffe(state: Mapping[str, Tensor]) -> bool:
    """Return whether the layers have Caffe's names."""
    return not state.keys().isdisjoint({"conv1_1.weight", "conv1.weight"})


def from_keras(state: Mapping[str, Tensor]) -> bool:
    """Return whether the layers have the names of VGG16 in Keras. Its weights were converted from Caffe's VGG16."""
    return any(KERAS.match(key) for key in state)


def _torchvision_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map torchvision's layer names to the names of this project, by the order of the layers.

    The indices in the names differ between files: the layers of `classifier` have the indices 0 and 3 in torchvision's
    files, and 1 and 4 in some files that were converted from Caffe.
    """
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
