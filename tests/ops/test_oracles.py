"""`fast_rcnn` against the two independent implementations that exist."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from roi_cases import random_case

from fastrcnn.ops import roi_pool


def test_equals_torchvision(backend: str) -> None:
    """Values and gradients of 200 random cases, finite features, float32."""
    for seed in range(200):
        case = random_case(seed, ("fast_rcnn",), finite=True)
        ours, theirs = (case.features.float().clone().requires_grad_() for _ in range(2))
        got = roi_pool(ours, case.rois, case.size, case.scale)
        want = torchvision.ops.roi_pool(theirs, case.rois, case.size, case.scale)
        assert torch.equal(got, want), f"seed {seed}"
        grad = torch.randint(-8, 9, want.shape).float()  # exact in any order
        got.backward(grad)
        want.backward(grad)
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad), f"seed {seed}"


def test_equals_torchvision_on_a_vgg16_map(backend: str) -> None:
    """A full-size map, RoIs of every size: full image, single cells, 57 cells, at half cells."""
    g = torch.Generator().manual_seed(3)
    features = torch.relu(torch.randn(2, 70, 38, 63, generator=g)).contiguous(memory_format=torch.channels_last)
    corners = torch.rand(400, 4, generator=g) * torch.tensor([1000, 600, 1000, 600])
    corners = torch.cat(
        [torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])], 1
    )
    corners[:100] = (corners[:100] / 8).round() * 8  # half cells
    corners[100:150, 2:] = corners[100:150, :2]
    corners[150:200, 2] = corners[150:200, 0] + 56 * 16
    corners[200] = torch.tensor([0, 0, 999, 599.0])
    rois = torch.cat([torch.randint(2, (400, 1), generator=g).float(), corners], 1)
    assert torch.equal(roi_pool(features, rois, 7, 1 / 16), torchvision.ops.roi_pool(features, rois, 7, 1 / 16))


def test_equals_onnx_max_roi_pool_inside_the_map(backend: str) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    make, tensor_type = onnx.helper, onnx.TensorProto.FLOAT
    node = make.make_node("MaxRoiPool", ["x", "rois"], ["y"], pooled_shape=[7, 5], spatial_scale=0.0625)
    graph = make.make_graph(
        [node],
        "roi_pool",
        [
            make.make_tensor_value_info("x", tensor_type, [1, 4, 38, 63]),
            make.make_tensor_value_info("rois", tensor_type, ["k", 5]),
        ],
        [make.make_tensor_value_info("y", tensor_type, ["k", 4, 7, 5])],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=9)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1, 4, 38, 63)).astype(np.float32)
    corners = rng.uniform(0, 1, (1000, 2, 2)) * [62 * 16, 37 * 16]
    low, high = corners.min(axis=1), corners.max(axis=1)
    rois = np.concatenate([np.zeros((1000, 1)), low, high], axis=1).round(rng.integers(0, 3)).astype(np.float32)
    (want,) = session.run(None, {"x": features, "rois": rois})
    got = roi_pool(torch.from_numpy(features), torch.from_numpy(rois), (7, 5), 0.0625)
    assert torch.equal(got, torch.from_numpy(want))
