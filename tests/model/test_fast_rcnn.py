"""The network: shapes, normalisation, RoI operators, gradients, initialisation."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastrcnn.model.fast_rcnn import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FastRCNN,
    distinct_rois,
    pool_rois,
    scaled_rois,
)
from fastrcnn.settings import RoiOp

ROI_OPS = get_args(RoiOp)


def tiny(**options: object) -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(**({"num_classes": 3, "width": 0.03, "roi_size": 3, "dropout": 0.0} | options))  # type: ignore[arg-type]


def some_images(n: int = 2, height: int = 48, width: int = 64) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


ROIS = torch.tensor([[0.0, 0, 0, 32, 32], [1, 10, 5, 60, 45], [1, 0, 0, 64, 48], [0, 20, 20, 21, 21]])


@pytest.mark.parametrize("op", ROI_OPS)
def test_each_roi_op_gives_shapes_and_gradients(op: str) -> None:
    model = tiny(roi_op=op)
    logits, deltas = model(some_images(), ROIS)
    assert logits.shape == (4, 4)
    assert deltas.shape == (4, 4, 4)
    assert logits.dtype == deltas.dtype == torch.float32
    (logits.square().sum() + deltas.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("layers", [("conv4_3", "conv5_3"), ("conv3_3", "conv4_3", "conv5_3"), ("conv3_3",)])
def test_maps_of_other_layers(layers: tuple[str, ...]) -> None:
    model = tiny(roi_features=layers)
    maps = model.features(some_images())
    assert [tuple(m.shape[2:]) for m in maps] == [{"3": (12, 16), "4": (6, 8), "5": (3, 4)}[n[4]] for n in layers]
    logits, deltas = model(some_images(), ROIS)
    assert logits.shape == (4, 4)
    assert deltas.shape == (4, 4, 4)
    logits.square().sum().backward()
    assert all(model.trunk.convs[n].weight.grad.abs().sum() > 0 for n in layers)  # type: ignore[union-attr, operator]


def test_several_maps_are_pooled_at_their_own_strides_and_reduced_in_order() -> None:
    """A reduction that copies the first or the second map's channel shows what was pooled from it."""
    model = tiny(roi_features=("conv4_3", "conv5_3"), roi_size=2)
    seen = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    channels = [15, 15]
    maps = [torch.rand(1, c, *size) for c, size in zip(channels, ((6, 8), (3, 4)), strict=True)]
    roi = torch.tensor([[0.0, 0, 0, 64, 48]])
    assert isinstance(model.reduce, nn.Conv2d)
    for which, (m, scale) in enumerate(zip(maps, (1 / 8, 1 / 16), strict=True)):
        with torch.no_grad():
            model.reduce.weight.zero_()
            model.reduce.bias.zero_()  # type: ignore[union-attr]
            for c in range(15):
                model.reduce.weight[c, 15 * which + c] = 1
        model.classify(maps, scaled_rois(roi, "fast_rcnn"))
        inclusive = torch.tensor([[0.0, 0, 0, 63, 47]])
        torch.testing.assert_close(seen[-1], torchvision.ops.roi_pool(m, inclusive, 2, scale))


def test_no_rois_give_empty_outputs_with_gradients() -> None:
    model = tiny(roi_features=("conv4_3", "conv5_3"))
    logits, deltas = model(some_images(), torch.zeros(0, 5))
    assert logits.shape == (0, 4)
    assert deltas.shape == (0, 4, 4)
    (logits.sum() + deltas.sum()).backward()


def pool(features: Tensor, rois: Tensor, size: int, op: str) -> Tensor:
    """Half-open boxes pooled from a map of stride 1."""
    return pool_rois(features, scaled_rois(rois, op), size, 1.0, op)


@pytest.mark.parametrize("scale", [600 / 375, 600 / 333, 1000 / 1023, 600 / 480])
def test_rois_are_those_of_the_authors_code_to_the_last_bit(scale: float) -> None:
    """Every whole coordinate of a picture: inclusive times scale in float64, rounded once; half of them as mirrored."""
    x1 = np.arange(0, 1000)
    x2 = x1 + np.arange(1000) % 37
    inclusive = np.stack((x1, x1, x2, x2), axis=1).astype(np.float64)
    want = (inclusive * scale).astype(np.float32)
    half_open = torch.from_numpy((inclusive + np.array((0, 0, 1, 1))).astype(np.float32))
    rois = torch.cat((torch.arange(1000.0)[:, None] % 2, half_open), dim=1)
    found = scaled_rois(rois, "fast_rcnn", torch.tensor([scale, scale], dtype=torch.float64))
    np.testing.assert_array_equal(found[:, 1:].numpy(), want)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found[:, 0], rois[:, 0])


def test_each_roi_is_scaled_by_its_own_images_factor() -> None:
    rois = torch.tensor([[1.0, 2, 4, 10, 20], [0, 2, 4, 10, 20]])
    scales = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert scaled_rois(rois, "roi_align", scales).tolist() == [[1.0, 4, 8, 20, 40], [0.0, 2, 4, 10, 20]]
    assert scaled_rois(rois, "roi_warp", scales).tolist() == [[1.0, 4, 8, 18, 38], [0.0, 2, 4, 9, 19]]


def test_distinct_rois_are_told_apart_where_the_operator_tells_them_apart() -> None:
    """On thousands of boxes: RoIs of one row pool the same values, and no two rows of those kept are the same RoI."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(-20, 120, (3000, 2), generator=generator).double()
    box = torch.cat((corner, corner + torch.randint(0, 30, (3000, 2), generator=generator)), dim=1) / 2
    rois = torch.cat((torch.randint(0, 2, (3000, 1), generator=generator), box), dim=1).float()
    rows, place = distinct_rois(rois, "fast_rcnn", (16,))
    assert 10 < len(rows) < 1500
    features = torch.rand(2, 5, 6, 6, generator=generator)
    pooled = torchvision.ops.roi_pool(features, rois, 3, 1 / 16)
    assert torch.equal(pooled, pooled[rows][place])
    sign, size = torch.sign(rois[:, 1:]), rois[:, 1:].abs().double() / 16
    rounded = torch.cat((rois[:, :1], sign * torch.floor(size + 0.5).float()), dim=1)
    assert len(rows) == len({tuple(r) for r in (rounded + 0.0).tolist()})
    finer, _ = distinct_rois(rois, "fast_rcnn", (8, 16))
    assert len(finer) > len(rows)
    for op in set(ROI_OPS) - {"fast_rcnn"}:
        assert len(distinct_rois(rois, op, (16,))[0]) == 3000
    assert len(distinct_rois(rois[:0], "fast_rcnn", (16,))[1]) == 0


def test_roi_pooling_takes_the_half_open_box_for_the_inclusive_one() -> None:
    """The box (0, 0, 2, 2) holds the pixels 0 and 1 and no more: the large value at 2 stays out."""
    features = torch.zeros(1, 1, 4, 4)
    features[0, 0, 1, 1] = 1.0
    features[0, 0, 2, 2] = 9.0
    roi = torch.tensor([[0.0, 0, 0, 2, 2]])
    for op in ("fast_rcnn", "partition", "truncate"):
        assert pool(features, roi, 1, op).item() == 1.0, op
    assert pool(features, torch.tensor([[0.0, 0, 0, 3, 3]]), 1, "fast_rcnn").item() == 9.0


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("fast_rcnn", [[0.85, 0.96], [0.97, 0.96]]),  # columns 0-3 and 3-6, rows 3-5 and 5-7
        ("partition", [[0.85, 0.84], [0.97, 0.96]]),  # columns 0-2 and 3-6, rows 3-4 and 5-7
        ("truncate", [[0.85, 0.84], [0.69, 0.88]]),  # columns 0-2 and 3-5, rows 3-4 and 5-6
    ],
)
def test_each_variant_on_the_same_half_open_box(op: str, expected: list) -> None:
    """The box 7 wide and 5 high of "Region of interest pooling explained"."""
    below = [
        [0.85, 0.34, 0.76, 0.84, 0.29, 0.75, 0.62, 0.25],
        [0.32, 0.74, 0.21, 0.39, 0.34, 0.03, 0.33, 0.48],
        [0.20, 0.14, 0.16, 0.13, 0.73, 0.65, 0.96, 0.32],
        [0.19, 0.69, 0.09, 0.86, 0.88, 0.07, 0.01, 0.48],
        [0.83, 0.24, 0.97, 0.04, 0.24, 0.35, 0.50, 0.91],
    ]
    features = torch.tensor([[[[1.0] * 8] * 3 + below]])  # rows 0 to 2 are not the box's
    pooled = pool(features, torch.tensor([[0.0, 0, 3, 7, 8]]), 2, op)
    assert pooled[0, 0].tolist() == [pytest.approx(row) for row in expected]


def test_roi_align_takes_the_half_open_box_as_it_is() -> None:
    """The mean over the box of a ramp is the ramp's value at the box's middle."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16).contiguous() + 0.5  # the value at a pixel's centre is its x
    pooled = pool(ramp, torch.tensor([[0.0, 2, 2, 10, 10]]), 1, "roi_align")
    assert pooled.item() == pytest.approx(6.0)


def test_each_roi_is_pooled_from_its_own_image() -> None:
    model = tiny().eval()
    images = some_images()
    box = torch.tensor([[0.0, 8, 8, 56, 40]])
    with torch.no_grad():
        both = model(images, torch.cat((box, box + torch.tensor([1.0, 0, 0, 0, 0]))))[0]
        alone = [model(images[i : i + 1], box)[0][0] for i in range(2)]
    assert not torch.allclose(both[0], both[1])
    torch.testing.assert_close(both, torch.stack(alone))


def test_normalise_by_hand() -> None:
    images = torch.tensor([124, 116, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    found = tiny().normalise(images).flatten().tolist()
    expected = [(v - m) / s for v, m, s in zip((124, 116, 0), IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_normalise_uses_the_models_own_mean_and_deviation() -> None:
    model = tiny(mean=(1.0, 2.0, 3.0), std=(10.0, 20.0, 40.0))
    found = model.normalise(torch.full((1, 3, 1, 1), 11, dtype=torch.uint8))
    assert found.flatten().tolist() == pytest.approx([1.0, 9 / 20, 8 / 40])
    assert {"pixel_mean", "pixel_std", "delta_mean", "delta_std"} <= set(model.state_dict())


def test_padding_becomes_zero_after_normalising_and_the_picture_does_not() -> None:
    model = tiny()
    images = torch.zeros(2, 3, 5, 6, dtype=torch.uint8)  # black is not 0 after normalising
    found = model.normalise(images, torch.tensor([[5, 4], [3, 6]]))
    inside = torch.zeros(2, 5, 6, dtype=torch.bool)
    inside[0, :, :4] = True
    inside[1, :3, :] = True
    assert (found[inside[:, None].expand_as(found)] != 0).all()
    assert (found[~inside[:, None].expand_as(found)] == 0).all()
    assert torch.equal(model.normalise(images)[0, :, 0, 0], found[0, :, 0, 0])


def test_sizes_reach_the_trunk() -> None:
    """What lies in the padding does not matter where the sizes say that it is padding."""
    model = tiny().eval()
    clean = some_images(1)
    dirty = clean.clone()
    dirty[:, :, :, 40:] = 255
    roi, sizes = torch.tensor([[0.0, 0, 0, 40, 48]]), torch.tensor([[48, 40]])
    with torch.no_grad():
        assert torch.equal(model(clean, roi, sizes)[0], model(dirty, roi, sizes)[0])
        assert not torch.equal(model(clean, roi)[0], model(dirty, roi)[0])


def test_deltas_of_a_class_are_four_outputs_in_a_row() -> None:
    """Output 4 c + j of the linear layer is number j of class c, as in the author's weights."""
    model = tiny().eval()
    with torch.no_grad():
        model.bbox_pred.weight.zero_()
        model.bbox_pred.bias.copy_(torch.arange(16.0))
        deltas = model(some_images(), ROIS)[1]
    assert deltas[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


def test_outputs_start_as_the_paper_says() -> None:
    torch.manual_seed(0)
    model = FastRCNN(20, width=0.1, roi_size=1)  # 410 x 21 and 410 x 84 numbers
    assert model.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.05)
    for layer in (model.cls_score, model.bbox_pred):
        assert abs(layer.weight.mean().item()) < 0.05 * layer.weight.std().item()
        assert not layer.bias.any()
    assert torch.equal(model.delta_mean, torch.zeros(21, 4))
    assert torch.equal(model.delta_std, torch.ones(21, 4))
