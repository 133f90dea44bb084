"""Stages computed in strips of rows give what they give whole, and are used where nothing needs the maps between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastrcnn.model import networks
from fastrcnn.model.networks import NETWORKS, Trunk, Window, in_strips


def trunk(name: str, width: float = 0.125, batch_norm: bool = False) -> Trunk:
    torch.manual_seed(0)
    made = Trunk(NETWORKS[name], width, batch_norm).double().eval()
    for norm in made.norms.values():
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return made


def rows_of(made: Trunk, layer: str) -> list[int]:
    """Is told the rows of each map that the layer gives from now on."""
    rows: list[int] = []
    made.convs[layer].register_forward_hook(lambda module, given, out: rows.append(out.shape[2]))
    return rows


@pytest.mark.parametrize("values", [200, 5_000, 40_000])
@pytest.mark.parametrize("size", [(97, 64), (131, 70), (64, 200)])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_strips_give_what_whole_maps_give(
    monkeypatch: pytest.MonkeyPatch, name: str, batch_norm: bool, size: tuple[int, int], values: int
) -> None:
    made = trunk(name, batch_norm=batch_norm)
    images = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    wanted = [made.network.conv_names[-3], made.network.conv_names[-1]]
    with torch.no_grad():
        monkeypatch.setattr(networks, "STRIP_VALUES", 10**12)
        whole = made(images, wanted)
        monkeypatch.setattr(networks, "STRIP_VALUES", values)
        rows = rows_of(made, made.network.conv_names[0])
        found = made(images, wanted)
    assert len(rows) > 1 or values > 200
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_strips_keep_the_memory_format(order: torch.memory_format) -> None:
    x = torch.randn(2, 3, 40, 20).contiguous(memory_format=order)
    windows = [networks.Pool(2, 2)]
    assert in_strips(nn.MaxPool2d(2), x, windows, 4).is_contiguous(memory_format=order)


def test_an_exported_program_has_no_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be those of the example picture."""
    monkeypatch.setattr(networks, "STRIP_VALUES", 1_000)
    made = trunk("vgg16").requires_grad_(False)
    with torch.no_grad():
        program = torch.export.export(made, (torch.randn(1, 3, 64, 64, dtype=torch.float64), ["conv5_3"]), strict=False)
    convolutions = [node for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == 13


def test_no_map_of_a_large_picture_exists_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trunk("vgg16")
    monkeypatch.setattr(networks, "STRIP_VALUES", 20_000)
    rows = {name: rows_of(made, name) for name in ("conv1_2", "conv2_2", "conv3_3")}
    with torch.no_grad():
        made(torch.randn(1, 3, 480, 96, dtype=torch.float64), ["conv5_3"])
    for name, channels, stride in (("conv1_2", 8, 1), ("conv2_2", 16, 2), ("conv3_3", 32, 4)):
        largest = max(rows[name]) * channels * 96 // stride
        assert largest <= 1.5 * 20_000, name  # with the rows beyond the edges


def whole_rows(made: Trunk, layer: str, rows: int) -> bool:
    seen = rows_of(made, layer)
    made(torch.randn(1, 3, 128, 64, dtype=torch.float64), ["conv4_3"])
    return seen == [rows]


def test_what_a_gradient_or_a_batchs_statistics_need_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "STRIP_VALUES", 10_000)
    assert whole_rows(trunk("vgg16"), "conv1_2", 128)
    frozen = trunk("vgg16")
    for name in ("conv1_1", "conv1_2"):
        frozen.convs[name].requires_grad_(False)
    assert not whole_rows(frozen, "conv1_2", 128)
    assert whole_rows(frozen, "conv2_2", 64)
    with torch.no_grad():
        assert whole_rows(trunk("vgg16", batch_norm=True).train(), "conv1_2", 128)
        assert not whole_rows(trunk("vgg16", batch_norm=True), "conv1_2", 128)


def test_a_map_that_is_pooled_from_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "STRIP_VALUES", 10_000)
    made = trunk("vgg16")
    seen = {name: rows_of(made, name) for name in ("conv1_1", "conv2_1")}
    with torch.no_grad():
        made(torch.randn(1, 3, 128, 64, dtype=torch.float64), ["conv1_2", "conv4_3"])
    assert seen["conv1_1"] == [128]
    assert len(seen["conv2_1"]) > 1


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (7, 2, 0), (11, 4, 5), (5, 3, 2), (2, 2, 0)])
def test_a_sum_over_windows_is_the_same_for_any_number_of_strips(kernel: int, stride: int, padding: int) -> None:
    """Whole numbers, so equal to the last bit."""
    layer = nn.AvgPool2d((kernel, 1), (stride, 1), (padding, 0), divisor_override=1)
    window = networks.Pool(kernel, stride, padding)
    x = torch.randint(0, 100, (1, 2, 57, 3)).double()
    for count in range(1, 12):
        assert torch.equal(in_strips(layer, x, [window], count), layer(x)), count


def test_two_layers_are_followed_through_strides() -> None:
    windows: list[Window] = [networks.Pool(3, 2, 1), networks.Pool(2, 2)]
    x = torch.randint(0, 100, (1, 1, 63, 2)).double()

    def compute(rows: Tensor) -> Tensor:
        return nn.functional.max_pool2d(nn.functional.max_pool2d(rows, (3, 1), (2, 1), (1, 0)), (2, 1), (2, 1))

    for count in (1, 2, 5, 15, 40):
        assert torch.equal(in_strips(compute, x, windows, count), compute(x)), count
