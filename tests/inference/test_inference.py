"""Detection: chunks, scales, pictures without proposals, several pictures at a time."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastrcnn.inference import detect as module
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN, nearest_level, round_weights, scaled_rois
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Batch, Detections, Sample

ALL = DetectionSettings(score_threshold=0.0, nms_iou=2.0, max_per_image=None)  # nothing is dropped


def detect_batch(
    model: FastRCNN, pyramid: list[Batch], settings: DetectionSettings, dtype: torch.dtype = torch.float32
) -> list[Detections]:
    return module.detect_batch(TorchNetwork(model, dtype), pyramid, settings)


def sample(image_id: str, height: int, width: int) -> Sample:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Sample(image_id, Path(f"{image_id}.jpg"), width, height, *nothing)


def batch_of(pictures: list[Tensor], proposals: list[Tensor], scales: list[float] | None = None) -> Batch:
    """Pictures (3, H, W), padded to the largest; each was `scale` times as small before."""
    scales = scales or [1.0] * len(pictures)
    sizes = [p.shape[1:] for p in pictures]
    images = torch.zeros(len(pictures), 3, max(h for h, _ in sizes), max(w for _, w in sizes), dtype=torch.uint8)
    for i, p in enumerate(pictures):
        images[i, :, : p.shape[1], : p.shape[2]] = p
    return Batch(
        images=images,
        sizes=torch.tensor([tuple(s) for s in sizes]),
        scales=torch.tensor(scales),
        proposals=proposals,
        boxes=[torch.zeros(0, 4)] * len(pictures),
        labels=[torch.zeros(0, dtype=torch.long)] * len(pictures),
        samples=[
            sample(str(i), round(h / s), round(w / s)) for i, ((h, w), s) in enumerate(zip(sizes, scales, strict=True))
        ],
    )


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def some_rois(n: int, extent: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * extent / 2
    return torch.cat((corner, corner + 4 + torch.rand(n, 2, generator=generator) * (extent / 2 - 4)), dim=1)


@pytest.fixture
def model() -> FastRCNN:
    """A network whose outputs differ from RoI to RoI."""
    torch.manual_seed(0)
    built = FastRCNN(3, width=0.03, roi_size=3)
    with torch.no_grad():
        built.cls_score.weight.normal_(std=0.5)
        built.bbox_pred.weight.normal_(std=0.3)
        built.delta_std.fill_(0.1)
    return built.eval()


def constant_model(class_scores: list[float], deltas: Tensor) -> FastRCNN:
    """A network that says the same about every RoI: logits, and normalised deltas (classes + 1, 4)."""
    built = FastRCNN(len(class_scores) - 1, width=0.03, roi_size=1)
    with torch.no_grad():
        built.cls_score.weight.zero_()
        built.cls_score.bias.copy_(torch.tensor(class_scores))
        built.bbox_pred.weight.zero_()
        built.bbox_pred.bias.copy_(deltas.flatten())
    return built.eval()


def indexed(boxes: Tensor) -> Tensor:
    """Half-open boxes (R, 4) of the first image as RoIs for the network."""
    return scaled_rois(torch.cat((torch.zeros(len(boxes), 1), boxes), dim=1), "fast_rcnn")


def in_order(found: Detections) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, scores and boxes by label and place: RoIs of the same cells have scores that differ by rounding only."""
    keys = torch.cat((found.labels[:, None].float(), found.boxes), dim=1).numpy().round(2)
    order = torch.from_numpy(np.lexsort(keys.T[::-1]))
    return found.labels[order], found.scores[order], found.boxes[order]


def assert_same(found: Detections, expected: Detections) -> None:
    assert len(expected) > 0
    for a, b in zip(in_order(found), in_order(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3 if b.dim() == 2 else 1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_chunks_give_what_one_piece_gives(model: FastRCNN, chunk: int) -> None:
    batch = batch_of([picture(48, 64)], [some_rois(20, 48)])
    whole = detect_batch(model, [batch], ALL)[0]
    assert whole.scores.unique().numel() > 10
    assert_same(detect_batch(model, [batch], replace(ALL, rois_per_chunk=chunk))[0], whole)


def test_outputs_are_probabilities_and_deltas_in_the_units_of_decoding() -> None:
    """Normalised deltas 2 with mean 1 and deviation 3 are 7."""
    model = constant_model([0.0, np.log(3)], torch.full((2, 4), 2.0))
    model.delta_mean.fill_(1.0)
    model.delta_std.fill_(3.0)
    with torch.no_grad():
        maps = model.features(picture(32, 32)[None])
        probabilities, deltas = TorchNetwork(model).roi_outputs(maps, indexed(some_rois(5, 32)))
    torch.testing.assert_close(probabilities, torch.tensor([[0.25, 0.75]]).expand(5, 2))
    torch.testing.assert_close(deltas, torch.full((5, 2, 4), 7.0))


def test_boxes_come_back_in_the_images_own_pixels() -> None:
    """A picture of 40 x 60 pixels, shown at twice its size; the regression moves by half a width to the right."""
    shift = torch.zeros(2, 4)
    shift[1, 0] = 0.5
    model = constant_model([0.0, 5.0], shift)
    batch = batch_of([picture(80, 120)], [torch.tensor([[10.0, 5, 30, 35], [40, 10, 60, 40]])], scales=[2.0])
    found = detect_batch(model, [batch], ALL)[0]
    expected = [[20.0, 5, 40, 35], [50, 10, 60, 40]]  # the second is clipped at the picture's 60
    assert sorted(found.boxes.tolist()) == expected


def test_a_picture_without_proposals_has_no_detections(model: FastRCNN) -> None:
    batch = batch_of([picture(48, 64), picture(48, 64, 1)], [torch.zeros(0, 4), some_rois(9, 48)])
    empty, other = detect_batch(model, [batch], ALL)
    assert len(empty) == 0
    assert empty.boxes.shape == (0, 4)
    assert empty.labels.dtype == torch.int64
    assert len(other) > 0


def test_pictures_of_one_size_together_are_as_one_at_a_time(model: FastRCNN) -> None:
    pictures, rois = [picture(48, 64, 0), picture(48, 64, 1)], [some_rois(9, 48, 0), some_rois(5, 48, 1)]
    together = detect_batch(model, [batch_of(pictures, rois)], ALL)
    for i in range(2):
        assert_same(together[i], detect_batch(model, [batch_of([pictures[i]], [rois[i]])], ALL)[0])
    assert len(together[0]) != len(together[1])


def test_a_picture_padded_in_a_batch_is_as_alone_where_its_border_is_far(model: FastRCNN) -> None:
    """A cell of conv5_3 sees 196 pixels, 98 to each side: RoIs in the first 64 pixels know nothing of column 176."""
    small, large = picture(64, 176, 0), picture(64, 224, 1)
    near = some_rois(8, 56)
    together = detect_batch(model, [batch_of([small, large], [near, near])], ALL)
    assert_same(together[0], detect_batch(model, [batch_of([small], [near])], ALL)[0])
    assert_same(together[1], detect_batch(model, [batch_of([large], [near])], ALL)[0])


def test_what_lies_in_the_padding_does_not_matter(model: FastRCNN) -> None:
    batch = batch_of([picture(48, 48), picture(48, 64, 1)], [some_rois(9, 48), some_rois(9, 48)])
    expected = detect_batch(model, [batch], ALL)[0]
    dirty = batch.images.clone()
    dirty[0, :, :, 48:] = 200
    assert_same(detect_batch(model, [replace(batch, images=dirty)], ALL)[0], expected)


def test_settings_reach_the_postprocessing(model: FastRCNN) -> None:
    batch = batch_of([picture(48, 64)], [some_rois(30, 48)])
    everything = detect_batch(model, [batch], ALL)[0]
    limit = everything.scores.median().item()
    assert (detect_batch(model, [batch], replace(ALL, score_threshold=limit))[0].scores >= limit).all()
    assert len(detect_batch(model, [batch], replace(ALL, max_per_image=4))[0]) == 4
    assert len(detect_batch(model, [batch], replace(ALL, max_per_class=1))[0]) == 3
    assert len(detect_batch(model, [batch], replace(ALL, nms_iou=0.1))[0]) < len(everything)


def test_detect_goes_through_batches_in_order_in_eval_mode(model: FastRCNN) -> None:
    model.train()
    batches = [batch_of([picture(32, 32, i)], [some_rois(3, 32, i)]) for i in range(3)]
    batches = [replace(b, samples=[sample(f"picture {i}", 32, 32)]) for i, b in enumerate(batches)]
    found = list(module.detect(TorchNetwork(model), [[b] for b in batches], ALL))
    assert [s.image_id for s, _ in found] == ["picture 0", "picture 1", "picture 2"]
    assert not model.training
    for i, (_, detections) in enumerate(found):
        assert_same(detections, detect_batch(model, [batches[i]], ALL)[0])
        assert not detections.scores.requires_grad


def test_bfloat16_gives_about_the_same_scores(model: FastRCNN) -> None:
    rois = some_rois(10, 48)
    batch = batch_of([picture(48, 64)], [rois])
    with torch.no_grad():
        maps = model.features(batch.images, batch.sizes)
        exact = TorchNetwork(model).roi_outputs(maps, indexed(rois))[0]
        rounded = TorchNetwork(model, torch.bfloat16).roi_outputs(maps, indexed(rois))[0]
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_weights_rounded_for_good_detect_what_autocast_does_to_the_last_bit(batch_norm: bool) -> None:
    torch.manual_seed(0)
    model = FastRCNN(3, width=0.03, batch_norm=batch_norm, roi_size=3, fc6_rank=5).eval()
    rounded = deepcopy(model)
    round_weights(rounded, torch.bfloat16)
    kept = {name for name, t in rounded.state_dict().items() if t.dtype == torch.float32}
    assert {"delta_mean", "delta_std", "pixel_mean", "pixel_std"} <= kept
    assert not any("conv" in name or "fc" in name or "score" in name or "pred" in name for name in kept - norms(model))
    assert norms(model) <= kept
    batch = batch_of([picture(48, 64)], [some_rois(20, 48)])
    want, found = (detect_batch(m, [batch], ALL, torch.bfloat16)[0] for m in (model, rounded))
    assert want.scores.unique().numel() > 10
    assert torch.equal(found.scores, want.scores)
    assert torch.equal(found.boxes, want.boxes)


def norms(model: FastRCNN) -> set[str]:
    """Names of what normalisations hold that is no counter."""
    return {name for name, t in model.state_dict().items() if ".norms." in name and t.is_floating_point()}


def test_weights_are_rounded_once_for_all_chunks_of_a_picture(model: FastRCNN) -> None:
    """Else fc6's 103 million would be rounded for every chunk."""
    batch = batch_of([picture(48, 64)], [some_rois(20, 48)])
    rounded: list[int] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0] is model.head.fc6.weight:
                rounded.append(1)
            return func(*args, **(kwargs or {}))

    with Counting():
        detect_batch(model, [batch], replace(ALL, rois_per_chunk=5), torch.bfloat16)
    assert len(rounded) == 1


def test_pooled_rois_reach_fc6_as_rows_that_need_no_copy(model: FastRCNN) -> None:
    seen = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
    detect_batch(model, [batch_of([picture(48, 64)], [some_rois(9, 48)])], ALL)
    assert seen == [True]


def test_rois_of_the_same_cells_go_through_the_network_once(model: FastRCNN) -> None:
    """Boxes that differ by less than rounding at 1/16 shows: one row in the head, each its own box in the result."""
    boxes = torch.tensor([[0.0, 0, 40, 40], [1, 2, 40, 39], [0, 0, 40, 40], [20, 20, 60, 44], [3, 3, 62, 46]])
    inclusive = boxes.numpy() - (0, 0, 1, 1)
    distinct = len(np.unique(np.floor(inclusive / 16 + 0.5), axis=0))
    assert distinct == 3
    rows = []
    model.head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    batch = batch_of([picture(48, 64)], [boxes])
    found = detect_batch(model, [batch], ALL)[0]
    assert rows == [distinct]
    alone = [detect_batch(model, [batch_of([picture(48, 64)], [b[None]])], ALL)[0] for b in boxes]
    want = Detections(*(torch.cat([getattr(d, f) for d in alone]) for f in ("boxes", "scores", "labels")))
    assert_same(found, want)


def test_a_picture_shown_larger_gives_the_rois_of_larger_boxes(model: FastRCNN) -> None:
    """The box is made inclusive in its own pixels and then scaled: x2 = (30 - 1) * 1.6, not 30 * 1.6 - 1."""
    seen = []
    classify = model.classify
    model.classify = lambda maps, rois: (seen.append(rois), classify(maps, rois))[1]  # type: ignore[method-assign]
    batch = batch_of([picture(80, 96)], [torch.tensor([[5.0, 10, 30, 50]])], scales=[1.6])
    detect_batch(model, [batch], ALL)
    assert seen[0].tolist() == [[0.0, *np.float32([8.0, 16.0, 46.4, 78.4]).tolist()]]


@pytest.mark.parametrize(
    ("side", "level"),
    # Sides that become 224 at the five scales of the paper: 280, 233, 195, 156, 112. Between two of them the nearer
    # area decides: 224^2 lies between side^2 s^2 of the two.
    [(1000, 0), (280, 0), (254, 0), (233, 1), (195, 2), (180, 2), (156, 3), (112, 4), (1, 4)],
)
def test_a_roi_takes_the_scale_where_its_area_is_nearest_224_squared(side: int, level: int) -> None:
    scales = torch.tensor([480, 576, 688, 864, 1200], dtype=torch.float64) / 600
    roi = torch.tensor([[10.0, 20, 10 + side, 20 + side]])
    distances = [abs((side * s / 600) ** 2 - 224**2) for s in (480, 576, 688, 864, 1200)]
    assert distances.index(min(distances)) == level, "by hand"
    assert nearest_level(roi, scales).tolist() == [level]
    assert nearest_level(torch.tensor([[0.0, 0, side / 2, 2 * side]]), scales).tolist() == [level], "areas, not sides"


def test_each_roi_of_a_pyramid_is_pooled_from_its_own_scale(model: FastRCNN) -> None:
    """As if its level were the only one; the order of the RoIs stays."""
    small, large = picture(120, 160), picture(240, 320, seed=1)
    corner = some_rois(14, 60)[:, :2]
    size = torch.tensor([30.0, 110, 20, 100, 105, 25, 60, 118, 10, 90, 111, 33, 107, 45])[:, None]
    rois = torch.cat((corner, corner + size), dim=1)
    pyramid = [batch_of([small], [rois]), batch_of([large], [rois], [2.0])]
    pyramid[0] = replace(pyramid[0], scales=torch.tensor([4.0]))  # a pretended scale: 224 is reached at 56 and at 112
    found = detect_batch(model, pyramid, replace(ALL, box_regression=False))[0]
    level = [0 if abs((4 * s) ** 2 - 224**2) <= abs((2 * s) ** 2 - 224**2) else 1 for s in size.flatten().tolist()]
    assert 3 < sum(level) < 11
    expected = [
        detect_batch(model, [replace(pyramid[j], proposals=[rois[i : i + 1]])], replace(ALL, box_regression=False))[0]
        for i, j in enumerate(level)
    ]
    for i, alone in enumerate(expected):
        box = rois[i].clamp(max=torch.tensor([160.0, 120, 160, 120]))
        rows = (found.boxes - box).abs().amax(dim=1) < 0.001
        assert rows.sum() == 3
        torch.testing.assert_close(found.scores[rows].sort().values, alone.scores.sort().values, rtol=1e-4, atol=1e-6)
    assert torch.cat([e.scores for e in expected]).unique().numel() > 10


def test_a_picture_without_proposals_has_no_detections_at_several_scales_either(model: FastRCNN) -> None:
    nothing = [torch.zeros(0, 4)]
    pyramid = [batch_of([picture(48, 64)], nothing), batch_of([picture(96, 128)], nothing, [2.0])]
    assert len(detect_batch(model, pyramid, ALL)[0]) == 0


def test_without_box_regression_rois_are_the_boxes(model: FastRCNN) -> None:
    rois = some_rois(6, 48)
    batch = batch_of([picture(48, 64)], [rois])
    found = detect_batch(model, [batch], replace(ALL, box_regression=False))[0]
    for label in (1, 2, 3):
        boxes = found.boxes[found.labels == label]
        torch.testing.assert_close(boxes[boxes[:, 0].argsort()], rois[rois[:, 0].argsort()])
    moved = detect_batch(model, [batch], ALL)[0]
    assert (moved.boxes[:, None] - rois[None]).abs().amax(dim=2).min() > 0.001, "the network would have moved them"
