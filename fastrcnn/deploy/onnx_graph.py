"""Build the ONNX graph of a network node by node from its layer table (model/networks.py).

Because torch's exporter is not used, the graph does not depend on the version of torch, and no tracing is needed. The
graph can also use ONNX's MaxRoiPool, which rounds like `ops.roi_pool` (see ops/README.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastrcnn import __version__, boxes
from fastrcnn.errors import UserError
from fastrcnn.files import write_derived
from fastrcnn.inference.description import Description
from fastrcnn.inference.onnx_network import PACKAGES
from fastrcnn.model.fast_rcnn import INCLUSIVE, FastRCNN, fold_map_scale
from fastrcnn.model.networks import Conv, Pool
from fastrcnn.weights.export import refuse

OPSET, IR = 17, 8  # versions from 2022, which ONNX Runtime 1.12 and later support
POOLED = ("fast_rcnn", "roi_align")  # RoI operators that this module can write
LARGEST = 2**31 - 2**20  # bytes of weights; a single ONNX file is limited to 2 GB


def write_onnx(
    model: FastRCNN, description: Description, box_regression: bool, output: Path, source: str | None = None
) -> None:
    """Write the network as ONNX, with `description` as metadata.

    deploy/__init__.py documents the inputs and outputs of the graph. box_regression: see Network.outputs. source: see
    write_derived. Raises UserError if the RoI operator is not in POOLED, if the file would exceed 2 GB, or if it cannot
    be written.
    """
    try:
        import onnx
    except ImportError:
        raise UserError(f"{output}: writing an .onnx file {PACKAGES}") from None
    problems = []
    if model.roi_op not in POOLED:
        problems.append(f"model.roi_op={model.roi_op}: the export only supports {' and '.join(POOLED)}")
    if (size := sum(p.numel() * 4 for p in model.state_dict().values())) > LARGEST:
        problems.append(f"the weights take {size:,} bytes, but an ONNX file is limited to 2 GB")
    refuse("ONNX", problems)
    graph = _Graph()
    _nodes(graph, fold_map_scale(model), box_regression)
    t = onnx.TensorProto
    shapes: dict[str, tuple[int, list[int | str]]] = {
        "image": (t.UINT8, ["height", "width", 3]),
        "proposals": (t.FLOAT, ["proposals", 4]),
        "scale": (t.DOUBLE, []),
        "size": (t.INT64, [2]),
        "scores": (t.FLOAT, ["proposals", model.num_classes + 1]),
        "boxes": (t.FLOAT, ["proposals", model.num_classes + 1, 4]),
    }
    values = [onnx.helper.make_tensor_value_info(name, *of) for name, of in shapes.items()]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "fast_rcnn", values[:4], values[4:], graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="fastrcnn",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(made, description.metadata())
    with write_derived(output, source) as path:
        path.write_bytes(made.SerializeToString())


class _Graph:
    """The nodes and constants of a graph, in insertion order. Values are referenced by name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str | np.ndarray | Tensor, output: str | None = None, **attributes: Any) -> str:
        """Add an operator and return the name of its output. Inputs are names of values, or arrays for constants."""
        from onnx import helper

        name = output or f"{kind}_{len(self.nodes)}"
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        self.nodes.append(helper.make_node(kind, names, [name], **attributes))
        return name

    def constant(self, value: np.ndarray | Tensor) -> str:
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def layer(self, kind: str, x: str, module: nn.Module, **attributes: Any) -> str:
        """Add a convolution or a fully connected layer and return the name of its output. Its bias can be missing."""
        weights = [p for p in (module.weight, module.bias) if isinstance(p, Tensor)]
        return self.add(kind, x, *weights, **attributes)


def _nodes(g: _Graph, model: FastRCNN, box_regression: bool) -> None:
    maps = _trunk(g, model, _pixels(g, model))
    rois = _rois(g, model.roi_op)
    pooled = [_pooled(g, model, m, rois, 1 / stride) for m, stride in zip(maps, model.strides, strict=True)]
    x = g.add("Concat", *pooled, axis=1) if len(pooled) > 1 else pooled[0]
    if isinstance(model.reduce, nn.Conv2d):
        x = g.layer("Conv", x, model.reduce)
    x = g.add("Flatten", x)
    for layer in (model.head.fc6, model.head.fc7):
        for part in layer if isinstance(layer, nn.Sequential) else [layer]:  # a compressed layer has two parts
            x = g.layer("Gemm", x, part, transB=1)
        x = g.add("Relu", x)
    logits = g.layer("Gemm", x, model.cls_score, transB=1)
    if model.classifier == "svm":
        g.add("Identity", logits, output="scores")
    else:
        g.add("Softmax", logits, axis=1, output="scores")
    deltas = g.layer("Gemm", x, model.bbox_pred, transB=1)
    per_class = model.bbox_pred.out_features // 4  # 1 if class-agnostic; delta_std below broadcasts it to all classes
    deltas = g.add("Reshape", deltas, np.array([0, per_class, 4]))
    used = 1.0 if box_regression else 0.0
    deltas = g.add("Add", g.add("Mul", deltas, model.delta_std * used), model.delta_mean * used)
    _boxes(g, deltas)


def _pixels(g: _Graph, model: FastRCNN) -> str:
    """Add FastRCNN.normalise for one image (H, W, 3), and the padding of Trunk.forward."""
    x = g.add("Cast", g.add("Transpose", "image", perm=[2, 0, 1]), to=_type(np.float32))
    x = g.add("Div", g.add("Sub", x, model.pixel_mean), model.pixel_std)
    x = g.add("Unsqueeze", x, np.array([0]))
    least = model.trunk.network.least_side
    if least > 1:
        sides = g.add("Slice", g.add("Shape", x), np.array([2]), np.array([4]))
        lacking = g.add("Max", g.add("Sub", np.array([least, least]), sides), np.array([0, 0]))
        x = g.add("Pad", x, g.add("Concat", np.zeros(6, np.int64), lacking, axis=0))
    return x


def _trunk(g: _Graph, model: FastRCNN, x: str) -> list[str]:
    def window(step: Conv | Pool) -> dict[str, Any]:
        return {"strides": [step.stride] * 2, "pads": [step.padding] * 4}

    maps = {}
    for conv in model.trunk.network.convs:
        for step in conv.before:
            if isinstance(step, Pool):
                x = g.add("MaxPool", x, kernel_shape=[step.kernel] * 2, ceil_mode=1, **window(step))
            elif not model.trunk.norms:
                x = g.add("LRN", x, alpha=step.alpha, beta=0.75, bias=step.k, size=5)
        x = g.layer("Conv", x, model.trunk.convs[conv.name], group=conv.groups, **window(conv))
        if model.trunk.norms:
            norm: Any = model.trunk.norms[conv.name]
            statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            x = g.add("BatchNormalization", x, *statistics, epsilon=norm.eps)
        x = g.add("Relu", x)
        maps[conv.name] = x
    return [maps[name] for name in model.roi_features]


def _rois(g: _Graph, op: str) -> str:
    """Add `scaled_rois`. The RoIs (P, 4) are computed in float64 and rounded once to float32."""
    box = g.add("Cast", "proposals", to=_type(np.float64))
    if op in INCLUSIVE:
        box = g.add("Sub", box, np.array([0.0, 0, 1, 1]))
    return g.add("Cast", g.add("Mul", box, "scale"), to=_type(np.float32))


def _pooled(g: _Graph, model: FastRCNN, features: str, rois: str, scale: float) -> str:
    """Add `pool_rois` for RoIs (P, 4) of a single image."""
    indexed = g.add("Pad", rois, np.array([0, 1, 0, 0]))  # (P, 5), image index 0 in the first column
    if model.roi_op == "fast_rcnn":
        return g.add("MaxRoiPool", features, indexed, pooled_shape=[model.roi_size] * 2, spatial_scale=scale)
    image = g.add("Cast", g.add("Gather", indexed, np.array(0), axis=1), to=_type(np.int64))  # (P,)
    how: dict[str, Any] = {"coordinate_transformation_mode": "half_pixel", "sampling_ratio": 2, "spatial_scale": scale}
    return g.add("RoiAlign", features, rois, image, output_height=model.roi_size, output_width=model.roi_size, **how)


def _boxes(g: _Graph, deltas: str) -> None:
    """Add `boxes.decode` and `boxes.clip`. The output `boxes` is (P, classes + 1, 4)."""

    def columns(x: str, first: int, last: int) -> str:
        return g.add("Slice", x, np.array([first]), np.array([last]), np.array([-1]))

    proposals = g.add("Unsqueeze", "proposals", np.array([1]))  # (P, 1, 4)
    start, end = columns(proposals, 0, 2), columns(proposals, 2, 4)
    size = g.add("Sub", end, start)
    half = np.array(0.5, np.float32)
    centre = g.add("Add", start, g.add("Mul", half, size))
    centre = g.add("Add", centre, g.add("Mul", columns(deltas, 0, 2), size))
    ratio = g.add("Exp", g.add("Min", columns(deltas, 2, 4), np.array(boxes.MAX_LOG_RATIO, np.float32)))
    reach = g.add("Mul", g.add("Mul", half, size), ratio)
    moved = g.add("Concat", g.add("Sub", centre, reach), g.add("Add", centre, reach), axis=2)
    border = g.add("Cast", g.add("Gather", "size", np.array([1, 0, 1, 0])), to=_type(np.float32))
    g.add("Min", g.add("Max", moved, np.array(0, np.float32)), border, output="boxes")


def _type(dtype: type) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
