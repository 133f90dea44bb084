"""Sampling of RoIs: counts, thresholds, targets against a transcription in numpy, statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastrcnn.model.sampling import RoISampler, choose, delta_statistics, match
from fastrcnn.settings import SolverSettings
from fastrcnn.structures import RoITargets

NONE = torch.zeros(0, 4)
TRUTH = torch.tensor([[0.0, 0, 100, 100]])


def of_iou(*overlaps: float) -> Tensor:
    """RoIs that overlap TRUTH by exactly so much: slices of it."""
    return torch.tensor([[0.0, 0, 100 * v, 100] for v in overlaps])


def sampler(classes: int = 3, **options: object) -> RoISampler:
    settings = SolverSettings(**options)  # type: ignore[arg-type]
    return RoISampler(torch.zeros(classes + 1, 4), torch.ones(classes + 1, 4), settings)


def draw(
    s: RoISampler, proposals: Tensor, truth: Tensor = TRUTH, label: int = 2, seed: int = 0
) -> tuple[Tensor, RoITargets]:
    labels = torch.full((len(truth),), label, dtype=torch.long)
    return s([proposals], [truth], [labels], [seed])


def numpy_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.zeros((len(a), len(b)))
    for i, (a1, b1, a2, b2) in enumerate(a.astype(np.float64)):
        for j, (c1, d1, c2, d2) in enumerate(b.astype(np.float64)):
            w, h = max(min(a2, c2) - max(a1, c1), 0), max(min(b2, d2) - max(b1, d1), 0)
            out[i, j] = w * h / ((a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - w * h)
    return out


def numpy_encode(rois: np.ndarray, truth: np.ndarray) -> np.ndarray:
    r, t = rois.astype(np.float64), truth.astype(np.float64)
    rw, rh, tw, th = r[:, 2] - r[:, 0], r[:, 3] - r[:, 1], t[:, 2] - t[:, 0], t[:, 3] - t[:, 1]
    dx = ((t[:, 0] + t[:, 2]) / 2 - (r[:, 0] + r[:, 2]) / 2) / rw
    dy = ((t[:, 1] + t[:, 3]) / 2 - (r[:, 1] + r[:, 3]) / 2) / rh
    return np.stack((dx, dy, np.log(tw / rw), np.log(th / rh)), axis=1)


def crowd(n: int, truth: Tensor, seed: int) -> Tensor:
    """Proposals scattered about the truth, so that overlaps of all sizes occur."""
    generator = torch.Generator().manual_seed(seed)
    base = truth[torch.randint(len(truth), (n,), generator=generator)]
    moved = base + torch.randn(n, 4, generator=generator) * 15
    return torch.cat((torch.minimum(moved[:, :2], moved[:, 2:] - 5), moved[:, 2:]), dim=1)


def test_sixteen_of_sixty_four_are_foreground() -> None:
    rois, targets = draw(sampler(), of_iou(*[0.9] * 50, *[0.3] * 200))
    assert rois.shape == (64, 5)
    assert (targets.labels == 2).sum() == 16
    assert (targets.labels == 0).sum() == 48
    assert rois[targets.labels == 0, 3].tolist() == [30.0] * 48


def test_too_few_foreground_leave_their_places_to_the_background() -> None:
    rois, targets = draw(sampler(), of_iou(0.9, 0.6, *[0.3] * 200))
    assert (targets.labels > 0).sum() == 3, "two proposals and the truth"
    assert len(rois) == 64


def test_too_few_background_leave_the_batch_short() -> None:
    rois, targets = draw(sampler(), of_iou(*[0.9] * 50, 0.3, 0.2))
    assert (targets.labels > 0).sum() == 16
    assert len(rois) == 18


def test_other_sizes_and_fractions() -> None:
    _, targets = draw(sampler(rois_per_image=20, fg_fraction=0.5), of_iou(*[0.9] * 50, *[0.3] * 50))
    assert (targets.labels > 0).sum() == 10
    assert len(targets.labels) == 20


def test_the_truth_joins_the_proposals_with_target_zero() -> None:
    rois, targets = draw(sampler(), NONE)
    assert rois.tolist() == [[0, 0, 0, 100, 100]]
    assert targets.labels.tolist() == [2]
    assert targets.deltas.tolist() == [[0, 0, 0, 0]]


def test_an_image_without_truth_gives_background_only_where_overlap_zero_is_allowed() -> None:
    rois, targets = draw(sampler(), of_iou(0.3, 0.9), truth=NONE)
    assert rois.shape == (0, 5)
    assert targets.deltas.shape == (0, 4)
    rois, targets = draw(sampler(bg_iou=(0.0, 0.5)), of_iou(0.3, 0.9), truth=NONE)
    assert len(rois) == 2
    assert targets.labels.tolist() == [0, 0]


def test_an_image_with_nothing_gives_nothing() -> None:
    rois, targets = draw(sampler(), NONE, truth=NONE)
    assert rois.shape == (0, 5)
    assert targets.labels.shape == (0,)
    assert targets.labels.dtype == torch.long


def test_thresholds_at_their_boundaries() -> None:
    """Foreground from .5 on; background from .1 on, below .5. The slices' overlaps are exact in float32."""
    eighths = torch.tensor([[0.0, 0, 64 * v, 64] for v in (0.125, 0.109375, 0.5, 0.484375)])
    truth = torch.tensor([[0.0, 0, 64, 64]])
    rois, targets = draw(sampler(bg_iou=(0.125, 0.5)), eighths, truth)
    by_width = dict(zip(rois[:, 3].tolist(), targets.labels.tolist(), strict=True))
    assert by_width == {64.0: 2, 32.0: 2, 31.0: 0, 8.0: 0}, "7 / 64 is neither"


def test_the_gap_between_background_and_foreground_is_left_out() -> None:
    rois, _ = draw(sampler(fg_iou=0.7, bg_iou=(0.1, 0.3)), of_iou(0.8, 0.5, 0.4, 0.2))
    assert sorted(rois[:, 3].tolist()) == pytest.approx([20, 80, 100])


def test_no_roi_is_drawn_twice_and_all_are_equally_likely() -> None:
    proposals = of_iou(*np.linspace(0.11, 0.49, 39).tolist())
    s = sampler(rois_per_image=13, fg_fraction=0.0)
    counts = torch.zeros(39)
    for seed in range(600):
        rois, _ = draw(s, proposals, seed=seed)
        drawn = torch.cdist(rois[:, 3:4], proposals[:, 2:3]).argmin(dim=1)
        assert len(set(drawn.tolist())) == 13
        counts[drawn] += 1
    assert counts.sum() == 600 * 13
    assert (counts - 200).abs().max() < 70, "each a third of the time; six standard deviations"


def test_the_seed_alone_decides() -> None:
    proposals = of_iou(*[0.9] * 30, *np.linspace(0.11, 0.49, 100).tolist())
    torch.manual_seed(1)
    first, _ = draw(sampler(), proposals, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, _ = draw(sampler(), proposals, seed=5)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, draw(sampler(), proposals, seed=6)[0])


def test_an_images_draw_does_not_depend_on_the_batch() -> None:
    proposals = of_iou(*[0.9] * 30, *np.linspace(0.11, 0.49, 100).tolist())
    label = torch.tensor([1])
    s = sampler()
    both, _ = s([proposals, proposals], [TRUTH, TRUTH], [label, label], [3, 4])
    for i, seed in enumerate((3, 4)):
        alone, _ = draw(s, proposals, label=1, seed=seed)
        assert torch.equal(both[both[:, 0] == i][:, 1:], alone[:, 1:])
    assert not torch.equal(both[:64, 1:], both[64:, 1:])


def test_images_keep_their_index_and_their_own_truth() -> None:
    """The second image has none; the third's truth lies where the first's has nothing."""
    away = TRUTH + 500
    s = sampler()
    rois, targets = s(
        [of_iou(0.9, 0.3), of_iou(0.9), of_iou(0.9) + 500],
        [TRUTH, NONE, away],
        [torch.tensor([1]), torch.zeros(0, dtype=torch.long), torch.tensor([3])],
        [0, 0, 0],
    )
    assert rois[:, 0].tolist() == [0, 0, 0, 2, 2]
    assert targets.labels.tolist() == [1, 1, 0, 3, 3]


def test_targets_are_those_of_a_plain_transcription() -> None:
    truth = torch.tensor([[10.0, 10, 80, 60], [50, 40, 150, 140], [120, 10, 170, 90]])
    labels = torch.tensor([3, 1, 3])
    proposals = crowd(400, truth, seed=1)
    generator = torch.Generator().manual_seed(2)
    mean = torch.randn(4, 4, generator=generator) * 0.1
    std = torch.rand(4, 4, generator=generator) + 0.1
    s = RoISampler(mean, std, SolverSettings(rois_per_image=128))
    rois, targets = s([proposals], [truth], [labels], [2])

    overlap = numpy_iou(rois[:, 1:].numpy(), truth.numpy())
    best, owner = overlap.max(axis=1), overlap.argmax(axis=1)
    foreground = best >= 0.5
    assert foreground.sum() == 32
    np.testing.assert_array_equal(targets.labels.numpy(), np.where(foreground, labels.numpy()[owner], 0))
    assert (best[~foreground] >= 0.1).all()
    own = targets.labels.numpy()
    raw = numpy_encode(rois[:, 1:].numpy(), truth.numpy()[owner])
    expected = np.where(foreground[:, None], (raw - mean.numpy()[own]) / std.numpy()[own], 0)
    np.testing.assert_allclose(targets.deltas.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_match_by_hand() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]])
    overlap, index = match(torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 18], [50, 50, 60, 60]]), truth)
    assert overlap.tolist() == pytest.approx([0.9, 0.9, 0])
    assert index.tolist()[:2] == [0, 1]


def test_choose_takes_all_in_order_where_there_are_no_more() -> None:
    candidates = torch.tensor([7, 3, 5])
    assert choose(candidates, 3, torch.Generator()).tolist() == [7, 3, 5]
    assert choose(candidates, 0, torch.Generator()).tolist() == []


@pytest.mark.parametrize("flip", [False, True])
def test_statistics_are_numpys_over_the_targets_of_the_pictures_and_their_mirror_images(flip: bool) -> None:
    width = 200.0
    pictures = []
    for seed in range(3):
        truth = torch.tensor([[10.0, 10, 80, 60], [50, 40, 150, 140]]) + seed
        pictures.append((crowd(60, truth, seed), truth, torch.tensor([1, 3])))
    mean, std = delta_statistics(pictures, num_classes=4, flip=flip)

    collected: dict[int, list[np.ndarray]] = {c: [] for c in range(5)}
    for proposals, truth, labels in pictures:
        for mirrored in (False, True) if flip else (False,):
            rois, own = torch.cat((proposals, truth)).numpy().copy(), truth.numpy().copy()
            if mirrored:
                for boxes in (rois, own):
                    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            overlap = numpy_iou(rois, own)
            for k in np.flatnonzero(overlap.max(axis=1) >= 0.5):
                g = overlap[k].argmax()
                collected[int(labels[g])].append(numpy_encode(rois[k : k + 1], own[g : g + 1])[0])
    for c in (1, 3):
        assert len(collected[c]) > 20
        values = np.stack(collected[c])
        np.testing.assert_allclose(mean[c].numpy(), values.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(std[c].numpy(), values.std(axis=0), rtol=1e-4)
    for c in (0, 2, 4):
        assert mean[c].tolist() == [0] * 4
        assert std[c].tolist() == [1] * 4, "classes without targets are left as they are"
    if flip:
        assert mean[[1, 3], 0].abs().max() < 1e-5, "mirror images cancel sideways shifts"


def test_a_deviation_of_zero_becomes_one() -> None:
    """Only the truth has a target, and it is 0; and a class whose proposals differ in one direction only."""
    truth = torch.tensor([[0.0, 0, 100, 100], [200, 0, 300, 100]])
    proposals = torch.tensor([[200.0, 0, 290, 100]])
    mean, std = delta_statistics([(proposals, truth, torch.tensor([1, 2]))], num_classes=2, flip=False)
    assert mean[1].tolist() == [0, 0, 0, 0]
    assert std[1].tolist() == [1, 1, 1, 1]
    assert mean[2].tolist() == pytest.approx([5 / 90 / 2, 0, np.log(100 / 90) / 2, 0])
    assert std[2].tolist() == pytest.approx([5 / 90 / 2, 1, np.log(100 / 90) / 2, 1])


def test_statistics_of_pictures_without_truth() -> None:
    mean, std = delta_statistics([(of_iou(0.3), NONE, torch.zeros(0, dtype=torch.long))], num_classes=1)
    assert not mean.any()
    assert (std == 1).all()
    assert mean.dtype == std.dtype == torch.float32


def test_normalised_targets_of_the_whole_set_have_mean_zero_and_deviation_one() -> None:
    truth = torch.tensor([[10.0, 10, 80, 60], [100, 40, 180, 140]])
    picture = (crowd(300, truth, 3), truth, torch.tensor([1, 2]))
    mean, std = delta_statistics([picture], num_classes=2, flip=False)
    every = RoISampler(mean, std, SolverSettings(rois_per_image=1000, fg_fraction=1.0))
    _, targets = every([picture[0]], [truth], [picture[2]], [0])
    for c in (1, 2):
        own = targets.deltas[targets.labels == c]
        assert len(own) > 50
        assert own.mean(dim=0).tolist() == pytest.approx([0] * 4, abs=1e-4)
        assert own.std(dim=0, unbiased=False).tolist() == pytest.approx([1] * 4, abs=1e-4)


def test_class_agnostic_statistics_are_those_of_all_classes_together() -> None:
    rng = np.random.default_rng(3)
    truth = torch.tensor([[10.0, 10, 60, 50], [80, 20, 130, 90]])
    rois = torch.from_numpy(np.repeat(truth.numpy(), 20, axis=0) + rng.uniform(-6, 6, (40, 4)).astype(np.float32))
    labels = torch.tensor([1, 3])
    mean, std = delta_statistics([(rois, truth, labels)], 3, flip=False, class_agnostic=True)
    best = np.repeat(truth.numpy(), 20, axis=0).astype(np.float64)
    boxes = np.concatenate((rois.numpy(), truth.numpy())).astype(np.float64)
    owners = np.concatenate((best, truth.numpy()))
    size, own = boxes[:, 2:] - boxes[:, :2], owners[:, 2:] - owners[:, :2]
    centre, target = boxes[:, :2] + size / 2, owners[:, :2] + own / 2
    deltas = np.concatenate(((target - centre) / size, np.log(own / size)), axis=1)
    np.testing.assert_allclose(mean.numpy(), np.tile(deltas.mean(0), (4, 1)), atol=1e-6)
    np.testing.assert_allclose(std.numpy(), np.tile(deltas.std(0), (4, 1)), atol=1e-6)
