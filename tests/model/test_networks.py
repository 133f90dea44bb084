"""The trunk and the head against torchvision's VGG16 and the paper's counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import vgg16 as torchvision_vgg16
from torchvision.models.vgg import VGG

from fastrcnn.model.fast_rcnn import FastRCNN, freeze_before
from fastrcnn.model.head import Head, parameter_count
from fastrcnn.model.loss import fast_rcnn_loss
from fastrcnn.model.networks import NETWORKS, VGG16, Trunk
from fastrcnn.structures import RoITargets
from fastrcnn.weights.pretrained import load_pretrained

CONV_NAMES = VGG16.conv_names


@pytest.fixture(scope="module")
def pair() -> tuple[FastRCNN, VGG]:
    """Our network with the weights of torchvision's, which are random."""
    torch.manual_seed(0)
    theirs = torchvision_vgg16(init_weights=False).eval()
    for module in theirs.features:
        if isinstance(module, nn.Conv2d):  # torch's default weights fade away over thirteen layers
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.device("meta"):
        ours = FastRCNN(20)
    ours.to_empty(device="cpu")
    load_pretrained(ours, theirs.state_dict(), "torchvision")
    return ours.eval(), theirs


def meta_model(**options: object) -> FastRCNN:
    """A network without memory behind its parameters."""
    with torch.device("meta"):
        return FastRCNN(20, **options)  # type: ignore[arg-type]


def test_parameters_of_the_papers_network() -> None:
    assert parameter_count(meta_model()) == 134_690_729


def test_parameters_that_the_paper_freezes() -> None:
    """conv1_1 to conv2_2 of the counts by hand: 9 weights a pair of channels, and the biases."""
    by_hand = (3 * 64 * 9 + 64) + (64 * 64 * 9 + 64) + (64 * 128 * 9 + 128) + (128 * 128 * 9 + 128)
    model = meta_model()
    freeze_before(model, "conv3_1")
    frozen = {n: p.numel() for n, p in model.named_parameters() if not p.requires_grad}
    assert sum(frozen.values()) == by_hand == 260_160
    assert {n.split(".")[2] for n in frozen} == {"conv1_1", "conv1_2", "conv2_1", "conv2_2"}


@pytest.mark.parametrize(("first", "layers"), [("conv1_1", 0), ("conv2_1", 2), ("conv5_3", 12), ("fc6", 13)])
def test_freezing_stops_at_the_named_layer(first: str, layers: int) -> None:
    model = meta_model()
    freeze_before(model, first)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"trunk.convs.{n}.{part}" for n in CONV_NAMES[:layers] for part in ("weight", "bias")}


def test_freezing_takes_the_batch_normalisation_along_and_keeps_its_statistics() -> None:
    model = FastRCNN(2, width=0.03, batch_norm=True)
    freeze_before(model, "conv3_1")
    model.train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    model.features(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    moved = {n.split(".")[2] for n, b in model.named_buffers() if "norms" in n and not torch.equal(b, before[n])}
    assert moved == set(CONV_NAMES[CONV_NAMES.index("conv3_1") :])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad and "norms" in n}
    assert frozen == {f"trunk.norms.{n}.{part}" for n in CONV_NAMES[:4] for part in ("weight", "bias")}


def test_eval_and_train_again_keep_frozen_statistics_frozen() -> None:
    trunk_modes = []
    model = FastRCNN(2, width=0.03, batch_norm=True)
    freeze_before(model, "conv2_1")
    for mode in (True, False, True):
        model.train(mode)
        trunk_modes.append([model.trunk.norms[n].training for n in ("conv1_2", "conv2_1")])
    assert trunk_modes == [[False, True], [False, False], [False, True]]


def test_map_of_the_papers_image() -> None:
    with torch.device("meta"):
        images = torch.zeros(1, 3, 600, 1000)
    shapes = {n: tuple(m.shape[1:]) for n, m in zip(CONV_NAMES, meta_model().trunk(images, CONV_NAMES), strict=True)}
    assert shapes["conv1_2"] == (64, 600, 1000)
    assert shapes["conv2_2"] == (128, 300, 500)
    assert shapes["conv3_3"] == (256, 150, 250)
    assert shapes["conv4_3"] == (512, 75, 125)
    assert shapes["conv5_3"] == (512, 38, 63), "poolings round up"


def test_strides_and_channels() -> None:
    assert [VGG16.stride_of(n) for n in ("conv1_2", "conv2_1", "conv3_3", "conv4_1", "conv5_3")] == [1, 2, 4, 8, 16]
    assert [VGG16.channels_of(f"conv{i}_1", 1.0) for i in range(1, 6)] == [64, 128, 256, 512, 512]
    assert [VGG16.channels_of(f"conv{i}_1", 0.25) for i in range(1, 6)] == [16, 32, 64, 128, 128]
    assert VGG16.channels_of("conv1_1", 0.001) == 1
    assert VGG16.finetune_from[0] == "conv1_1"
    assert VGG16.finetune_from[13:] == ("fc6", "fc7", "bbox_pred")


def test_every_layer_is_torchvisions(pair: tuple[FastRCNN, VGG]) -> None:
    """Where the size divides by 16, rounding up in poolings changes nothing."""
    ours, theirs = pair
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    expected = []
    with torch.no_grad():
        x = images
        for module in theirs.features:
            x = module(x)
            if isinstance(module, nn.ReLU):
                expected.append(x.clone())
        maps = ours.trunk(images, CONV_NAMES)
    assert len(expected) == 13
    for name, found, wanted in zip(CONV_NAMES, maps, expected, strict=True):
        assert wanted.abs().max() > 0.1, "a map of zeros would show nothing"
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_fc6_and_fc7_are_torchvisions(pair: tuple[FastRCNN, VGG]) -> None:
    ours, theirs = pair
    pooled = torch.rand(3, 512, 7, 7, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs.classifier[:6](pooled.flatten(1))
        found = ours.head(pooled)
    assert expected.max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_maps_come_in_the_order_asked_for_and_after_their_relu() -> None:
    trunk = Trunk(width=0.03)
    images = torch.randn(1, 3, 32, 32)
    last, middle = trunk(images, ("conv5_3", "conv3_2"))
    assert last.shape[2:] == (2, 2)
    assert middle.shape[2:] == (8, 8)
    assert (middle >= 0).all()


def test_dropout_only_in_training_and_at_its_rate() -> None:
    torch.manual_seed(0)
    head = Head(8, (1024, 1024), dropout=0.5)
    nn.init.ones_(head.fc7.bias)
    nn.init.zeros_(head.fc7.weight)
    pooled = torch.ones(4, 2, 2, 2)
    head.eval()
    assert torch.equal(head(pooled), torch.ones(4, 1024))
    head.train()
    out = head(pooled)
    assert set(out.unique().tolist()) == {0.0, 2.0}, "what stays is scaled up"
    assert (out == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [
        # By hand: 9 (or 25, 49, 121) weights a pair of channels within a group, and biases; fc6, fc7; 21 + 84 outputs.
        (
            "caffenet",
            6,
            (3 * 96 * 121 + 96)
            + (48 * 256 * 25 + 256)
            + (256 * 384 * 9 + 384)
            + (192 * 384 * 9 + 384)
            + (192 * 256 * 9 + 256)
            + (256 * 36 * 4096 + 4096)
            + (4096 * 4096 + 4096)
            + (4096 + 1) * 105,
        ),
        (
            "vgg_cnn_m_1024",
            6,
            (3 * 96 * 49 + 96)
            + (96 * 256 * 25 + 256)
            + (256 * 512 * 9 + 512)
            + 2 * (512 * 512 * 9 + 512)
            + (512 * 36 * 4096 + 4096)
            + (4096 * 1024 + 1024)
            + (1024 + 1) * 105,
        ),
    ],
)
def test_parameters_and_strides_of_the_smaller_networks(name: str, size: int, parameters: int) -> None:
    model = meta_model(network=name, roi_size=size, roi_features=["conv5"])
    assert parameter_count(model) == parameters
    assert model.strides == [16]
    assert [NETWORKS[name].stride_of(f"conv{i}") for i in (1, 2, 3)] == {
        "caffenet": [4, 8, 16],
        "vgg_cnn_m_1024": [2, 8, 16],
    }[name]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", [1, 24, 25, 47])
def test_no_picture_is_too_small(name: str, side: int) -> None:
    network = NETWORKS[name]
    (found,) = Trunk(network, width=0.05)(torch.randn(1, 3, side, 60), network.conv_names[-1:])
    assert found.shape[2] >= 1
    assert found.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_slim_network_with_batch_normalisation_learns_everywhere(name: str) -> None:
    """No layer is cut off: each weight gets a gradient, and groups come out even at an odd width."""
    network = NETWORKS[name]
    features = [network.conv_names[-1]]
    model = FastRCNN(2, network=name, width=0.07, batch_norm=True, roi_size=2, roi_features=features)
    logits, deltas = model(
        torch.randint(0, 256, (1, 3, 64, 80)), torch.tensor([[0.0, 5, 5, 60, 50], [0, 0, 0, 70, 60]])
    )
    (logits.square().sum() + deltas.square().sum()).backward()
    for parameter_name, parameter in model.named_parameters():
        if not parameter_name.endswith("bias"):  # before batch normalisation a bias has none
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, parameter_name


def test_stage_wise_training_leaves_only_the_box_regression() -> None:
    model = FastRCNN(2, width=0.03, batch_norm=True, roi_features=("conv4_3", "conv5_3"))
    freeze_before(model, "bbox_pred")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"bbox_pred.weight", "bbox_pred.bias"}
    model = FastRCNN(2, width=0.03, roi_features=("conv4_3", "conv5_3"))
    freeze_before(model, "fc6")
    trained = {n.rpartition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"reduce", "head.fc6", "head.fc7", "cls_score", "bbox_pred"}
    freeze_before(model, "fc7")
    trained = {n.rpartition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"head.fc7", "cls_score", "bbox_pred"}


def test_class_agnostic_deltas_are_the_same_for_every_class_and_learn_from_all() -> None:
    torch.manual_seed(0)
    model = FastRCNN(3, width=0.03, class_agnostic=True, dropout=0.0)
    assert model.bbox_pred.weight.shape[0] == 4
    images = torch.randint(0, 256, (1, 3, 48, 48))
    logits, deltas = model(images, torch.tensor([[0.0, 5, 5, 40, 40], [0, 0, 0, 48, 30]]))
    assert deltas.shape == (2, 4, 4)
    assert torch.equal(deltas[:, 0], deltas[:, 3])
    targets = RoITargets(torch.tensor([1, 3]), torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]]))
    fast_rcnn_loss(logits, deltas, targets).box.backward()
    separate = torch.zeros(2, 4, requires_grad=True)  # what the loss of both says to the four numbers
    nn.functional.smooth_l1_loss(separate, targets.deltas, reduction="sum").div(2).backward()
    assert separate.grad is not None
    torch.testing.assert_close(model.bbox_pred.bias.grad, separate.grad.sum(0), rtol=1e-2, atol=1e-3)
    assert model(images, torch.zeros(0, 5))[1].shape == (0, 4, 4)


def test_nothing_is_computed_above_the_last_map_that_is_wanted() -> None:
    trunk = Trunk(VGG16, width=0.05, batch_norm=True).train()
    called: list[str] = []
    for name, conv in trunk.convs.items():
        conv.register_forward_hook(lambda *_, name=name: called.append(name))
    wanted = ("conv3_2", "conv2_1")
    found = trunk(torch.rand(1, 3, 32, 32), wanted)
    assert called == ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2"]
    assert VGG16.above(wanted) == ("conv3_3", "conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3")
    assert [m.shape[2] for m in found] == [8, 16]
    assert VGG16.above(["conv5_3"]) == ()
