"""Writes .caffemodel files for tests, byte by byte after Caffe's caffe.proto and protobuf's wire format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

STAGES = {"conv1": (64, 2), "conv2": (128, 2), "conv3": (256, 3), "conv4": (512, 3), "conv5": (512, 3)}


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes | int) -> bytes:
    """A field whose value is a whole number, or bytes (text, a message, a packed list)."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def old_blob(values: np.ndarray) -> bytes:
    """With num, channels, height, width, as before 2015; missing dimensions are 1, in front."""
    shape = (1,) * (4 - values.ndim) + values.shape
    return b"".join(field(i + 1, n) for i, n in enumerate(shape)) + field(5, values.astype("<f4").tobytes())


def new_blob(values: np.ndarray, double: bool = False) -> bytes:
    """With a shape of as many dimensions as the values have."""
    shape = field(7, field(1, b"".join(varint(n) for n in values.shape)))
    return shape + (field(8, values.astype("<f8").tobytes()) if double else field(5, values.astype("<f4").tobytes()))


def old_layer(name: str, convolution: bool, blobs: Sequence[np.ndarray]) -> bytes:
    body = field(2, b"below") + field(3, b"above") + field(4, name.encode()) + field(5, 4 if convolution else 14)
    return field(2, body + b"".join(field(6, old_blob(b)) for b in blobs))


def new_layer(name: str, convolution: bool, blobs: Sequence[np.ndarray], double: bool = False) -> bytes:
    body = field(1, name.encode()) + field(2, b"Convolution" if convolution else b"InnerProduct") + field(3, b"below")
    return field(100, body + b"".join(field(7, new_blob(b, double)) for b in blobs))


def write(path: Path, weights: Mapping[str, np.ndarray], old: bool = False) -> Path:
    """A network with the layers of `weights` (NAME.weight, NAME.bias), and a ReLU and a data layer without weights."""
    names = dict.fromkeys(key.rpartition(".")[0] for key in weights)
    make = old_layer if old else new_layer
    data = field(1, b"VGG_ILSVRC_16_layers") + make("data", False, [])
    for name in names:
        blobs = [weights[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in weights]
        data += make(name, blobs[0].ndim == 4, blobs) + make(f"relu_{name}", False, [])
    path.write_bytes(data)
    return path


def vgg16(width: float = 0.125, roi_size: int = 7, classes: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under Caffe's names, of a size at which activations neither vanish nor grow.

    classes: with the outputs of a detector of so many object classes; None: with the classifier's fc8.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}

    def layer(name: str, *shape: int, scale: float = 1.0) -> None:
        deviation = scale * np.sqrt(2 / np.prod(shape[1:]))
        found[f"{name}.weight"] = (rng.standard_normal(shape) * deviation).astype(np.float32)
        found[f"{name}.bias"] = (rng.standard_normal(shape[0]) * 0.1).astype(np.float32)

    below = 3
    for stage, (channels, number) in STAGES.items():
        for i in range(number):
            layer(f"{stage}_{i + 1}", round(channels * width), below, 3, 3, scale=0.02 if below == 3 else 1)
            below = round(channels * width)
    features = round(4096 * width)
    layer("fc6", features, below * roi_size**2)
    layer("fc7", features, features)
    if classes is None:
        layer("fc8", 1000, features)
    else:
        layer("cls_score", classes + 1, features)
        layer("bbox_pred", 4 * (classes + 1), features, scale=0.2)
    return found
