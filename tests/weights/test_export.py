"""Networks in other programs' formats: read back by parsers of the tests' own, and run by those programs."""

from __future__ import annotations

from pathlib import Path

import caffemodel
import numpy as np
import pytest
import torch
from caffe_onnx import as_caffe, onnx_network
from limits import full_disk
from torch import Tensor, nn
from torchvision.models import vgg16 as torchvision_vgg16

from fastrcnn.build import models
from fastrcnn.errors import UserError
from fastrcnn.inference.detect import detect_batch
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.head import decompose, factored_state
from fastrcnn.settings import DetectionSettings, ModelSettings
from fastrcnn.structures import Batch, Sample
from fastrcnn.weights import caffe, export
from fastrcnn.weights.pixels import CAFFE_MEAN
from fastrcnn.weights.pretrained import load_pretrained, read_state_dict

NAMES = ["cat", "dog", "owl"]
STD = np.array([58.0, 57.0, 56.0], np.float32)
ORDER = {
    "vgg16": "conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 conv4_3 conv5_1 conv5_2 conv5_3",
    "vgg_cnn_m_1024": "conv1 conv2 conv3 conv4 conv5",
    "caffenet": "conv1 conv2 conv3 conv4 conv5",
}


def trained(kind: str, folder: Path, classifier: str = "softmax") -> tuple[FastRCNN, dict[str, np.ndarray]]:
    """A detector such as a training leaves: pixels with a deviation, normalised deltas. And the weights under Caffe's
    names that are the same without both."""
    weights = caffemodel.network(kind, 0.125, classes=3, seed=5)
    path = folder / "made.caffemodel"
    model = models.caffe_detector(caffemodel.write(path, weights), NAMES)[1].eval()
    path.unlink()
    generator = torch.Generator().manual_seed(0)
    model.classifier = classifier
    with torch.no_grad():
        first = model.trunk.convs[model.trunk.network.convs[0].name]
        first.weight *= torch.from_numpy(STD).view(1, 3, 1, 1)
        model.pixel_std.copy_(torch.from_numpy(STD).view(3, 1, 1))
        model.delta_mean.copy_(torch.randn(4, 4, generator=generator) * 0.05)
        model.delta_std.copy_(torch.rand(4, 4, generator=generator) * 0.3 + 0.05)
    mean, std = model.delta_mean.flatten().numpy(), model.delta_std.flatten().numpy()
    weights["bbox_pred.weight"] = weights["bbox_pred.weight"] * std[:, None]
    weights["bbox_pred.bias"] = weights["bbox_pred.bias"] * std + mean
    return model, weights


def one_picture(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """RGB (1, 3, H, W) and boxes (K, 5)."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (1, 3, 75, 110), dtype=np.uint8)
    corner = rng.uniform(0, 30, (20, 2))
    boxes = np.concatenate((np.zeros((20, 1)), corner, corner + rng.uniform(10, 40, (20, 2))), axis=1)
    return rgb, boxes.astype(np.float32)


def detections(model: FastRCNN) -> list[Tensor]:
    rgb, boxes = one_picture()
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    batch = Batch(
        images=torch.from_numpy(rgb),
        sizes=torch.tensor([[75, 110]]),
        scales=torch.ones(1, dtype=torch.float64),
        proposals=[torch.from_numpy(boxes[:, 1:])],
        boxes=[torch.zeros(0, 4)],
        labels=[torch.zeros(0, dtype=torch.long)],
        samples=[Sample("a", Path("a.jpg"), 110, 75, *nothing)],
    )
    (found,) = detect_batch(TorchNetwork(model), [batch], DetectionSettings(score_threshold=None))
    assert len(found) > 10
    return [found.boxes, found.scores, found.labels]


def two_layers(model: FastRCNN, kind: str) -> FastRCNN:
    ranks: dict[str, int | None] = {"fc6": 20, "fc7": 9}
    state = model.state_dict()
    found = {name: decompose(state[f"head.{name}.weight"]) for name in ranks}
    config = {"network": kind, "width": 0.125, "fc6_rank": 20, "fc7_rank": 9}
    config |= {"roi_size": model.roi_size, "roi_features": list(model.roi_features)}
    config["finetune_from"] = "fc6"
    smaller = models.trained_model({"model": config}, 3)
    smaller.load_state_dict(factored_state(state, found, ranks))
    return smaller.eval()


@pytest.mark.parametrize("svd", [False, True])
@pytest.mark.parametrize("kind", list(ORDER))
def test_a_caffemodel_is_the_authors_layout_and_gives_the_same_boxes(tmp_path: Path, kind: str, svd: bool) -> None:
    model, weights = trained(kind, tmp_path)
    if svd:
        model = two_layers(model, kind)
    path = tmp_path / "new" / "out.caffemodel"
    export.write_caffemodel(model, path)
    layers = caffemodel.read(path)
    fc = ["fc6_L", "fc6_U", "fc7_L", "fc7_U"] if svd else ["fc6", "fc7"]
    assert list(layers) == [*ORDER[kind].split(), *fc, "cls_score", "bbox_pred"]
    for name, (layer_type, blobs) in layers.items():
        assert layer_type == ("Convolution" if name.startswith("conv") else "InnerProduct")
        assert len(blobs) == (1 if name.endswith("_L") else 2)
        for part, blob in zip(("weight", "bias"), blobs, strict=False):
            if f"{name}.{part}" in weights:
                np.testing.assert_allclose(blob, weights[f"{name}.{part}"], rtol=1e-6, atol=1e-7)
    parsed = {
        f"{n}.{p}": b for n, (_, blobs) in layers.items() for p, b in zip(("weight", "bias"), blobs, strict=False)
    }
    rgb, boxes = one_picture()
    feature_map, logits, deltas = onnx_network(parsed, kind).run(None, as_caffe(rgb, boxes))
    with torch.no_grad():
        found_logits, found_deltas = model(torch.from_numpy(rgb), torch.from_numpy(boxes))
        found_map = model.features(torch.from_numpy(rgb))[0]
    np.testing.assert_allclose(found_map.numpy(), feature_map, rtol=1e-3, atol=1e-4 * feature_map.max())
    np.testing.assert_allclose(found_logits.numpy(), logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())
    decoded = (found_deltas * model.delta_std + model.delta_mean).flatten(1).numpy()
    np.testing.assert_allclose(decoded, deltas, rtol=1e-3, atol=1e-4 * np.abs(deltas).max())

    _, back = models.caffe_detector(path, NAMES)
    for ours, again in zip(detections(model), detections(back), strict=True):
        torch.testing.assert_close(again, ours, rtol=1e-5, atol=1e-5 * float(ours.abs().max()))
    twice = tmp_path / "twice.caffemodel"
    export.write_caffemodel(back, twice)
    assert twice.read_bytes() == path.read_bytes(), "what is in Caffe's units stays to the last bit"
    assert [p.name for p in path.parent.iterdir()] == ["out.caffemodel"]


@pytest.mark.parametrize("svd", [False, True])
def test_a_head_of_another_size_and_factors_on_its_maps_are_in_fc6(
    tmp_path: Path, svd: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fastrcnn")
    config = ModelSettings(width=0.125, head=[24, 14], scale_maps=True, fc6_rank=7 if svd else None)
    torch.manual_seed(1)
    model = models.model(config, 3).eval()
    with torch.no_grad():
        assert model.map_scale is not None
        model.map_scale.fill_(0.05)
        model.cls_score.weight.normal_(std=0.5)
        model.pixel_mean.copy_(torch.tensor(CAFFE_MEAN).view(3, 1, 1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export.write_caffemodel(model, tmp_path / "out.caffemodel")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    name = "fc6_L" if svd else "fc6"
    written = caffemodel.read(tmp_path / "out.caffemodel")[name][1][0]
    np.testing.assert_allclose(written, 0.05 * before[f"head.{name.replace('_', '.')}.weight"].numpy(), rtol=1e-6)
    assert f"{'fc6_L 7, fc6_U 24' if svd else 'fc6 24'}, fc7 14" in caplog.text
    settings, back = models.caffe_detector(tmp_path / "out.caffemodel", NAMES)
    assert (settings.head, back.map_scale) == ([24, 14], None)
    for ours, again in zip(detections(model), detections(back.eval()), strict=True):
        torch.testing.assert_close(again, ours, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))
    if not svd:
        full = FastRCNN(1, head=[3, 4])
        with pytest.raises(UserError, match=r"model\.head=\[3, 4\]: torchvision's fc6 and fc7 have 4096 features"):
            export.write_torchvision(full, tmp_path / "x.pth")


def test_margins_of_svms_are_cls_score_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fastrcnn")
    model, weights = trained("vgg16", tmp_path, "svm")
    export.write_caffemodel(model, tmp_path / "out.caffemodel")
    written = caffemodel.read(tmp_path / "out.caffemodel")["cls_score"][1]
    assert np.array_equal(written[0], weights["cls_score.weight"])
    assert np.array_equal(written[1], weights["cls_score.bias"])
    assert "TEST.SVM" in caplog.text
    assert "num_output in the prototxt: cls_score 4, bbox_pred 16" in caplog.text


def test_another_mean_goes_into_the_bias_and_shows_at_the_border_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first convolution by hand, on ours and on the author's pixels."""
    model, _ = trained("vgg16", tmp_path)
    model.pixel_mean.copy_(torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1))
    path = tmp_path / "out.caffemodel"
    export.write_caffemodel(model, path)
    assert "by up to 0.90 on a scale of 0 to 255" in caplog.text
    rgb, boxes = one_picture()
    state = {k: v.double() for k, v in model.state_dict().items()}
    ours = nn.functional.conv2d(
        (torch.from_numpy(rgb).double() - state["pixel_mean"]) / state["pixel_std"],
        state["trunk.convs.conv1_1.weight"],
        state["trunk.convs.conv1_1.bias"],
        padding=1,
    )
    weight, bias = (torch.from_numpy(b.copy()).double() for b in caffemodel.read(path)["conv1_1"][1])
    data = torch.from_numpy(as_caffe(rgb, boxes)["data"]).double()
    error = (nn.functional.conv2d(data, weight, bias, padding=1) - ours).abs()
    most = float(weight.abs().sum(dim=(1, 2, 3)).max()) * 0.9033
    assert float(error[:, :, 1:-1, 1:-1].max()) < 1e-4
    assert 1e-3 < float(error.max()) < most

    model.pixel_mean.zero_()
    with pytest.raises(
        UserError, match=r"subtracts 0, 0, 0 from red, green and blue, but the format requires 122\.772, 115\.9"
    ):
        export.write_caffemodel(model, tmp_path / "other.caffemodel")
    assert not (tmp_path / "other.caffemodel").exists()


def test_all_that_the_authors_network_cannot_express_is_said(tmp_path: Path) -> None:
    config = ModelSettings(
        width=1 / 64,
        batch_norm=True,
        roi_op="roi_align",
        roi_features=["conv4_3", "conv5_3"],
        roi_size=6,
        class_agnostic=True,
    )
    model = models.model(config, 3)
    model.pixel_mean.fill_(100)
    with pytest.raises(UserError) as caught:
        export.write_caffemodel(model, tmp_path / "x.caffemodel")
    lines = str(caught.value).splitlines()
    assert [line.strip().partition("=")[0] for line in lines[1:-1]] == [
        *(f"model.{key}" for key in ("batch_norm", "roi_features", "roi_size", "roi_op", "class_agnostic")),
        lines[-2].strip(),
    ]
    assert "the network subtracts 100, 100, 100" in lines[-2]
    assert lines[-1] == "Use format=safetensors, which supports every network."
    slim = models.model(
        ModelSettings(width=1 / 64, network="caffenet", roi_features=["conv5"], roi_size=6, finetune_from="conv2"), 3
    )
    with pytest.raises(UserError, match=r"model\.network=caffenet: the format only supports vgg16"):
        export.write_torchvision(slim, tmp_path / "x.pth")
    ranks = models.model(ModelSettings(width=1 / 64, fc6_rank=5), 3)
    with pytest.raises(
        UserError,
        match=r"model\.width=0\.\d+: torchvision's VGG16 exists only with width 1\n  fc6 or fc7 is compressed",
    ):
        export.write_torchvision(ranks, tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


SHAPES = [
    ModelSettings(width=1 / 32, batch_norm=True, roi_features=["conv4_3", "conv5_3"], class_agnostic=True),
    ModelSettings(
        width=1 / 16, network="caffenet", roi_features=["conv5"], roi_size=6, finetune_from="conv2", fc6_rank=7
    ),
    ModelSettings(width=1 / 32, head=[9, 8], scale_maps=True, roi_features=["conv3_3", "conv5_3"]),
]


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: c.network)
def test_safetensors_hold_everything_and_begin_a_training(tmp_path: Path, config: ModelSettings) -> None:
    safetensors = pytest.importorskip("safetensors")
    torch.manual_seed(0)
    model = models.model(config, 3).eval()
    model.pixel_mean.fill_(99)
    model.pixel_std.fill_(50)
    for name, buffer in model.named_buffers():
        if "running_var" in name or name == "map_scale":
            buffer.uniform_(0.5, 1.5)
    path = tmp_path / "out.safetensors"
    export.write_safetensors(model, {"classes": "[]"}, path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata == {"classes": "[]"}
    assert found.keys() == model.state_dict().keys()
    assert all(np.array_equal(found[k], v.numpy()) for k, v in model.state_dict().items())

    config.weights = str(path)
    again = models.model(config, 7).eval()  # for other classes
    rgb, boxes = (torch.from_numpy(v) for v in one_picture())
    with torch.no_grad():
        for ours, theirs in zip(model.features(rgb), again.features(rgb), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.std() > 0
        assert torch.equal(model.roi_vectors(model.features(rgb), boxes), again.roi_vectors(again.features(rgb), boxes))
    assert again.delta_std.eq(1).all()
    config.weights = None


def test_safetensors_of_another_network_are_refused_by_name_and_shape(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "out.safetensors"
    export.write_safetensors(models.model(ModelSettings(width=1 / 64, fc7_rank=3), 3), {}, path)
    with pytest.raises(UserError) as caught:
        load_pretrained(models.model(ModelSettings(width=1 / 64), 3), read_state_dict(path), "here")
    said = str(caught.value)
    assert "`fastrcnn export`" in said
    assert "  head.fc7.weight: missing, expected shape (64, 64)\n" in said
    assert "  head.fc7.L.weight: not in the model\n" in said
    state = read_state_dict(path) | {"pixel_std": torch.ones(1)}
    with pytest.raises(UserError, match=r"pixel_std: shape \(1,\), expected \(3, 1, 1\)"):
        load_pretrained(models.model(ModelSettings(width=1 / 64, fc7_rank=3), 3), state, "here")
    model = models.model(ModelSettings(width=1 / 64, fc7_rank=3), 3)
    load_pretrained(model, read_state_dict(path), "here", pixels="caffe_rgb")
    assert model.pixel_std.eq(1).all(), "what model.pixels says goes before what the file says"


def test_half_precision_rounds_weights_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As numpy rounds them; what weights are is said by hand."""
    pytest.importorskip("safetensors")
    torch.manual_seed(0)
    settings = ModelSettings(width=1 / 32, batch_norm=True, roi_features=["conv4_3", "conv5_3"], fc6_rank=7)
    model = models.model(settings, 3)
    model.delta_std.fill_(0.1)
    export.write_safetensors(model, {}, tmp_path / "a.safetensors", dtype=torch.float16)
    export.write_safetensors(model, {}, tmp_path / "b.safetensors")
    found = read_state_dict(tmp_path / "a.safetensors")
    kept = ("trunk.norms.", "delta_", "pixel_")
    for name, values in model.state_dict().items():
        expected = values.numpy() if name.startswith(kept) else values.numpy().astype(np.float16)
        assert np.array_equal(found[name].numpy(), expected), name
        assert found[name].numpy().dtype == expected.dtype, name
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in "ab"]
    assert 0.5 < sizes[0] / sizes[1] < 0.6, "the rest are normalisations, statistics and the header"
    assert not caplog.text
    with torch.no_grad():
        model.head.fc7.weight.mul_(1e-5)
    export.state_in(model, torch.float16, "here")
    assert "head.fc7.weight: float16 changes these weights by" in caplog.text
    assert caplog.text.count("float16 changes") == 1


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model, path = models.model(ModelSettings(width=1 / 64), 3), tmp_path / "a.safetensors"
    with torch.no_grad():
        model.head.fc7.bias[0], model.cls_score.weight[1, 2] = 65504, -65520  # the largest number, and what overflows
        model.delta_std.fill_(1e6)
    with pytest.raises(UserError) as caught:
        export.write_safetensors(model, {}, path, dtype=torch.float16)
    assert str(caught.value).splitlines() == [
        f"{path}: these weights contain values larger than 65,504, the maximum of float16:",
        "  cls_score.weight: 65520",
        "Export with precision=float32.",
    ]
    assert not path.exists()


def test_torchvisions_vgg16_takes_the_file_and_gives_our_features(tmp_path: Path) -> None:
    """Up to its last pooling, for maps whose sides are even, which torchvision's poolings do not cut."""
    with torch.device("meta"):
        model, theirs = FastRCNN(3).eval(), torchvision_vgg16(init_weights=False).eval()
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            deviation = 0.01 if value.dim() == 1 else (2 / value[0].numel()) ** 0.5
            value.copy_(torch.rand(value.shape, generator=generator).sub_(0.5).mul_(12**0.5 * deviation))
            if name == "trunk.convs.conv1_1.weight":
                value /= 50
        model.pixel_mean.copy_(torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1))
        model.pixel_std.copy_(torch.tensor([1.0, 2, 3]).view(3, 1, 1))
    path = tmp_path / "vgg16.pth"
    with full_disk(100_000), pytest.raises(UserError, match=r"vgg16\.pth: cannot be written \(File too large\)"):
        export.write_torchvision(model, path)
    assert not list(tmp_path.iterdir())
    export.write_torchvision(model, path)
    keys = theirs.load_state_dict(torch.load(path, weights_only=True), strict=False, assign=True)
    path.unlink()  # half a gigabyte
    assert keys.missing_keys == ["classifier.6.weight", "classifier.6.bias"]
    assert keys.unexpected_keys == []
    rgb = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.no_grad():
        ours = model.features(rgb)[0]  # (1, 512, 7, 7)
        found = theirs.features[:30]((rgb / 255 - mean) / std)
        torch.testing.assert_close(found, ours, rtol=1e-3, atol=1e-4 * float(ours.max()))
        assert ours.std() > 0
        found = theirs.classifier[:6](ours.flatten(1))
        torch.testing.assert_close(found, model.head(ours), rtol=1e-4, atol=1e-4 * float(found.max()))


def test_nothing_is_replaced_and_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = trained("vgg16", tmp_path)
    path = tmp_path / "there.caffemodel"
    path.write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        export.write_caffemodel(model, path)
    assert path.read_text() == "mine"

    def full(*arguments: object) -> None:
        arguments[0].write(b"part")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caffe, "write", full)
    with pytest.raises(UserError, match=r"new\.caffemodel: cannot be written \(No space left on device\)"):
        export.write_caffemodel(model, tmp_path / "new.caffemodel")
    with pytest.raises(UserError, match="cannot be written"):
        export.write_caffemodel(model, path / "below a file.caffemodel")
    assert [p.name for p in tmp_path.iterdir()] == ["there.caffemodel"]
