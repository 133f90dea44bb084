"""Files of Caffe's, written here by hand: reading them, and the whole network against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import caffemodel
import numpy as np
import pytest
import torch
from caffe_onnx import as_caffe, onnx_network

from fastrcnn.build import models
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.weights import caffe
from fastrcnn.weights.pretrained import detector_settings, load_detector, load_pretrained, read_state_dict


@pytest.mark.parametrize("old", [True, False])
def test_every_number_arrives_in_its_shape(tmp_path: Path, old: bool) -> None:
    wanted = caffemodel.vgg16(1 / 64, classes=2)  # one filter in conv1_1: its shape is (1, 3, 3, 3), and (1, 1, 3, 3)
    found = caffe.read(caffemodel.write(tmp_path / "w.caffemodel", wanted, old))
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name].shape == values.shape, name
        assert np.array_equal(found[name].numpy(), values), name


def test_numbers_of_double_precision_are_read(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3)
    (tmp_path / "w.caffemodel").write_bytes(caffemodel.new_layer("fc", False, [values], double=True))
    found = caffe.read(tmp_path / "w.caffemodel")["fc.weight"]
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_file_cut_anywhere_is_refused_or_lacks_layers(tmp_path: Path) -> None:
    weights = {"conv1_1.weight": np.ones((1, 1, 3, 3)), "conv1_1.bias": np.ones(1), "fc6.weight": np.ones((1, 2))}
    path = caffemodel.write(tmp_path / "w.caffemodel", weights)
    whole = path.read_bytes()
    read, refused = [], []
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            read.append(set(caffe.read(path)))
        except UserError as error:
            refused.append(str(error))
    assert all(names <= set(weights) for names in read)
    assert all(message.startswith(f"{path}: ") for message in refused)
    assert len(refused) > 10 * len(read) > 0, "only a cut between two layers goes unnoticed here"


SHAPE = caffemodel.field(7, caffemodel.field(1, caffemodel.varint(2**40) * 4))
NEGATIVE = caffemodel.field(7, caffemodel.field(1, caffemodel.varint(2**64 - 1) * 2))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "contains no layer with weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "truncated or not a .caffemodel"),
        (b"<html>404</html>", "truncated or not a .caffemodel"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a .caffemodel"),
        (caffemodel.field(1, b"a name alone"), "contains no layer with weights"),
        (b"\x0b" * 100000, "truncated or not a .caffemodel"),  # groups in groups
        (caffemodel.new_layer("fc6", False, [np.ones(2)]) * 2, "two layers have the name 'fc6'"),
        (b"\x12\x00" * 200000, "more than 100000 layers"),
        (b"\xff" * 100, "truncated or not a .caffemodel"),
        (caffemodel.varint(100 << 3 | 2) + caffemodel.varint(2**62), "truncated or not a .caffemodel"),
    ],
    ids=["empty", "pointer", "page", "hdf5", "name", "deep", "twice", "many", "number", "length"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        caffe.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "blob",
    [
        SHAPE + caffemodel.field(5, bytes(8)),
        NEGATIVE + caffemodel.field(5, bytes(4)),
        SHAPE,
        b"",
        caffemodel.field(7, caffemodel.field(1, caffemodel.varint(3))) + caffemodel.field(5, bytes(10)),
        caffemodel.field(5, bytes(8)),
    ],
    ids=["huge", "negative", "no data", "empty", "part of a number", "no shape"],
)
def test_a_shape_that_does_not_fit_its_numbers_is_refused(tmp_path: Path, blob: bytes) -> None:
    path = tmp_path / "x.caffemodel"
    layer = caffemodel.field(1, b"conv1_1") + caffemodel.field(2, b"Convolution") + caffemodel.field(7, blob)
    path.write_bytes(caffemodel.field(100, layer))
    with pytest.raises(UserError, match=r"x\.caffemodel: (layer 'conv1_1', weight: the shape|not a)"):
        caffe.read(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.caffemodel: file not found"):
        caffe.read(tmp_path / "none.caffemodel")


def compressed(weights: dict[str, np.ndarray], name: str, rank: int) -> dict[str, np.ndarray]:
    """With the layer `name` as the author's compress_net.py leaves it."""
    u, s, v = np.linalg.svd(weights[f"{name}.weight"], full_matrices=False)
    result = {k: w for k, w in weights.items() if k.rpartition(".")[0] != name}
    result[f"{name}_L.weight"] = s[:rank, None] * v[:rank]
    result[f"{name}_U.weight"] = np.ascontiguousarray(u[:, :rank])
    result[f"{name}_U.bias"] = weights[f"{name}.bias"]
    return result


@pytest.mark.parametrize(
    ("kind", "old", "svd"),
    [
        ("vgg16", True, False),
        ("vgg16", False, False),
        ("vgg16", False, True),
        ("vgg_cnn_m_1024", False, False),
        ("vgg_cnn_m_1024", False, True),
        ("caffenet", True, False),
        ("caffenet", False, True),
    ],
)
def test_a_released_detector_gives_what_onnx_runtime_gives(tmp_path: Path, kind: str, old: bool, svd: bool) -> None:
    weights = caffemodel.network(kind, 0.125, classes=3, seed=4)
    if svd:
        weights = compressed(compressed(weights, "fc6", 20), "fc7", 9)
    path = caffemodel.write(tmp_path / "w.caffemodel", weights, old)
    settings, classes = detector_settings(read_state_dict(path), "w")
    assert (settings.network, settings.width, classes) == (kind, 0.125, 3)
    assert (settings.fc6_rank, settings.fc7_rank) == ((20, 9) if svd else (None, None))
    model = models.caffe_detector(path, ["a", "b", "c"])[1].eval()
    assert model.delta_mean.eq(0).all()
    assert model.delta_std.eq(1).all()

    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (1, 3, 75, 110), dtype=np.uint8)
    boxes = np.array([[0, 3, 4, 90, 70], [0, 20, 10, 52, 44], [0, 0, 0, 110, 75]], np.float32)  # half-open
    feature_map, logits, deltas = onnx_network(weights, kind).run(None, as_caffe(rgb, boxes))
    with torch.no_grad():
        found_map = model.features(torch.from_numpy(rgb))[0]
        found_logits, found_deltas = model(torch.from_numpy(rgb), torch.from_numpy(boxes))
    cells = {"vgg16": (64, 5, 7), "vgg_cnn_m_1024": (64, 4, 6), "caffenet": (32, 6, 8)}
    assert found_map.shape[1:] == feature_map.shape[1:] == cells[kind]
    np.testing.assert_allclose(found_map.numpy(), feature_map, rtol=1e-3, atol=1e-4 * feature_map.max())
    np.testing.assert_allclose(found_logits.numpy(), logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())
    decoded = found_deltas * model.delta_std + model.delta_mean
    np.testing.assert_allclose(decoded.flatten(1).numpy(), deltas, rtol=1e-3, atol=1e-4 * np.abs(deltas).max())
    assert np.abs(logits - logits[:1]).max() > 100 * 1e-4 * np.abs(logits).max(), "the RoIs differ"


def test_vgg16_of_caffe_gives_the_features_onnx_runtime_gives(tmp_path: Path) -> None:
    weights = caffemodel.vgg16(0.125)
    model = FastRCNN(2, 0.125)
    load_pretrained(model, read_state_dict(caffemodel.write(tmp_path / "w.caffemodel", weights, old=True)), "w")
    rgb = np.random.default_rng(1).integers(0, 256, (1, 3, 33, 50), dtype=np.uint8)
    outputs = caffemodel.vgg16(0.125, classes=1)
    session = onnx_network({**weights, **{k: v for k, v in outputs.items() if k not in weights}})
    (wanted,) = session.run(["map"], as_caffe(rgb, np.array([[0, 0, 0, 9, 9]], np.float32)))
    with torch.no_grad():
        (found,) = model.features(torch.from_numpy(rgb))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-4 * wanted.max())


def test_what_is_no_detector_of_vgg16_says_what_it_lacks() -> None:
    state = {k: torch.from_numpy(v) for k, v in caffemodel.vgg16(1 / 64).items()}
    with pytest.raises(UserError, match=r"here: not a detector\. Missing layers: cls_score, bbox_pred\. .*: conv1_1, "):
        detector_settings(state, "here")
    with pytest.raises(UserError, match="Missing layers: bbox_pred"):
        detector_settings({"conv1.weight": torch.zeros(96, 3, 7, 7), "cls_score.weight": torch.zeros(21, 4)}, "here")
    wide = {f"{n}.weight": torch.zeros(65, 3, 3, 3) for n in ("conv1_1", "cls_score", "bbox_pred")}
    with pytest.raises(UserError, match="conv1_1 has 65 filters, but a vgg16 detector can have at most 64"):
        detector_settings(wide, "here")


def test_layers_of_another_detector_are_named() -> None:
    """A region proposal network, and one layer of another size; nothing is loaded."""
    state = {k: torch.from_numpy(v) for k, v in caffemodel.vgg16(1 / 64, classes=2).items()}
    model = FastRCNN(2, 1 / 64)
    load_detector(model, state, "here")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v + 1 for k, v in state.items()}
    state["rpn_conv/3x3.weight"] = torch.zeros(8, 8, 3, 3)
    state["bbox_pred.weight"] = torch.zeros(8, 64)
    del state["fc7.bias"]
    with pytest.raises(UserError) as caught:
        load_detector(model, state, "here")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("here: the weights do not fit the model")
    assert lines[1:] == [
        "  head.fc7.bias: missing, expected shape (64,)",
        "  bbox_pred.weight: shape (8, 64), expected (12, 64)",
        "  rpn_conv/3x3.weight: not in the model",
    ]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
