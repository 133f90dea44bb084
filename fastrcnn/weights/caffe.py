"""Read and write `.caffemodel` files, which contain the weights of a Caffe network. Caffe itself is not required.

A file is a protobuf message that contains a list of layers. It is memory-mapped and parsed field by field, so even a
large or malicious file needs little memory in addition to the weights. The constants below are field numbers from
Caffe's caffe.proto. Other fields are skipped.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from fastrcnn.errors import UserError

CONVOLUTION = (b"Convolution", 4)  # `type` of a layer: a string since 2015, a number before
INNER_PRODUCT = (b"InnerProduct", 14)
NET_NAME, LAYER, OLD_LAYER = 1, 100, 2  # fields of the message NetParameter
PARTS = {LAYER: (1, 2, 7), OLD_LAYER: (4, 5, 6)}  # fields of a layer: name, type, blobs
# Fields of a blob. OLD_SHAPE consists of num, channels, height and width.
OLD_SHAPE, FLOATS, SHAPE, DOUBLES = (1, 2, 3, 4), 5, 7, 8
DIMENSIONS = 1  # field of a shape
MOST_LAYERS = 100_000
MOST_DIMENSIONS = 16
NOTHING = memoryview(b"")


def read(path: Path) -> dict[str, Tensor]:
    """Read the convolution and inner product layers of a `.caffemodel` as tensors NAME.weight and NAME.bias.

    NAME is the name of the layer in the file. All tensors are float32. A weight is (out, in, height, width) for a
    convolution and (out, in) for an inner product, and a bias is (out,). The channels keep the order of the file, which
    is BGR for Caffe's VGG16.

    Raises UserError if the file is missing, truncated or not a .caffemodel.
    """
    if not path.is_file():
        raise UserError(f"{path}: file not found. Set the path of a .caffemodel file.")
    found: dict[str, Tensor] = {}
    try:
        with path.open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if file.read(1) else NOTHING
        layers = ((kind, layer) for kind, _, layer in _fields(whole) if kind in PARTS)
        for count, (kind, layer) in enumerate(layers):
            if count == MOST_LAYERS:
                raise UserError(
                    f"{path}: the file appears to contain more than {MOST_LAYERS} layers, so it is probably not a "
                    ".caffemodel file."
                )
            for name, values in _layer(kind, layer, path):
                if name in found:
                    raise UserError(
                        f"{path}: two layers have the name '{name.rpartition('.')[0]}'. Layer names must be unique."
                    )
                found[name] = values
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from error
    except EOFError as error:
        raise UserError(
            f"{path}: the file is truncated or not a .caffemodel (the protobuf message is incomplete)."
        ) from error
    if not found:
        raise UserError(f"{path}: the file contains no layer with weights, so it is not a .caffemodel.")
    return found


def _layer(kind: int, content: memoryview, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and the values of a layer's weight and bias, if it has them. kind: LAYER or OLD_LAYER."""
    name = ""
    layer_type: bytes | int = 0
    blobs: list[memoryview] = []
    for number, value, part in _fields(content):
        if number == PARTS[kind][0]:
            name = bytes(part).decode(errors="replace")
        elif number == PARTS[kind][1]:
            layer_type = bytes(part) or value
        elif number == PARTS[kind][2] and len(blobs) < 2:
            blobs.append(part)
    if layer_type not in CONVOLUTION + INNER_PRODUCT:
        return
    for part_name, blob in zip(("weight", "bias"), blobs, strict=False):
        values = _values(blob, f"{path}: layer '{name}', {part_name}")
        if part_name == "bias":
            values = values.flatten()
        elif layer_type in INNER_PRODUCT and values.dim() == 4 and values.shape[:2] == (1, 1):
            values = values[0, 0]  # all blobs had four dimensions before 2015
        yield f"{name}.{part_name}", values


def _values(blob: memoryview, where: str) -> Tensor:
    """Convert a blob (Caffe array) to a tensor. where: its place, for messages. Raises UserError if it is invalid."""
    shape: list[int] = []
    old_shape, numbers = [0, 0, 0, 0], {FLOATS: NOTHING, DOUBLES: NOTHING}
    for number, value, part in _fields(blob):
        if number in OLD_SHAPE:
            old_shape[number - 1] = value
        elif number in numbers:
            numbers[number] = part
        elif number == SHAPE:
            for field, one, packed in _fields(part):
                if field == DIMENSIONS and len(shape) <= MOST_DIMENSIONS:
                    shape += _varints(packed) if len(packed) else [one]
    shape = shape or old_shape
    data, kind = (numbers[FLOATS], "<f4") if len(numbers[FLOATS]) else (numbers[DOUBLES], "<f8")
    wanted = math.prod(shape) if len(shape) <= MOST_DIMENSIONS else 0
    if not wanted or len(data) != wanted * np.dtype(kind).itemsize:
        raise UserError(f"{where}: the shape {tuple(shape)} does not match the {len(data)} bytes of data.")
    return torch.from_numpy(np.frombuffer(data, kind).astype(np.float32).reshape(shape))


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield the number, the integer value and the bytes of each field of a message.

    A field contains an integer or bytes; the other value is 0 or empty. Raises EOFError if the message is invalid or
    truncated.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, form = key >> 3, key & 7
        if form == 0:
            value, at = _varint(message, at)
            yield number, value, NOTHING
            continue
        if form == 2:
            length, at = _varint(message, at)
        else:
            length = {1: 8, 5: 4}.get(form, len(message))
        if length > len(message) - at:
            raise EOFError
        yield number, 0, message[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Decode a varint, which has seven bits per byte, lowest first. Return its value and the position after it."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise EOFError


def _varints(data: memoryview) -> list[int]:
    """Decode consecutive varints. Stop after MOST_DIMENSIONS + 1 of them, because such a shape is refused anyway."""
    found: list[int] = []
    at = 0
    while at < len(data) and len(found) <= MOST_DIMENSIONS:
        value, at = _varint(data, at)
        found.append(value)
    return found


def write(file: BinaryIO, name: str, layers: Iterable[tuple[str, Mapping[str, Tensor]]]) -> None:
    """Write a network in the format that Caffe has used since 2015. name: name of the network.

    layers: pairs of the name and the float32 tensors of a layer, which are not copied. The tensors are `weight`, with
    shape (out, in, height, width) for a convolution or (out, in) for an inner product, and optionally `bias` (out,).
    """
    name_field, type_field, blobs_field = PARTS[LAYER]
    file.write(_field(NET_NAME, name.encode()))
    for layer, tensors in layers:
        kind = CONVOLUTION if tensors["weight"].dim() == 4 else INNER_PRODUCT
        content: list[bytes | memoryview] = [_field(name_field, layer.encode()), _field(type_field, kind[0])]
        for values in (tensors[part] for part in ("weight", "bias") if part in tensors):
            data = memoryview(values.detach().cpu().contiguous().numpy().astype("<f4", copy=False).data).cast("B")
            head = _field(SHAPE, _field(DIMENSIONS, b"".join(map(_encode, values.shape)))) + _head(FLOATS, len(data))
            content += [_head(blobs_field, len(head) + len(data)), head, data]
        file.write(_head(LAYER, sum(map(len, content))))
        file.writelines(content)


def _field(number: int, content: bytes) -> bytes:
    return _head(number, len(content)) + content


def _head(number: int, length: int) -> bytes:
    """Return the header of a field that contains `length` bytes."""
    return _encode(number << 3 | 2) + _encode(length)


def _encode(value: int) -> bytes:
    """Encode a non-negative integer as a varint."""
    high, low = divmod(value, 128)
    return bytes([low | 128]) + _encode(high) if high else bytes([low])
