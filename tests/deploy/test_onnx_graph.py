"""Networks as ONNX graphs: ONNX Runtime against torch, on every kind of network and on real pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from slim_detectors import CLASSES, KINDS, boxes, described, picture, slim

from fastrcnn.data.images import read_image
from fastrcnn.data.transforms import resize, scale_for
from fastrcnn.deploy.onnx_graph import write_onnx
from fastrcnn.deploy.program import WholeNetwork
from fastrcnn.errors import UserError
from fastrcnn.inference.onnx_network import OnnxNetwork
from fastrcnn.model.fast_rcnn import FastRCNN

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def written(model: FastRCNN, path: Path, regression: bool = True, **keys: object) -> OnnxNetwork:
    write_onnx(model, described(model, **keys), regression, path)
    return OnnxNetwork(path, threads=1)


def by_torch(model: FastRCNN, image: np.ndarray, rois: torch.Tensor, scale: float, size: tuple[int, int]) -> tuple:
    with torch.no_grad():
        return WholeNetwork(model)(
            torch.from_numpy(image), rois, torch.tensor(scale, dtype=torch.float64), torch.tensor(size)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_gives_what_torch_does(kind: str, tmp_path: Path) -> None:
    model = slim(**KINDS[kind])
    network = written(model, tmp_path / "a.onnx", **KINDS[kind])
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
    assert network.classifier == model.classifier
    shapes = [(70, 90, 40), (61, 123, 1), (128, 97, 40), *([(10, 60, 9)] if kind == "M" else [])]
    for height, width, number in shapes:  # the last one is padded, to a single cell
        size = (height * 3 // 2, width * 3 // 2)
        rois = boxes(number, *size)
        scores, found = network(torch.from_numpy(picture(height, width)), rois, 2 / 3, size)
        expected_scores, expected = by_torch(model, picture(height, width), rois, 2 / 3, size)
        assert scores.shape == (number, 4)
        assert found.shape == (number, 4, 4)
        torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
        if number > 1:
            assert scores[:, 1].std() > 1e-3
            assert (found - rois[:, None]).abs().max() > 1, "the boxes have moved"


def test_ten_real_pictures_agree_to_a_ten_thousandth(test_data: Path, tmp_path: Path) -> None:
    """At the paper's size. Pixels of boxes are compared in units of a hundred, as they are near a thousand."""
    paths = sorted((test_data / "VOCdevkit/VOC2007/JPEGImages").glob("*.jpg"))[:5]
    paths += sorted((test_data / "BCCD/JPEGImages").glob("*.jp*g"))[:5]
    assert len(paths) == 10
    model = slim(0.03)
    network = written(model, tmp_path / "a.onnx", width=0.03)
    for path in paths:
        image = read_image(path)
        height, width = image.shape[:2]
        scale = scale_for(width, height, 600, 1000)
        rois = boxes(200, height, width)
        scores, found = network(torch.from_numpy(resize(image, scale)), rois, scale, (height, width))
        expected_scores, expected = by_torch(model, resize(image, scale), rois, scale, (height, width))
        torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-4)
        assert expected_scores[:, 1].std() > 1e-3


def test_boxes_grow_no_more_than_in_training(tmp_path: Path) -> None:
    """Logarithms far beyond what `boxes.decode` takes; a box of a pixel then has 62.5, far from the border."""
    model = slim()
    with torch.no_grad():
        model.bbox_pred.weight.zero_()
        model.bbox_pred.bias.fill_(0.0)
        model.delta_std.fill_(1.0)
        model.delta_mean.copy_(torch.tensor([0.0, 0, 9, 50]).expand(4, -1))
    _, found = written(model, tmp_path / "a.onnx")(
        torch.from_numpy(picture(70, 90)), torch.tensor([[400.0, 300, 401, 301]]), 0.1, (700, 900)
    )
    torch.testing.assert_close(found[0, 0], torch.tensor([369.25, 269.25, 431.75, 331.75]), rtol=0, atol=1e-3)


def test_without_box_regression_the_boxes_are_the_proposals(tmp_path: Path) -> None:
    network = written(slim(), tmp_path / "a.onnx", regression=False)
    rois = boxes(20, 70, 90)
    _, found = network(torch.from_numpy(picture(70, 90)), rois, 1.0, (70, 90))
    torch.testing.assert_close(found, rois[:, None].expand(-1, 4, -1), rtol=0, atol=1e-4)


def test_the_file_says_what_it_is_and_nothing_of_the_machine_it_comes_from(tmp_path: Path) -> None:
    network = written(slim(), tmp_path / "a.onnx")
    of = network.description
    assert (of.classes, of.step, of.metrics["test"]["mAP"]) == (CLASSES, 7, 0.5)
    assert of.pixels["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert of.config["data"]["test_short_sides"] == [96]
    assert b"somewhere" not in (tmp_path / "a.onnx").read_bytes()


@pytest.mark.parametrize("op", ["partition", "truncate", "roi_warp"])
def test_what_onnx_cannot_express_is_refused(op: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"cannot be written as ONNX:\n  model.roi_op={op}: .* only supports fast_rcnn and"
    ):
        written(slim(roi_op=op), tmp_path / "a.onnx", roi_op=op)
    assert not list(tmp_path.iterdir())
