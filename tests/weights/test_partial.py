"""Weights of part of a network: which layers are read, which begin anew, what contradicts the model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import caffemodel
import pytest
import torch
from torch import Tensor

from fastrcnn.build import models
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN
from fastrcnn.model.networks import NETWORKS, VGG16
from fastrcnn.settings import ModelSettings
from fastrcnn.training import checkpoint
from fastrcnn.weights.pretrained import load_pretrained

State = dict[str, Tensor]
NEW_HEAD = "initialised: fc6 (not in the file), fc7 (not in the file), cls_score, bbox_pred"


def caffes(network: str = "vgg16", **how: int) -> State:
    """An eighth of a network's channels, with fc6 and fc7 for RoIs of one cell."""
    weights = caffemodel.vgg16(0.125, roi_size=1) if network == "vgg16" else caffemodel.network(network, 0.125, **how)
    return {k: torch.from_numpy(v) for k, v in weights.items()}


def trunk(state: State) -> State:
    return {k: v for k, v in state.items() if k.startswith("conv")}


def settings(**changes: object) -> ModelSettings:
    return ModelSettings(**{"width": 0.125, "roi_size": 1, "head": [12, 10]} | changes)  # type: ignore[arg-type]


def numbered(form: str, state: State) -> State:
    """The convolutions by their place in torchvision's `features`; form: with a {} for it."""
    found, place = {}, 0
    for name in VGG16.conv_names:
        place += name.endswith("_1") and name != "conv1_1"
        for part in ("weight", "bias"):
            found[f"{form.format(place)}.{part}"] = state[f"{name}.{part}"]
        place += 2
    return found


def kerases(weight: str, bias: str, state: State) -> State:
    """The convolutions under Keras' names; weight, bias: with a {} for the layer."""
    forms = {"weight": weight, "bias": bias}
    return {
        forms[part].format(f"block{layer[4]}_conv{layer[6]}"): v
        for (layer, _, part), v in ((k.rpartition("."), v) for k, v in trunk(state).items())
    }


def reducedfc(state: State) -> State:
    """SSD's vgg16_reducedfc.pth: conv6 of 3 x 3 and conv7 of 1 x 1 at the places 31 and 33."""
    more = {"31.weight": (128, 64, 3, 3), "31.bias": (128,), "33.weight": (128, 128, 1, 1), "33.bias": (128,)}
    return numbered("{}", state) | {k: torch.randn(shape) for k, shape in more.items()}


FORMS: dict[str, tuple[Callable[[State], State], str]] = {
    "torchvision": (lambda s: numbered("features.{}", s), "not used: none"),
    "torchvision, in parallel": (lambda s: numbered("features.module.{}", s), "not used: none"),
    "within another module": (lambda s: numbered("module.backbone.features.{}", s), "not used: none"),
    "caffe": (trunk, "not used: none"),
    "ssd, trained": (lambda s: numbered("vgg.{}", s) | {"loc.0.weight": torch.zeros(2, 2, 3, 3)}, "not used: loc.0"),
    "ssd": (reducedfc, "not used: 31, 33"),
    "keras in torch": (lambda s: kerases("{}.weight", "{}.bias", s), "not used: none"),
    "keras 1": (lambda s: kerases("{}_W_1:0", "{}_b_1:0", s), ""),
    "keras 2": (lambda s: kerases("model_weights/x/{}/kernel:0", "model_weights/x/{}/bias:0", s), ""),
    "keras with its top": (
        lambda s: kerases("{}/kernel", "{}/bias", s) | {"fc1/kernel": torch.zeros(64, 512)},
        "not used: fc1/kernel",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_trunk_alone_is_read_and_the_head_begins_anew(form: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastrcnn")
    state = caffes()
    written, unused = FORMS[form]
    torch.manual_seed(3)
    model = FastRCNN(2, width=0.125, roi_size=1, head=[12, 10])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fresh = load_pretrained(model, written(state), "here", pixels="caffe_rgb")
    for name in VGG16.conv_names:
        assert torch.equal(model.trunk.convs[name].weight, state[f"{name}.weight"])
        assert torch.equal(model.trunk.convs[name].bias, state[f"{name}.bias"])
    assert set(fresh) == {"fc6", "fc7"}
    assert all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items() if k.startswith(("head", "cls", "bbox"))
    )
    (line,) = [r.message for r in caplog.records if "loaded: conv" in r.message]
    assert line.startswith(f"here: loaded: conv1_1 to conv5_3; {NEW_HEAD}; {unused}")


@pytest.mark.parametrize("form", ["caffe", "keras in torch", "keras 2"])
def test_pixels_of_caffes_and_kerass_weights_are_caffes(form: str) -> None:
    model = FastRCNN(2, width=0.125, roi_size=1, head=[12, 10])
    state = caffes()
    load_pretrained(model, FORMS[form][0](state), "here")
    assert model.pixel_std.tolist() == torch.ones(3, 1, 1).tolist()
    assert torch.equal(model.trunk.convs["conv1_1"].weight, state["conv1_1.weight"].flip(1))


@pytest.mark.parametrize("network", ["vgg_cnn_m_1024", "caffenet"])
def test_the_papers_smaller_networks_do_without_fc6_and_fc7(network: str) -> None:
    state = trunk(caffes(network))
    last = NETWORKS[network].conv_names[-1]
    model = FastRCNN(2, width=0.125, roi_size=6, roi_features=[last], network=network, head=[12, 10])
    assert set(load_pretrained(model, state, "here")) == {"fc6", "fc7"}
    assert torch.equal(model.trunk.convs[last].weight, state[f"{last}.weight"])


@pytest.mark.parametrize(
    ("head", "roi_size", "fresh"),
    [
        (None, 1, {}),
        ([512, 20], 1, {"fc7": "different shape in the file: (512, 512), expected (20, 512)"}),
        (
            [20, 512],
            1,
            {"fc6": "different shape in the file: (512, 64), expected (20, 64)", "fc7": "fc6 is also initialised"},
        ),
        (
            None,
            2,
            {"fc6": "different shape in the file: (512, 64), expected (512, 256)", "fc7": "fc6 is also initialised"},
        ),
    ],
)
def test_a_layer_of_another_shape_begins_anew_and_so_does_what_was_trained_on_it(
    head: list[int] | None, roi_size: int, fresh: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """With RoIs of 2 x 2 cells fc7 would fit: it reads 512 features, but not those that it was trained on."""
    model = FastRCNN(2, width=0.125, roi_size=roi_size, head=head)
    before, state = model.head.fc7.weight.clone(), caffes()
    assert load_pretrained(model, state, "here") == fresh
    assert torch.equal(model.head.fc7.weight, before if "fc7" in fresh else state["fc7.weight"])
    assert any(r.levelname == "WARNING" and "loaded: conv1_1" in r.message for r in caplog.records) == bool(fresh)


def test_an_fc6_that_is_a_convolution_is_the_same_layer() -> None:
    """As in fully convolutional versions of Caffe's VGG16."""
    state = caffes()
    state |= {
        "fc6.weight": state["fc6.weight"].view(512, 64, 1, 1),
        "fc7.weight": state["fc7.weight"].view(512, 512, 1, 1),
    }
    model = FastRCNN(2, width=0.125, roi_size=1)
    assert load_pretrained(model, state, "here") == {}
    assert torch.equal(model.head.fc6.weight, state["fc6.weight"].flatten(1))


def changed(**tensors: Tensor | None) -> State:
    state = caffes() | {k.replace("__", "."): v for k, v in tensors.items() if v is not None}
    return {k: v for k, v in state.items() if tensors.get(k.replace(".", "__"), v) is not None}


WRONG = {
    "missing in the middle": (changed(conv3_2__weight=None), "trunk.convs.conv3_2.weight: missing"),
    "no bias": (changed(conv3_2__bias=None), "trunk.convs.conv3_2.bias: missing"),
    "another shape": (changed(conv4_1__weight=torch.zeros(64, 16, 3, 3)), r"conv4_1.weight: shape \(64, 16, 3, 3\), "),
    "VGG19": (changed(conv3_4__weight=torch.zeros(32, 32, 3, 3)), "conv3_4.weight: not in the model"),
    "the head alone": ({k: v for k, v in caffes().items() if k.startswith("fc")}, "conv1_1.weight: missing"),
    "nothing for the trunk": ({"layer1.0.weight": torch.zeros(2)}, r"no layer has the name .* contains layer1.0\)"),
    "half of fc6": (changed(fc6__bias=None), "head.fc6.bias: missing"),
    "not finite": (changed(conv5_3__bias=torch.full((64,), torch.nan)), "conv5_3.bias: .*not finite"),
    "two layers in the file": (
        changed(fc6__weight=None, fc6__bias=None, fc6_L__weight=torch.zeros(9, 64), fc6_U__weight=torch.zeros(512, 9)),
        "fc6 is compressed in the file: set model.fc6_rank=9",
    ),
    "Keras' order": (
        {k: v.permute(2, 3, 1, 0) if v.dim() == 4 else v for k, v in kerases("{}.weight", "{}.bias", caffes()).items()},
        r"conv1_1.weight: shape \(3, 3, 3, 8\), expected \(8, 3, 3, 3\)\. .* permute\(3, 2, 0, 1\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_the_model_is_refused_and_nothing_is_loaded(name: str) -> None:
    state, said = WRONG[name]
    model = FastRCNN(2, width=0.125, roi_size=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=f"(?s)^here: the weights do not fit the model.*{said}"):
        load_pretrained(model, state, "here")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_numbers_that_are_not_used_may_be_anything() -> None:
    """As the classifier's NaN in torchvision's IMAGENET1K_FEATURES below a head of another size."""
    state = changed(fc6__weight=torch.full((512, 64), torch.nan))
    load_pretrained(FastRCNN(2, width=0.125, roi_size=1, head=[12, 10]), state, "here")


@pytest.fixture
def trunk_file(tmp_path: Path) -> str:
    return str(caffemodel.write(tmp_path / "trunk.caffemodel", {k: v.numpy() for k, v in trunk(caffes()).items()}))


@pytest.mark.parametrize(
    ("first", "features", "said"),
    [
        ("conv1_1", ["conv5_3"], None),
        ("fc6", ["conv5_3"], None),
        ("fc6", ["conv4_3", "conv5_3"], None),
        ("fc7", ["conv5_3"], r"fc6 would be frozen at random.*not in the file\)\. Set model\.finetune_from=fc6"),
        ("fc7", ["conv4_3", "conv5_3"], r"reduce and fc6 would be frozen .* Set model\.finetune_from=fc6"),
        ("bbox_pred", ["conv5_3"], r"fc6 and fc7 would be frozen"),
    ],
)
def test_a_layer_with_random_numbers_is_not_frozen(
    first: str, features: list[str], said: str | None, trunk_file: str
) -> None:
    config = settings(weights=trunk_file, finetune_from=first, roi_features=features)
    if said is None:
        assert models.model(config, 2).head.fc6.weight.requires_grad
        return
    with pytest.raises(UserError, match=f"model.finetune_from={first}: {said}"):
        models.model(config, 2)


def test_maps_are_scaled_where_fc6_begins_anew_over_weights_and_nowhere_else(trunk_file: str, tmp_path: Path) -> None:
    whole = caffemodel.write(tmp_path / "whole.caffemodel", {k: v.numpy() for k, v in caffes().items()})
    assert models.model(settings(weights=trunk_file), 2).map_scale is not None
    assert models.model(settings(weights=trunk_file, scale_maps=False), 2).map_scale is None
    assert models.model(settings(), 2).map_scale is None
    assert models.model(settings(weights=str(whole), head=None), 2).map_scale is None
    assert "map_scale" not in models.model(settings(), 2).state_dict()
    with pytest.raises(UserError, match=r"trained on unscaled maps: remove model\.scale_maps"):
        models.model(settings(weights=str(whole), head=None, scale_maps=True), 2)


# ------------------------------------------------------------------------------------------ a run of ours


def saved(path: Path, config: ModelSettings, classes: list[str], scale: float | None = None) -> FastRCNN:
    model = models.model(config, len(classes))
    for value in model.state_dict().values():
        value.copy_(torch.rand(value.shape) + 0.5)
    if scale is not None:
        model.map_scale = torch.full((1,), scale)
    content = {"step": 3, "best": 0.5, "classes": classes, "config": {}, "model": model.state_dict()}
    checkpoint.save(path, content)
    return model


@pytest.mark.parametrize("scale", [None, 0.05])
def test_a_run_gives_trunk_head_pixels_and_scale_to_other_classes(
    tmp_path: Path, scale: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastrcnn")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    old = saved(tmp_path / "run/checkpoints/best.pt", settings(), ["a", "b", "c"], scale)
    for where in (tmp_path / "run", tmp_path / "run/checkpoints/best.pt"):
        new = models.model(settings(weights=str(where), finetune_from="fc7"), 2)
        for name, value in old.state_dict().items():
            same = name.startswith(("trunk", "head", "pixel", "map"))
            assert not same or torch.equal(new.state_dict()[name], value), name
        assert new.cls_score.out_features == 3
        assert new.cls_score.weight.abs().max() < 0.1
        assert torch.equal(new.delta_std, torch.ones(3, 4))
    said = "loaded: conv1_1 to conv5_3, fc6, fc7; initialised: cls_score, bbox_pred; not used: cls_score, bbox_pred"
    assert f"best.pt: {said}" in caplog.text
    if scale:
        with pytest.raises(UserError, match=r"model\.scale_maps=false: .* was trained with scaled feature maps"):
            models.model(settings(weights=str(where), scale_maps=False), 2)
    other = models.model(settings(weights=str(where), head=[8, 8]), 2)
    assert other.state_dict()["map_scale"].tolist() == [1], "measured anew as training begins"


def test_fc6_above_other_maps_than_the_files_begins_anew(tmp_path: Path) -> None:
    """`reduce` brings several maps to one's channels, so fc6 has the same shape without it."""
    saved(tmp_path / "w.pt", settings(roi_features=["conv4_3", "conv5_3"]), ["a"])
    model = models.model(settings(weights=str(tmp_path / "w.pt")), 2)
    assert model.head.fc6.weight.abs().max() < 0.5 or model.head.fc6.weight.min() < 0
    with pytest.raises(UserError, match=r"fc6 .*is in the file but not in the model"):
        models.model(settings(weights=str(tmp_path / "w.pt"), finetune_from="fc7"), 2)


@pytest.mark.parametrize("scale", [None, 0.05])
def test_a_reduce_that_is_kept_keeps_the_size_of_its_maps(tmp_path: Path, scale: float | None) -> None:
    """It was trained on them; where it is kept below a new fc6, factors that are measured anew would change it."""
    two = settings(roi_features=["conv4_3", "conv5_3"])
    old = models.model(two, 1)
    if scale is not None:
        old.map_scale = torch.tensor([scale, 2 * scale])
    content = {"step": 3, "best": 0.5, "classes": ["a"], "config": {}, "model": old.state_dict()}
    checkpoint.save(tmp_path / "w.pt", content)
    weights = {"weights": str(tmp_path / "w.pt"), "roi_features": ["conv4_3", "conv5_3"]}
    new = models.model(settings(head=[7, 7], **weights), 2)
    assert torch.equal(new.state_dict()["reduce.weight"], old.state_dict()["reduce.weight"])
    assert ("map_scale" in new.state_dict()) == (scale is not None)
    assert scale is None or torch.equal(new.state_dict()["map_scale"], old.state_dict()["map_scale"])
    if scale is not None:  # of one map into a network of two
        saved(tmp_path / "one.pt", settings(), ["a"], scale)
        new = models.model(settings(**weights | {"weights": str(tmp_path / "one.pt")}), 2)
        assert new.state_dict()["map_scale"].tolist() == [1, 1], "all above the maps is new, and measured for"


def test_a_damaged_checkpoint_and_a_folder_without_one_say_so(tmp_path: Path) -> None:
    saved(tmp_path / "w.pt", settings(), ["a"])
    data = bytearray((tmp_path / "w.pt").read_bytes())
    data[5000] ^= 1
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(UserError, match="checksum does not match"):
        models.model(settings(weights=str(tmp_path / "w.pt")), 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model\.weights: .*empty contains no checkpoint"):
        models.model(settings(weights=str(tmp_path / "empty")), 2)
    torch.save(trunk(caffes()), tmp_path / "others.pt")  # a state dict of another program
    assert models.model(settings(weights=str(tmp_path / "others.pt")), 2).map_scale is not None


@pytest.mark.parametrize("head", [[5], [1, 2, 3]])
def test_a_head_has_two_numbers(head: list[int]) -> None:
    with pytest.raises(UserError, match=r"model\.head=.*: expected two integers"):
        models.model(ModelSettings(head=head), 2)
