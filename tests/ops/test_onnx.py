"""A module that holds our operators, exported by torch's own ONNX exporter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrcnn.ops import RoIPool, roi_align, roi_warp

X = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
# Inside the map, on its border, off it, inverted, of one cell, at half cells.
ROIS = torch.tensor(
    [
        [0, 0, 0, 50, 40],
        [1, 300, 250, 700, 900],
        [0, 500, 500, 600, 600],
        [1, -200, -200, 100, 100],
        [0, 100, 100, 50, 50],
        [1, 24, 24, 24, 24],
        [0, 8, 40, 200, 264.0],
    ]
)


class Head(nn.Module):
    """Someone's network: a convolution, RoI pooling, a fully connected layer."""

    def __init__(self, pool: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1, dtype=dtype), pool
        self.fc = nn.Linear(4 * 6, 5, dtype=dtype)

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        return self.fc(self.pool(self.conv(x), rois).flatten(1))


def dynamic() -> tuple[dict[int, Any], ...]:
    dim = torch.export.Dim
    return {0: dim("n"), 2: dim("h"), 3: dim("w")}, {0: dim("k")}


def exported(model: nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[list[str], Any]:
    """The operators of the graph, and a function that runs it by ONNX Runtime."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(
        model.eval(), (X.to(dtype), ROIS), dynamo=True, verbose=False, dynamic_shapes=dynamic(), **options
    )
    proto = program.model_proto
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        (out,) = session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))
        return torch.from_numpy(out)

    return [node.op_type for node in proto.graph.node], run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_becomes_max_roi_pool(dtype: torch.dtype) -> None:
    model = Head(RoIPool((2, 3), 1 / 16), dtype)
    operators, run = exported(model, dtype)
    assert [name for name in operators if name != "Cast"] == ["Conv", "MaxRoiPool", "Reshape", "Gemm"]
    for x, rois in ((X, ROIS), (X[:1, :, :13, :17], ROIS[ROIS[:, 0] == 0])):  # of another size, another number
        x = x.to(dtype).contiguous()
        torch.testing.assert_close(
            run(x, rois), model(x, rois).detach(), atol=2e-6 if dtype == X.dtype else 2e-3, rtol=0
        )


def test_the_pooling_alone_is_exact() -> None:
    _, run = exported(RoIPool((2, 3), 1 / 16))
    assert torch.equal(run(X, ROIS), RoIPool((2, 3), 1 / 16)(X, ROIS))


@pytest.mark.parametrize("operator", [roi_align, roi_warp])
def test_becomes_roi_align(operator: Any) -> None:
    model = Head(lambda x, rois: operator(x, rois, (2, 3), 1 / 16, 2))
    operators, run = exported(model)
    assert "RoiAlign" in operators
    torch.testing.assert_close(run(X, ROIS), model(X, ROIS).detach(), atol=2e-6, rtol=0)


def test_the_captured_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxscript: what torch.onnx.export captures has the node, and the operator is itself elsewhere."""
    model = Head(RoIPool((2, 3), 1 / 16)).eval()

    def targets() -> list[str]:
        return [str(n.target) for n in torch.export.export(model, (X, ROIS), dynamic_shapes=dynamic()).graph.nodes]

    assert "fastrcnn.roi_pool.default" in targets()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    found = targets()
    assert "onnx_symbolic._symbolic.default" in found
    assert "fastrcnn.roi_pool.default" not in found
    model.pool = RoIPool((2, 3), 1 / 16, "partition")
    with pytest.warns(UserWarning, match="variant: ONNX supports only fast_rcnn, got 'partition'"):
        assert "onnx_symbolic._symbolic.default" not in targets()
