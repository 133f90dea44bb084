"""Reading and writing `.caffemodel` files: the weights of a network in Caffe. Caffe itself is not needed.

Such a file is one protobuf message, a list of layers. Layers are read from it one at a time, so that neither a large
file nor a hostile one (two bytes are an empty layer, which takes a hundred once it is parsed) needs much memory. The
few fields that hold weights are declared here, by the numbers they have in Caffe's caffe.proto; the others are passed
over.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from torch import Tensor

from fastrcnn.errors import UserError

CONVOLUTION = ("Convolution", 4)  # `type` of a layer: a word since 2015, before that a number
INNER_PRODUCT = ("InnerProduct", 14)
LAYERS = {2: "OldLayer", 100: "Layer"}  # fields `layers` and `layer` of the whole file's message, NetParameter
MOST_LAYERS = 100_000
MOST_DIMENSIONS = 16
# Message -> field -> number, type, repeated. Blobs, and in them the runs of little-endian floats, are declared as
# bytes, which the wire format does not tell from them: they are parsed when their turn comes, floats not at all.
SCHEMA = {
    "OldLayer": {"name": (4, "bytes", False), "type": (5, "int32", False), "blobs": (6, "bytes", True)},
    "Layer": {"name": (1, "bytes", False), "type": (2, "bytes", False), "blobs": (7, "bytes", True)},
    "Blob": {
        "num": (1, "int32", False),
        "channels": (2, "int32", False),
        "height": (3, "int32", False),
        "width": (4, "int32", False),
        "data": (5, "bytes", True),
        "shape": (7, "Shape", False),
        "double_data": (8, "bytes", True),
    },
    "Shape": {"dim": (1, "int64", True)},
}


@functools.cache
def messages() -> dict[str, Any]:
    """The classes of the messages in SCHEMA."""
    Field = descriptor_pb2.FieldDescriptorProto
    scalars = {"bytes": Field.TYPE_BYTES, "int32": Field.TYPE_INT32, "int64": Field.TYPE_INT64}
    file = descriptor_pb2.FileDescriptorProto(name="fastrcnn_caffe.proto", package="fastrcnn_caffe", syntax="proto2")
    for name, fields in SCHEMA.items():
        described = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            if kind in scalars:
                added = described.field.add(name=field, number=number, label=label, type=scalars[kind])
                if kind == "int64":
                    added.options.packed = True  # as caffe.proto says; read in either form
            else:
                described.field.add(
                    name=field, number=number, label=label, type=Field.TYPE_MESSAGE, type_name=f".fastrcnn_caffe.{kind}"
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {name: message_factory.GetMessageClass(find(f"fastrcnn_caffe.{name}")) for name in SCHEMA}


def read(path: Path) -> dict[str, Tensor]:
    """Weights and biases of the convolutions and inner products in a `.caffemodel`, as NAME.weight and NAME.bias.

    NAME is the layer's name in Caffe. Weights of a convolution are (out, in, height, width), of an inner product
    (out, in), biases (out,), all float32, channels in the order of the file, which for Caffe's VGG16 is BGR.
    Beside the result, twice the largest layer is held in memory.

    Raises UserError for a file that is not there, is cut short, or is something else.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}. Give the path of a .caffemodel.")
    found: dict[str, Tensor] = {}
    try:
        with path.open("rb") as file:
            for kind, content in _layers(file, path):
                layer = messages()[kind].FromString(content)
                del content  # of a large layer no third copy is to be held
                convolution = _is(layer.type, CONVOLUTION)
                if convolution or _is(layer.type, INNER_PRODUCT):
                    name, blobs = layer.name.decode(errors="replace"), list(layer.blobs[:2])
                    del layer
                    _add(found, name, blobs, convolution, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except (EOFError, message.DecodeError) as error:
        raise UserError(f"{path}: not a .caffemodel, or cut short (its protobuf message does not end well).") from error
    if not found:
        raise UserError(f"{path}: no layer with weights in it; this is not a .caffemodel.")
    return found


def write(file: BinaryIO, name: str, layers: Iterable[tuple[str, Mapping[str, Tensor]]]) -> None:
    """Writes a network of this name, in the form that Caffe has had since 2015.

    layers: the name of each, with its `weight`, (out, in, height, width) of a convolution or (out, in) of an inner
    product, and its `bias` (out,), if any; float32. Beside them, no copy of a layer is held in memory.
    """
    _field(file, 1, name.encode())
    for layer, tensors in layers:
        kind = (CONVOLUTION if tensors["weight"].dim() == 4 else INNER_PRODUCT)[0]
        head = messages()["Layer"](name=layer.encode(), type=kind.encode()).SerializeToString()
        blobs = []
        for part in ("weight", "bias"):
            if part in tensors:
                shape = messages()["Shape"](dim=tensors[part].shape)
                numbers = tensors[part].detach().cpu().contiguous().numpy().astype("<f4", copy=False)
                blobs.append((messages()["Blob"](shape=shape).SerializeToString(), memoryview(numbers.data).cast("B")))
        sizes = [len(shape) + len(_key(5, len(data))) + len(data) for shape, data in blobs]
        file.write(_key(100, len(head) + sum(len(_key(7, size)) + size for size in sizes)) + head)
        for size, (shape, data) in zip(sizes, blobs, strict=True):
            file.write(_key(7, size) + shape)
            _field(file, 5, data)


def _field(file: BinaryIO, number: int, content: bytes | memoryview) -> None:
    file.write(_key(number, len(content)))
    file.write(content)


def _key(number: int, length: int) -> bytes:
    """What stands before a field of `length` bytes."""
    out = bytearray()
    for value in (number << 3 | 2, length):
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def _layers(file: BinaryIO, path: Path) -> Iterator[tuple[str, bytes]]:
    """Kind and content of each layer. Raises EOFError where the file is no message."""
    size = path.stat().st_size
    count = 0
    while file.tell() < size:
        key = _varint(file)
        if key & 7 == 0:
            _varint(file)
            continue
        length = {1: 8, 5: 4}.get(key & 7) or (_varint(file) if key & 7 == 2 else size)
        if length > size - file.tell():
            raise EOFError
        if key & 7 == 2 and key >> 3 in LAYERS:
            count += 1
            if count > MOST_LAYERS:
                raise UserError(f"{path}: more than {MOST_LAYERS} layers; this is no network.")
            yield LAYERS[key >> 3], file.read(length)
        else:
            file.seek(length, 1)


def _varint(file: BinaryIO) -> int:
    """A whole number as protobuf writes it: seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise EOFError


def _is(kind: bytes | int, words: tuple[str, int]) -> bool:
    return (kind.decode(errors="replace") if isinstance(kind, bytes) else kind) in words


def _add(found: dict[str, Tensor], name: str, blobs: list[bytes], convolution: bool, path: Path) -> None:
    """Puts weight and bias of a layer into `found`; empties `blobs`, so that each is freed as soon as it is read."""
    if f"{name}.weight" in found:
        raise UserError(f"{path}: the layer '{name}' comes twice; only one can be loaded.")
    for part in ("weight", "bias")[: len(blobs)]:
        values = _values(messages()["Blob"].FromString(blobs.pop(0)), f"{path}: layer '{name}', {part}")
        if part == "bias":
            values = values.flatten()
        elif not convolution and values.dim() == 4 and values.shape[:2] == (1, 1):
            values = values[0, 0]  # as all blobs had four dimensions before 2015
        found[f"{name}.{part}"] = values


def _values(blob: Any, where: str) -> Tensor:
    """The numbers of a blob in its shape. Raises UserError where they are more or fewer than the shape wants."""
    if blob.HasField("shape"):
        shape = tuple(blob.shape.dim)
    else:
        shape = (blob.num, blob.channels, blob.height, blob.width)
    chunks, kind = (blob.data, torch.float32) if blob.data else (blob.double_data, torch.float64)
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    wanted = math.prod(shape) if all(n > 0 for n in shape) and 0 < len(shape) <= MOST_DIMENSIONS else 0
    if not wanted or len(data) != wanted * kind.itemsize:
        raise UserError(f"{where}: its shape {shape} does not fit the {len(data)} bytes of {kind} that are there.")
    with warnings.catch_warnings():  # that the memory cannot be written to: it is only ever read
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(data, dtype=kind).float().view(shape)
