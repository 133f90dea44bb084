from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastrcnn.ops import batched_nms, nms
from fastrcnn.ops.nms import one_by_one, suppress, together


def by_hand(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> list[int]:
    """Every pair looked at, in float64."""
    b, kept = boxes.double().tolist(), []
    for i in sorted(range(len(b)), key=lambda i: -scores[i].item()):
        for j in kept:
            if groups[i] != groups[j]:
                continue
            wide = min(b[i][2], b[j][2]) - max(b[i][0], b[j][0])
            high = min(b[i][3], b[j][3]) - max(b[i][1], b[j][1])
            both = max(wide, 0) * max(high, 0)
            areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (b[i], b[j])]
            if both / (sum(areas) - both) >= threshold:
                break
        else:
            kept.append(i)
    return kept


def test_equals_every_pair_looked_at() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        corners = torch.rand(120, 2, generator=g) * 60
        boxes = torch.cat([corners, corners + 5 + torch.rand(120, 2, generator=g) * 30], 1)
        scores, groups = torch.rand(120, generator=g), torch.randint(3, (120,), generator=g)
        assert batched_nms(boxes, scores, groups, 0.3).tolist() == by_hand(boxes, scores, groups, 0.3)


@pytest.mark.parametrize(
    ("threshold", "other", "stays"),
    [
        (0.5, [0, 0, 10, 5], False),  # an IoU of exactly 1/2
        (0.5, [0, 0, 10, 4.999], True),
        (0.3, [0, 0, 10, 3], False),  # 3/10, which float32 rounds upwards
        (0.7, [0, 0, 10, 7], False),  # 7/10, which float32 rounds downwards
    ],
)
def test_a_box_at_the_threshold_goes(threshold: float, other: list[float], stays: bool) -> None:
    boxes = torch.tensor([[0, 0, 10, 10], other], dtype=torch.float32)
    kept = batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2).long(), threshold)
    assert kept.tolist() == ([0, 1] if stays else [0])


def test_groups_do_not_touch_and_the_best_comes_first() -> None:
    boxes = torch.tensor([[0, 0, 9, 9.0]]).repeat(4, 1)
    kept = batched_nms(boxes, torch.tensor([0.1, 0.7, 0.4, 0.4]), torch.tensor([1, 0, 1, 2]), 0.5)
    assert kept.tolist() == [1, 2, 3]


def test_one_call_for_all_groups_keeps_the_same_boxes() -> None:
    """This is the GPU's way. The same boxes are in several groups, so groups that touched would suppress them."""
    g = torch.Generator().manual_seed(0)
    names = torch.tensor([-5, 7, 10**12])
    for scale in (0.01, 1, 1e5):
        corners = torch.rand(60, 2, generator=g) * 60 - 20
        boxes = torch.cat([corners, corners + 5 + torch.rand(60, 2, generator=g) * 30], 1) * scale
        boxes = torch.cat([boxes, boxes, torch.tensor([[float("nan")] * 4, [0, 0, float("inf"), 5]])])
        scores, groups = torch.rand(122, generator=g), names[torch.randint(3, (122,), generator=g)]
        kept = one_by_one(boxes, scores, groups, 0.3)
        assert 20 < len(kept) < 110
        assert sorted(together(boxes, scores, groups, 0.3).tolist()) == sorted(kept.tolist())
    nothing = torch.zeros(0)
    assert together(torch.zeros(0, 4), nothing, nothing.long(), 0.3).tolist() == []


@pytest.mark.gpu
def test_gpu_keeps_the_cpus_boxes() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    g = torch.Generator().manual_seed(0)
    corners = torch.rand(3000, 2, generator=g) * 600
    boxes = torch.cat([corners, corners + 5 + torch.rand(3000, 2, generator=g) * 300], 1)
    scores, groups = torch.rand(3000, generator=g), torch.randint(20, (3000,), generator=g)
    want = batched_nms(boxes, scores, groups, 0.3)
    assert torch.equal(batched_nms(boxes.cuda(), scores.cuda(), groups.cuda(), 0.3).cpu(), want)


def test_nms_is_of_one_group() -> None:
    """The second box overlaps the first by exactly 1/2, which is too much here and not for torchvision's nms."""
    boxes, scores = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10.0]]), torch.tensor([0.8, 0.7, 0.9])
    assert nms(boxes, scores, 0.5).tolist() == [2, 0]
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [2, 0, 1]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []


def test_nothing() -> None:
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), 0.5).tolist() == []


def test_names_the_argument() -> None:
    good = (torch.zeros(2, 4), torch.zeros(2), torch.zeros(2).long())
    for i, name in enumerate(("boxes", "scores", "groups")):
        wrong = list(good)
        wrong[i] = torch.zeros(3)
        with pytest.raises(ValueError, match=f"^{name}: expected the shape"):
            batched_nms(*wrong, 0.5)
        wrong[i] = [1.0, 2.0]
        with pytest.raises(TypeError, match=f"^{name}: expected a tensor, got list"):
            batched_nms(*wrong, 0.5)
    with pytest.raises(ValueError, match=r"^boxes: expected the shape \(R, 4\), got \(2,\)"):
        nms(good[1], good[1], 0.5)
    with pytest.raises(ValueError, match=r"^scores: expected a tensor on cpu, the device of boxes, got meta"):
        nms(good[0], good[1].to("meta"), 0.5)
    for threshold in (float("nan"), "a", None, True):
        with pytest.raises(ValueError, match=f"^iou_threshold: expected a number, got {threshold!r}"):
            nms(*good[:2], threshold)  # type: ignore[arg-type]


class Computed(TorchDispatchMode):
    """Counts the numbers that operators return."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self.numbers += sum(leaf.numel() for leaf in tree_leaves(returned) if isinstance(leaf, Tensor))
        return returned


def test_many_groups_are_hardly_more_work_than_few() -> None:
    corners = torch.arange(400)[:, None] * 10.0 + torch.zeros(2)
    boxes, scores = torch.cat((corners, corners + 5), 1), torch.arange(400) / 400
    work = []
    for groups in (2, 200):
        with Computed() as computed:
            assert len(suppress(boxes, scores, torch.arange(400) % groups, 0.5)) == 400
        work.append(computed.numbers)
    assert work[1] < 4 * work[0], work
