"""The author's test networks for ONNX Runtime, written from his prototxts."""

from __future__ import annotations

import caffemodel
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

MEAN_BGR = (102.9801, 115.9465, 122.7717)


def as_caffe(rgb: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of the author's network: `data`, BGR less the mean, of uint8 RGB (1, 3, H, W), and `rois`, inclusive, of
    half-open boxes (K, 5)."""
    data = rgb[:, ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32).reshape(1, 3, 1, 1)
    return {"data": data, "rois": boxes - np.array([0, 0, 0, 1, 1], np.float32)}


def onnx_network(weights: dict[str, np.ndarray], kind: str = "vgg16") -> onnxruntime.InferenceSession:
    """The author's test network for ONNX Runtime, made of Caffe's weights as they are: BGR without mean and inclusive
    RoIs in, class logits and deltas out."""
    nodes, x = [], "data"

    def add(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    for i, (name, *numbers) in enumerate(caffemodel.LAYERS[kind]):
        if name == "pool":
            kernel, stride, pad = numbers
            window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
            x = add("MaxPool", [x], f"max{i}", ceil_mode=1, **window)
        elif name == "lrn":
            x = add("LRN", [x], f"norm{i}", alpha=numbers[0], beta=0.75, bias=numbers[1], size=5)
        else:
            _, kernel, stride, pad, groups = numbers
            window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
            x = add("Conv", [x, f"{name}.weight", f"{name}.bias"], name, group=groups, **window)
            x = add("Relu", [x], f"relu_{name}")
    add("Identity", [x], "map")
    x = add("MaxRoiPool", [x, "rois"], "roi_pool5", pooled_shape=[caffemodel.CELLS[kind]] * 2, spatial_scale=1 / 16)
    x = add("Flatten", [x], "flat")
    for name in ("fc6", "fc7"):
        if f"{name}_L.weight" in weights:
            x = add("Gemm", [x, f"{name}_L.weight"], f"{name}_L", transB=1)
            x = add("Gemm", [x, f"{name}_U.weight", f"{name}_U.bias"], name, transB=1)
        else:
            x = add("Gemm", [x, f"{name}.weight", f"{name}.bias"], name, transB=1)
        x = add("Relu", [x], f"relu_{name}")
    for name in ("cls_score", "bbox_pred"):
        add("Gemm", [x, f"{name}.weight", f"{name}.bias"], name, transB=1)
    shapes = {"data": [1, 3, "h", "w"], "rois": ["k", 5]}, {"map": None, "cls_score": None, "bbox_pred": None}
    inputs, outputs = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in part.items()] for part in shapes
    )
    constants = [onnx.numpy_helper.from_array(v, n) for n, v in weights.items()]
    graph = helper.make_graph(nodes, "fast_rcnn", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
