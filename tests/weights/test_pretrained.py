"""Reading weights: translation, errors that say what to do, and files that would run something."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import caffemodel
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import densenet121, squeezenet1_0, vgg11, vgg16_bn

from fastrcnn.build import models
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.networks import VGG16
from fastrcnn.weights.pretrained import load_pretrained, read_state_dict, torchvision_vgg16

RGB_MEAN = [123.675, 116.28, 103.53]
CAFFE_RGB_MEAN = [122.7717, 115.9465, 102.9801]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def slim() -> FastRCNN:
    return FastRCNN(2, width=0.03, batch_norm=True, roi_size=2)


def in_torchvisions_names(model: FastRCNN) -> dict[str, Tensor]:
    """Numbers for the layers of a slim model under the names that torchvision's vgg16_bn uses: a convolution, its
    normalisation and ReLU take three places in `features`, a pooling one.
    """
    state, place = {}, 0
    for name in VGG16.conv_names:
        if name.endswith("_1") and name != "conv1_1":
            place += 1
        for module, at in ((model.trunk.convs[name], place), (model.trunk.norms[name], place + 1)):
            for key, value in module.state_dict().items():
                numbers = torch.randn(value.shape).to(value.dtype)
                state[f"features.{at}.{key}"] = numbers.abs() if key == "running_var" else numbers
        place += 3
    for layer, at in ((model.head.fc6, 0), (model.head.fc7, 3)):
        for key, value in layer.state_dict().items():
            state[f"classifier.{at}.{key}"] = torch.randn(value.shape)
    state["classifier.6.weight"], state["classifier.6.bias"] = torch.randn(1000, 123), torch.randn(1000)
    return state


def test_names_of_batch_normalised_vgg16_are_torchvisions() -> None:
    with torch.device("meta"):
        theirs = vgg16_bn(init_weights=False)
    assert set(in_torchvisions_names(slim())) == set(theirs.state_dict())


def test_batch_normalised_weights_arrive_in_their_layers() -> None:
    model = slim()
    state = in_torchvisions_names(model)
    untouched = model.cls_score.weight.clone()
    load_pretrained(model, state, "here")
    assert torch.equal(model.trunk.convs["conv1_1"].weight, state["features.0.weight"])
    assert torch.equal(model.trunk.norms["conv1_1"].running_var, state["features.1.running_var"])
    assert torch.equal(model.trunk.convs["conv2_1"].bias, state["features.7.bias"])
    assert torch.equal(model.trunk.convs["conv5_3"].weight, state["features.40.weight"])
    assert torch.equal(model.trunk.norms["conv5_3"].weight, state["features.41.weight"])
    assert torch.equal(model.head.fc6.weight, state["classifier.0.weight"])
    assert torch.equal(model.head.fc7.bias, state["classifier.3.bias"])
    assert torch.equal(model.cls_score.weight, untouched)


def test_files_without_the_count_of_batches_are_read() -> None:
    """As torch wrote them before version 0.4.1."""
    model = slim()
    state = {k: v for k, v in in_torchvisions_names(model).items() if not k.endswith("num_batches_tracked")}
    load_pretrained(model, state, "here")
    assert torch.equal(model.trunk.norms["conv5_3"].bias, state["features.41.bias"])


def test_a_wrong_shape_is_named_and_nothing_is_loaded() -> None:
    model = slim()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = in_torchvisions_names(model)
    state["features.7.weight"] = torch.zeros(9, 8, 3, 3)
    del state["classifier.3.bias"]
    with pytest.raises(UserError) as caught:
        load_pretrained(model, state, "some.pth")
    text = str(caught.value)
    assert text.startswith("some.pth: ")
    assert "trunk.convs.conv2_1.weight: shape (9, 8, 3, 3), expected (4, 2, 3, 3)" in text
    assert "head.fc7.bias: missing, expected shape (123,)" in text
    assert len(text.splitlines()) == 3, "the layers that fit are not listed"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_long_list_of_problems_is_cut() -> None:
    with pytest.raises(UserError, match=r"and \d+ more") as caught:
        load_pretrained(slim(), {}, "empty.pth")
    assert len(str(caught.value).splitlines()) == 14


def test_weights_without_batch_normalisation_do_not_fit_a_model_with_it() -> None:
    model = slim()
    plain = FastRCNN(2, width=0.03, roi_size=2)
    full = in_torchvisions_names(model)
    norms = {k.rpartition(".")[0] for k in full if k.endswith("running_mean")}
    state = {k: v for k, v in full.items() if k.rpartition(".")[0] not in norms}
    with pytest.raises(UserError, match=r"trunk\.norms\.conv1_1\.weight: missing"):
        load_pretrained(model, state, "x")
    with pytest.raises(UserError, match=r"trunk\.norms\.conv1_1\.weight: not in the model"):
        load_pretrained(plain, full, "x")


@pytest.mark.parametrize("network", [densenet121, squeezenet1_0, vgg11])
def test_weights_of_another_network_are_refused_with_the_reason(network: object) -> None:
    with torch.device("meta"):
        state = network().state_dict()  # type: ignore[operator]
    with pytest.raises(UserError, match=r"do not fit the model(.|\n)*missing"):
        load_pretrained(slim(), state, "other.pth")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_is_read_also_inside_a_checkpoint_of_another_program(tmp_path: Path, wrapped: bool) -> None:
    state = {"features.0.weight": torch.arange(3.0)}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == ["features.0.weight"]
    assert torch.equal(found["features.0.weight"], torch.arange(3.0))


def test_a_hostile_file_is_refused_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1), "x": Hostile(tmp_path / "made")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be read safely"):
        read_state_dict(tmp_path / "w.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read safely"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, {0: torch.zeros(1)}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="expected a state dict"):
        read_state_dict(tmp_path / "w.pth")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.pth: file not found"):
        read_state_dict(tmp_path / "nothing.pth")


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("invalid hash value")])
def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError) as caught:
        torchvision_vgg16()
    text = str(caught.value)
    assert str(error) in text
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in text
    assert str(tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth") in text
    assert "model.weights=/path/to/vgg16.pth" in text


def test_weights_put_into_place_by_hand_are_used_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))
    path = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    torch.save({"features.0.weight": torch.arange(4.0)}, path)
    assert torch.equal(torchvision_vgg16()["features.0.weight"], torch.arange(4.0))
    torch.save({"features.0.weight": Hostile(tmp_path / "made")}, path)
    with pytest.raises(UserError, match="cannot be read safely"):
        torchvision_vgg16()
    assert not (tmp_path / "made").exists()


def test_a_download_is_checked_against_the_hash_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, target: str, hash_prefix: str) -> None:
        assert (url, hash_prefix) == ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")
        torch.save({"features.0.weight": torch.ones(2)}, target)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert torch.equal(torchvision_vgg16()["features.0.weight"], torch.ones(2))


def in_caffes_names() -> dict[str, Tensor]:
    """VGG16 with eight filters in conv1_1."""
    return {k: torch.from_numpy(v) for k, v in caffemodel.vgg16(0.125, roi_size=1).items()}


def plain() -> FastRCNN:
    return FastRCNN(2, width=0.125, roi_size=1)


# As published: the first eight biases of conv1_1, and the middle of its first filter, channel by channel.
TORCHVISION = [0.4034, 0.3778, 0.4644, -0.3228, 0.3940, -0.3953, 0.3951, -0.5496], [0.3566, -0.0703, 0.0]
CAFFE = [0.73429835, 0.093403675, 0.06775674, 0.8862966, 0.25994542, 0.66426694, -0.015828926, 0.3249065]
CAFFE_BGR = CAFFE, [0.038680777, 0.2, -0.3]
CAFFE_RGB = CAFFE, [-0.3, 0.2, 0.038680777]
UNKNOWN = [0.1] * 8, [0.0, 0.0, 0.0]


def in_torchvisions_plain_names(
    published: tuple[list[float], list[float]], places: tuple[int, ...]
) -> dict[str, Tensor]:
    """A state dict as `vgg16_caffe.pth` and torchvision's own file have it."""
    state, at = {}, 0
    weights = in_caffes_names()
    for name in VGG16.conv_names:
        at += name.endswith("_1") and name != "conv1_1"
        for part in ("weight", "bias"):
            state[f"features.{at}.{part}"] = weights[f"{name}.{part}"]
        at += 2
    for name, place in zip(("fc6", "fc7", "fc8"), places, strict=True):
        for part in ("weight", "bias"):
            state[f"classifier.{place}.{part}"] = weights[f"{name}.{part}"]
    state["features.0.bias"] = torch.tensor(published[0])
    state["features.0.weight"][0, :, 1, 1] = torch.tensor(published[1])
    return state


@pytest.mark.parametrize(
    ("published", "asked", "mean", "std", "turned", "said"),
    [
        (TORCHVISION, "auto", RGB_MEAN, 57.12, False, "imagenet_rgb (recognised by the values of the first layer)"),
        (CAFFE_BGR, "auto", CAFFE_RGB_MEAN, 1, True, "caffe_bgr (recognised by the values of the first layer)"),
        (CAFFE_RGB, "auto", CAFFE_RGB_MEAN, 1, False, "caffe_rgb (recognised by the values of the first layer)"),
        (UNKNOWN, "auto", RGB_MEAN, 57.12, False, "if they were trained in Caffe, set model.pixels=caffe_bgr"),
        ((CAFFE, UNKNOWN[1]), "auto", RGB_MEAN, 57.12, False, "the weights are unknown"),
        (UNKNOWN, "caffe_bgr", CAFFE_RGB_MEAN, 1, True, "caffe_bgr (set by model.pixels)"),
        (CAFFE_BGR, "imagenet_rgb", RGB_MEAN, 57.12, False, "although the first layer was recognised as caffe_bgr"),
    ],
)
@pytest.mark.parametrize("places", [(0, 3, 6), (1, 4, 6)])
def test_the_weights_decide_what_pixels_they_get(
    caplog: pytest.LogCaptureFixture,
    published: tuple[list[float], list[float]],
    asked: str,
    mean: list[float],
    std: float,
    turned: bool,
    said: str,
    places: tuple[int, ...],
) -> None:
    caplog.set_level(logging.INFO, "fastrcnn")
    model = plain()
    model.pixel_mean.fill_(5)
    state = in_torchvisions_plain_names(published, places)
    load_pretrained(model, state, "x.pth", asked)
    assert model.pixel_mean.flatten().tolist() == pytest.approx(mean)
    assert model.pixel_std[1].item() == pytest.approx(std)
    channels = [2, 1, 0] if turned else [0, 1, 2]
    assert torch.equal(model.trunk.convs["conv1_1"].weight, state["features.0.weight"][:, channels])
    assert torch.equal(model.head.fc7.weight, state[f"classifier.{places[1]}.weight"])
    assert said in caplog.text


def test_layers_with_caffes_names_take_bgr_unless_their_numbers_say_otherwise() -> None:
    state = in_caffes_names()
    model = plain()
    load_pretrained(model, state, "here")
    assert torch.equal(model.trunk.convs["conv1_1"].weight[:, 0], state["conv1_1.weight"][:, 2])
    assert model.pixel_mean.flatten().tolist() == pytest.approx(CAFFE_RGB_MEAN)
    state["conv1_1.bias"], state["conv1_1.weight"][0, :, 1, 1] = torch.tensor(CAFFE), torch.tensor(CAFFE_RGB[1])
    load_pretrained(model, state, "here")
    assert torch.equal(model.trunk.convs["conv1_1"].weight, state["conv1_1.weight"])


def test_the_pixels_of_loaded_weights_stay_with_a_trained_model() -> None:
    model = plain()
    load_pretrained(model, in_caffes_names(), "here")
    again = plain()
    again.load_state_dict(model.state_dict())
    image = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(again.features(image)[0], model.features(image)[0])


def test_of_a_detector_the_outputs_are_left_out_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastrcnn")
    model = plain()
    untouched = model.cls_score.weight.clone()
    weights = caffemodel.vgg16(0.125, roi_size=1, classes=2)
    load_pretrained(model, {k: torch.from_numpy(v) for k, v in weights.items()}, "d.caffemodel")
    assert torch.equal(model.head.fc7.bias, torch.from_numpy(weights["fc7.bias"]))
    assert torch.equal(model.cls_score.weight, untouched)
    assert "fc6, fc7; initialised: cls_score, bbox_pred; not used: cls_score, bbox_pred" in caplog.text


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    """As the classifier's are in torchvision's VGG16_Weights.IMAGENET1K_FEATURES."""
    state = in_caffes_names()
    state["fc7.weight"][3, 5] = value
    with pytest.raises(UserError, match=r"^here(.|\n)*  head\.fc7\.weight: contains values that are not finite$"):
        load_pretrained(plain(), state, "here")


def test_safetensors_are_read(tmp_path: Path) -> None:
    torch_format = pytest.importorskip("safetensors.torch")
    state = {"features.0.weight": torch.arange(6.0).view(2, 3)}
    torch_format.save_file(state, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["features.0.weight"], state["features.0.weight"])
    whole = (tmp_path / "w.safetensors").read_bytes()
    for content in (b"", b"no", whole[:-1], b"\xff" * 8 + whole[8:]):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"w\.safetensors: the file is truncated or not a \.safetensors file"):
            read_state_dict(tmp_path / "w.safetensors")


def test_without_the_package_safetensors_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "w.safetensors").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"w\.safetensors: .* requires the package safetensors.*pip install 'fastrcnn\[safetensors\]'"
    ):
        read_state_dict(tmp_path / "w.safetensors")


FULL = caffemodel.network("caffenet", 1 / 16, classes=2)
FLAT = {"conv1.weight": np.zeros(6, np.float32)}
WRONG: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "nan": ({"fc7.weight": np.full_like(FULL["fc7.weight"], np.nan)}, "head.fc7.weight: .*not finite"),
    "too large for float32": ({"fc7.bias": np.full(256, 1e300)}, "head.fc7.bias: .*not finite"),
    "whole numbers": ({"fc7.bias": np.zeros(256, np.int32)}, "head.fc7.bias: dtype torch.int32"),
    "complex": ({"fc7.bias": np.zeros(256, np.complex64)}, "dtype torch.complex64|ComplexFloatStorage"),
    "flat": (FLAT, r"trunk.convs.conv1.weight: shape \(6,\), expected \(6, 3, 11, 11\)"),
    "wide": (
        {"conv1.weight": np.zeros((96, 3, 11, 11), np.float32)},
        r"conv1.weight: shape \(96, 3, 11, 11\), expected \(6",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", WRONG)
def test_files_of_weights_with_wrong_numbers_are_refused(tmp_path: Path, suffix: str, name: str) -> None:
    change, said = WRONG[name]
    state = {k: torch.from_numpy(v) for k, v in (FULL | change).items() if not k.startswith(("cls", "bbox"))}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    model = FastRCNN(2, width=1 / 16, roi_size=6, roi_features=["conv5"], network="caffenet")
    with pytest.raises(UserError, match=said):
        load_pretrained(model, read_state_dict(path), str(path))


@pytest.mark.parametrize("name", ["nan", "flat", "wide"])
def test_a_detector_with_wrong_numbers_is_refused_before_its_network_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`wide` says that it is of the paper's size, 230 MB; its other layers are slim."""
    path = caffemodel.write(tmp_path / "d.caffemodel", FULL | WRONG[name][0])
    if name != "nan":
        monkeypatch.setattr(models, "model", within_meta(models.model))
    with pytest.raises(UserError, match=r"d\.caffemodel: (the weights do not fit|not a detector)"):
        models.caffe_detector(path, ["cat", "dog"])


def within_meta(make: Callable[..., FastRCNN]) -> Callable[..., FastRCNN]:
    def checked(*arguments: object, **keys: object) -> FastRCNN:
        assert keys["device"] == "meta", "memory for the network is taken"
        return make(*arguments, **keys)

    return checked


def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.torch").save
    data = save({"conv1.weight": torch.zeros(4)})
    for old, new in ((b"[4]", b"[9]"), (b"[0,16]", b"[0,99]")):
        assert old in data
        (tmp_path / "w.safetensors").write_bytes(data.replace(old, new))
        with pytest.raises(UserError, match=r"w.safetensors: the file is truncated or not a .safetensors file"):
            read_state_dict(tmp_path / "w.safetensors")


def test_a_long_safetensors_header_is_not_read(tmp_path: Path) -> None:
    """The names in it take more memory than they have bytes."""
    save = pytest.importorskip("safetensors.torch").save
    data = save({"conv1.weight": torch.zeros(4)})
    header = data[8:-16].ljust(2**24 + 8)
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[-16:])
    with pytest.raises(UserError, match=r"w.safetensors: .*a header of 16,777,224 bytes"):
        read_state_dict(tmp_path / "w.safetensors")
