"""Writes and reads .caffemodel files for tests, byte by byte after Caffe's caffe.proto and protobuf's wire format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

# Layers up to the RoIs as models/*/train.prototxt have them: (pool, kernel, stride, pad), (lrn, alpha, k) over five
# channels with exponent .75, (name of a convolution, channels, kernel, stride, pad, groups).
LAYERS: dict[str, list[tuple]] = {
    "vgg16": [
        *((f"conv1_{i}", 64, 3, 1, 1, 1) for i in (1, 2)),
        ("pool", 2, 2, 0),
        *((f"conv2_{i}", 128, 3, 1, 1, 1) for i in (1, 2)),
        ("pool", 2, 2, 0),
        *((f"conv3_{i}", 256, 3, 1, 1, 1) for i in (1, 2, 3)),
        ("pool", 2, 2, 0),
        *((f"conv4_{i}", 512, 3, 1, 1, 1) for i in (1, 2, 3)),
        ("pool", 2, 2, 0),
        *((f"conv5_{i}", 512, 3, 1, 1, 1) for i in (1, 2, 3)),
    ],
    "vgg_cnn_m_1024": [
        ("conv1", 96, 7, 2, 0, 1),
        ("lrn", 0.0005, 2.0),
        ("pool", 3, 2, 0),
        ("conv2", 256, 5, 2, 1, 1),
        ("lrn", 0.0005, 2.0),
        ("pool", 3, 2, 0),
        ("conv3", 512, 3, 1, 1, 1),
        ("conv4", 512, 3, 1, 1, 1),
        ("conv5", 512, 3, 1, 1, 1),
    ],
    "caffenet": [
        ("conv1", 96, 11, 4, 5, 1),
        ("pool", 3, 2, 1),
        ("lrn", 0.0001, 1.0),
        ("conv2", 256, 5, 1, 2, 2),
        ("pool", 3, 2, 1),
        ("lrn", 0.0001, 1.0),
        ("conv3", 384, 3, 1, 1, 1),
        ("conv4", 384, 3, 1, 1, 2),
        ("conv5", 256, 3, 1, 1, 2),
    ],
}
CELLS = {"vgg16": 7, "vgg_cnn_m_1024": 6, "caffenet": 6}  # along a side of a pooled RoI
FC7 = {"vgg16": 4096, "vgg_cnn_m_1024": 1024, "caffenet": 4096}


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


def number(data: bytes, at: int) -> tuple[int, int]:
    """The whole number at a place, and the place behind it."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def fields(data: bytes) -> list[tuple[int, bytes]]:
    """Number and content of each field of a message that has texts, messages and packed lists alone."""
    at, found = 0, []
    while at < len(data):
        key, at = number(data, at)
        assert key & 7 == 2
        length, at = number(data, at)
        assert at + length <= len(data)
        found.append((key >> 3, data[at : at + length]))
        at += length
    return found


def read(path: Path) -> dict[str, tuple[str, list[np.ndarray]]]:
    """Type and blobs of each `layer`, the form since 2015, by its name."""
    layers = {}
    for kind, content in fields(path.read_bytes()):
        if kind == 1:
            continue
        assert kind == 100
        parts = fields(content)
        blobs = []
        for blob in (dict(fields(c)) for n, c in parts if n == 7):
            ((_, packed),) = fields(blob[7])
            shape, at = [], 0
            while at < len(packed):
                size, at = number(packed, at)
                shape.append(size)
            blobs.append(np.frombuffer(blob[5], "<f4").reshape(shape))
        name, layer_type = (dict(parts)[n].decode() for n in (1, 2))
        assert name not in layers
        layers[name] = (layer_type, blobs)
    return layers


def network(
    kind: str, width: float = 0.125, classes: int | None = None, seed: int = 0, cells: int | None = None
) -> dict[str, np.ndarray]:
    """Weights of one of LAYERS under Caffe's names, of a size at which activations neither vanish nor grow.

    classes: with the outputs of a detector of so many object classes; None: with the classifier's fc8.
    cells: along a side of a pooled RoI, where they are not CELLS.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}

    def layer(name: str, *shape: int, scale: float = 1.0) -> None:
        deviation = scale * np.sqrt(2 / np.prod(shape[1:]))
        found[f"{name}.weight"] = (rng.standard_normal(shape) * deviation).astype(np.float32)
        found[f"{name}.bias"] = (rng.standard_normal(shape[0]) * 0.1).astype(np.float32)

    below = 3
    for name, *numbers in LAYERS[kind]:
        if name.startswith("conv"):
            channels, kernel, _, _, groups = numbers
            layer(name, round(channels * width), below // groups, kernel, kernel, scale=0.02 if below == 3 else 1)
            below = round(channels * width)
    fc6, fc7 = round(4096 * width), round(FC7[kind] * width)
    layer("fc6", fc6, below * (cells or CELLS[kind]) ** 2)
    layer("fc7", fc7, fc6)
    if classes is None:
        layer("fc8", 1000, fc7)
    else:
        layer("cls_score", classes + 1, fc7)
        layer("bbox_pred", 4 * (classes + 1), fc7, scale=0.2)
    return found


def vgg16(
    width: float = 0.125, classes: int | None = None, seed: int = 0, roi_size: int | None = None
) -> dict[str, np.ndarray]:
    return network("vgg16", width, classes, seed, roi_size)
