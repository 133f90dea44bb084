"""Maps of frozen layers that are computed once: what is learned is what pixels would have taught."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from a_run import a_run, noisy_images
from torch import Tensor

from fastrcnn.config.schema import TrainConfig
from fastrcnn.data import dataset as dataset_module
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import training_loader
from fastrcnn.data.transforms import Augmentation, show
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN, freeze_before
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel.signals import Stop, Stopped
from fastrcnn.settings import DetectionSettings, SolverSettings
from fastrcnn.structures import Batch, Sample, View
from fastrcnn.training import maps as maps_module
from fastrcnn.training import run as run_module
from fastrcnn.training.loop import Schedule
from fastrcnn.training.maps import MapFiles, Maps, open_maps
from fastrcnn.training.optim import make_optimizer
from fastrcnn.training.run import Settings, TrainingRun

CLASSES = 2
BUDGET = 1e8
PLAIN = Augmentation((48,), 100, flip=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    return noisy_images(tmp_path_factory.mktemp("images"), PLAIN, (0, 48))


def tiny(first: str = "fc6", **options: Any) -> FastRCNN:
    """A network whose layers before `first` are frozen."""
    torch.manual_seed(0)
    model = FastRCNN(CLASSES, **({"width": 0.03, "roi_size": 3, "dropout": 0.0} | options))
    model.delta_std.fill_(0.2)
    freeze_before(model, first)
    return model


def sampler() -> RoISampler:
    std = torch.full((CLASSES + 1, 4), 0.2)
    return RoISampler(torch.zeros(CLASSES + 1, 4), std, SolverSettings(rois_per_image=12, bg_iou=[0.0, 0.5]))


@pytest.fixture(autouse=True)
def no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs begin without the statistics of their training set, so that `by_hand` needs none."""
    monkeypatch.setattr(run_module, "initialise", lambda *_: None)


class Trained(TrainingRun):
    """A run whose evaluations are counted, and which may be told to stop after a step."""

    stop_after = 0

    def evaluate(self, step: int) -> None:
        if self.test_set is not None:
            super().evaluate(step)

    def finish_step(self) -> bool:
        super().finish_step()
        return self.done == self.stop_after


def run(
    folder: Path,
    data: DetectionDataset,
    model: FastRCNN,
    cache: float = BUDGET,
    iterations: int = 8,
    images: int = 2,
    stop_after: int = 0,
    stop: Stop | None = None,
    **options: Any,
) -> TrainingRun:
    """A run as `fastrcnn train` has it; it resumes where the folder has a checkpoint."""
    settings = {k: options.pop(k) for k in ("workers", "dtype") if k in options}
    plan = Schedule(iterations, lambda _: 0.02, 11, 1, images_every=4, evaluate_every=options.pop("evaluate_every", 0))
    resumed = (folder / "checkpoints").is_dir()
    made = a_run(
        folder,
        model,
        sampler(),
        plan,
        data,
        kind=Trained,
        optimizer=make_optimizer(model),
        begun=folder.is_dir(),
        resumed=resumed,
        names=["a", "b"],
        config=asdict(TrainConfig()),
        settings=Settings(DetectionSettings(), "voc07", images_per_batch=images, cache=cache, **settings),
        stop=stop or Stop(),
        **options,
    )
    made.tracker.close()
    made.stop_after = stop_after  # type: ignore[attr-defined]
    made.run()
    return made


def weights(model: FastRCNN) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(folder: Path, data: DetectionDataset, model: FastRCNN, half: torch.dtype = torch.float16) -> Tensor:
    """The weights after eight steps that compute each image's maps from its pixels every time, by itself."""

    def inputs(batch: Batch) -> list[Tensor]:
        with torch.no_grad():
            each = [model.frozen_maps(batch.images[i : i + 1]) for i in range(len(batch.images))]
        return [torch.cat(maps).to(half).float().contiguous() for maps in zip(*each, strict=True)]

    found = a_run(folder, model, sampler(), Schedule(8, lambda _: 0.02, 11, images_every=0))
    found.maps = inputs  # type: ignore[assignment]
    found.fit(training_loader(data, 2))
    return weights(model)


MODELS: dict[str, dict[str, Any]] = {
    "head": {},
    "conv5": {"first": "conv5_1"},
    "within a stage": {"first": "conv5_3"},
    "two maps": {"roi_features": ["conv5_3", "conv4_3"]},
    "two maps, one trained": {"first": "conv5_2", "roi_features": ["conv3_3", "conv5_3", "conv4_3"]},
    "normalisation": {"first": "conv4_1", "batch_norm": True},
    "below conv5": {"first": "conv4_2", "roi_features": ["conv4_3"]},
    "caffenet": {"network": "caffenet", "first": "conv4", "roi_features": ["conv5"]},
    "caffenet's head": {"network": "caffenet", "roi_features": ["conv3", "conv5"]},
}


@pytest.mark.parametrize("which", MODELS)
def test_what_frozen_layers_give_completes_to_what_the_whole_network_gives(which: str) -> None:
    model = tiny(**MODELS[which]).eval()
    images = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.features(images)
        frozen = model.frozen_maps(images)
        found = model.features(frozen)
    below, first = model.frozen_layers
    assert len(frozen) == len(below) + (first is not None)
    assert [m.shape for m in found] == [m.shape for m in expected]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("which", MODELS)
def test_training_on_kept_maps_is_training_on_maps_rounded_by_hand(
    which: str, tmp_path: Path, dataset: DetectionDataset
) -> None:
    data = replace(dataset, augmentation=replace(PLAIN, flip=True))
    expected = by_hand(tmp_path, data, tiny(**MODELS[which]))
    model = tiny(**MODELS[which])
    before = weights(model)
    run(tmp_path / "run", data, model)
    assert torch.equal(weights(model), expected)
    plain = tiny(**MODELS[which])
    run(tmp_path / "plain", data, plain, cache=0)
    moved, apart = (weights(plain) - before).norm(), (weights(plain) - weights(model)).norm()
    # Normalisation of channels that hardly vary makes much of a rounding by 2^-12.
    assert 0 < apart < (0.5 if which == "normalisation" else 0.01) * moved
    unrounded = by_hand(tmp_path, data, tiny(**MODELS[which]), torch.float32)
    assert (weights(plain) - unrounded).norm() < 1e-4 * moved


def test_in_bfloat16_nothing_is_lost(tmp_path: Path, dataset: DetectionDataset) -> None:
    kept, plain = tiny("conv5_1"), tiny("conv5_1")
    run(tmp_path / "kept", dataset, kept, images=1, dtype=torch.bfloat16)
    run(tmp_path / "plain", dataset, plain, images=1, cache=0, dtype=torch.bfloat16)
    assert torch.equal(weights(kept), weights(plain))


VARIED = Augmentation((36, 48), 100, flip=True, flip_vertical=True, transpose=True)


def test_every_view_that_training_looks_at_has_its_maps(
    tmp_path: Path, dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirror images, upside down and transposed, at two scales: the maps in the files are those of such pixels."""
    data, model = replace(dataset, augmentation=VARIED), tiny("conv5_1")
    used: list[tuple[Sample, View, list[Tensor]]] = []
    whole = Maps._of

    def watched(self: Maps, batch: Batch, i: int) -> list[Tensor]:
        found = whole(self, batch, i)
        used.append((batch.samples[i], batch.views[i], found))
        return found

    monkeypatch.setattr(Maps, "_of", watched)
    run(tmp_path / "run", data, model, iterations=50)
    seen = {(sample.image_id, view) for sample, view, _ in used}
    assert len({view for _, view in seen}) == 16, "two sides, eight ways to turn"
    for sample, view, found in used[-40:]:
        image = cv2.imread(str(sample.path))[:, :, ::-1]
        image = image.transpose(1, 0, 2) if view.transposed else image
        image = image[:, ::-1] if view.mirrored else image
        image = image[::-1] if view.upside_down else image
        factor = view.short_side / 48
        image = cv2.resize(np.ascontiguousarray(image), None, fx=factor, fy=factor)
        with torch.no_grad():
            maps = model.frozen_maps(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
        assert all(torch.equal(a[0].half(), b) for a, b in zip(maps, found, strict=True))


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """The arguments of all calls of the function from now on."""
    calls: list[Any] = []
    whole: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        return whole(*arguments)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_each_image_is_read_and_computed_once(
    tmp_path: Path, dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five images and their mirror images, in eight epochs with four evaluations on all five."""
    read, computed = (counted(monkeypatch, o, n) for o, n in ((dataset_module, "read_sample"), (Maps, "compute")))
    data = replace(dataset, augmentation=replace(PLAIN, flip=True))
    test = replace(dataset, augmentation=PLAIN)
    made = run(tmp_path / "run", data, tiny(), iterations=20, test_set=test, evaluate_every=5)
    assert made.outcome is not None
    # Test images are not mirrored, and were trained on. The first batch is read, and computed three times, beside that,
    # to say how long all will take.
    assert (len(read), len(computed)) == (10 + 2, 10 + 3 * 2)


def test_the_whole_time_is_said_before_the_maps_are_computed(
    tmp_path: Path, dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch of two images takes 6 s for its maps and .5 s for a step; there are five views and eight steps."""
    caplog.set_level("INFO", "fastrcnn")
    monkeypatch.setattr(run_module, "seconds_of_a_batch", lambda *_: (6.0, 0.5))
    with pytest.raises(Stopped):
        run(tmp_path / "run", dataset, tiny(), stop_after=2)
    assert "About 19 s left: 15 s for 5 feature maps, 4 s for 8 steps, 0 s for evaluation" in caplog.messages
    caplog.clear()
    run(tmp_path / "run", dataset, tiny())
    assert not [line for line in caplog.messages if line.startswith("About") and "maps" in line], "they are kept"


def test_a_run_resumes_where_the_maps_of_its_first_batch_are_kept_and_others_are_not(
    tmp_path: Path, dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Images whose maps are kept are not read; the batch that is timed for the estimate needs them."""
    caplog.set_level("INFO", "fastrcnn")
    timed = counted(monkeypatch, run_module, "seconds_of_a_batch")
    with pytest.raises(Stopped):
        run(tmp_path / "run", dataset, tiny(), stop_after=1)
    seen = {sample.image_id for sample in timed[0][3].samples}
    (folder,) = (tmp_path / "run/maps").glob("*")
    files = MapFiles(folder)
    view = PLAIN.levels()[0]
    for sample in dataset.samples:
        if sample.image_id not in seen:
            files.path(sample, view).unlink()
    shutil.rmtree(tmp_path / "run/checkpoints")
    run(tmp_path / "run", dataset, tiny())
    assert len(timed) == 2
    assert timed[1][3].sizes.tolist() == [[48, 64], [48, 64]]
    assert [line for line in caplog.messages if "for 3 feature maps" in line]


@pytest.mark.parametrize("stop", [3, 5])
@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_is_resumed_ends_with_the_same_bits(
    stop: int, lost: bool, tmp_path: Path, dataset: DetectionDataset
) -> None:
    data = replace(dataset, augmentation=VARIED)
    whole = tiny("conv5_1")
    run(tmp_path / "whole", data, whole, iterations=8)
    model = tiny("conv5_1")
    with pytest.raises(Stopped):
        run(tmp_path / "run", data, model, stop_after=stop)
    kept = sorted((tmp_path / "run/maps").glob("*/*"))
    assert kept
    for file in kept[::2] if lost else []:
        file.unlink()
    again = tiny("conv5_1")
    run(tmp_path / "run", data, again, workers=2)
    assert torch.equal(weights(again), weights(whole))
    assert not (tmp_path / "run/maps").exists(), "the run is over"


def test_a_signal_while_maps_are_computed_leaves_them_for_the_next_start(
    tmp_path: Path, dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fastrcnn")
    written = counted(monkeypatch, MapFiles, "write")

    class Told(Stop):
        def __call__(self) -> bool:
            return len(written) == 3

    with pytest.raises(Stopped):
        run(tmp_path / "run", dataset, tiny(), stop=Told())
    assert "the feature maps computed so far are kept. To resume: fastrcnn train" in caplog.text
    model, whole = tiny(), tiny()
    run(tmp_path / "run", dataset, model)
    assert len(written) == 5
    run(tmp_path / "whole", dataset, whole)
    assert torch.equal(weights(model), weights(whole))


def test_what_does_not_fit_is_computed_each_time_with_the_same_result(
    tmp_path: Path, dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, model = tiny(), tiny()
    run(tmp_path / "whole", dataset, whole)
    computed = counted(monkeypatch, Maps, "compute")
    largest: list[int] = []
    written = MapFiles.write

    def write(self: MapFiles, *arguments: Any) -> None:
        written(self, *arguments)
        largest.append(sum(f.stat().st_size for f in self.folder.iterdir()))

    monkeypatch.setattr(MapFiles, "write", write)
    size = maps_module.LARGEST_HEAD + 2 * 15 * 3 * 4  # 15 channels of 3 x 4 cells
    run(tmp_path / "run", dataset, model, cache=2.5 * size)
    assert torch.equal(weights(model), weights(whole))
    assert max(largest) <= 2.5 * size
    assert "only 2 of 5 feature maps fit" in caplog.text
    assert len(computed) > 5


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    whole, model = tiny(), tiny()
    run(tmp_path / "whole", dataset, whole)
    monkeypatch.setattr(MapFiles, "write", full)
    run(tmp_path / "run", dataset, model)
    assert torch.equal(weights(model), weights(whole))
    assert "stopped caching feature maps (No space left on device)" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "gone"])
def test_a_file_that_is_damaged_is_computed_anew(
    damage: str, tmp_path: Path, dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, model = tiny(), tiny()
    run(tmp_path / "whole", dataset, whole)

    def spoil(self: Maps, *arguments: Any) -> None:
        fill(self, *arguments)
        for file in self.files.folder.iterdir():
            content = file.read_bytes()
            new = {"cut": content[:-20], "empty": b"", "text": b"{}\n"}.get(damage, bytearray(content))
            if damage == "flipped":
                new[-5] ^= 64
            file.write_bytes(new)
            if damage == "gone":
                file.unlink()

    fill = Maps.fill
    monkeypatch.setattr(Maps, "fill", spoil)
    run(tmp_path / "run", dataset, model)
    assert torch.equal(weights(model), weights(whole))


def test_an_image_that_has_changed_has_no_maps_yet(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"one")
    sample = Sample("a", image, 4, 3, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    files, view = MapFiles(tmp_path), View(48, 100)
    maps = [torch.rand(2, 3, 4).half(), torch.rand(5, 2, 2).half()]
    files.write(sample, view, maps)
    found = files.read(sample, view)
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(found, maps, strict=True))
    assert files.has(sample, view)
    assert not files.has(sample, replace(view, mirrored=True))
    assert not files.has(replace(sample, image_id="b"), view)
    os.utime(image, ns=(1, 1))
    assert (files.has(sample, view), files.read(sample, view)) == (False, None)


@pytest.mark.parametrize(
    ("first", "augmentation", "said"),
    [
        ("conv1_1", PLAIN, "model.finetune_from freezes no convolution of the network"),
        ("fc6", replace(PLAIN, colour=0.1), "data.colour changes the colours of an image differently"),
    ],
)
def test_where_no_maps_can_be_kept_it_says_why(
    first: str, augmentation: Augmentation, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_maps(tmp_path / "maps", tiny(first), torch.float32, BUDGET, augmentation) is None
    assert f"feature maps are not cached, because {said}" in caplog.text
    caplog.clear()
    assert open_maps(tmp_path / "maps", tiny(first), torch.float32, 0, augmentation) is None
    assert not caplog.text


def test_nothing_is_kept_where_hardly_a_view_comes_twice(
    tmp_path: Path, dataset: DetectionDataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fastrcnn")
    run(tmp_path / "run", dataset, tiny(), iterations=2)
    assert "few images are used twice with the same augmentation" in caplog.text


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path: Path, dataset: DetectionDataset) -> None:
    model = tiny()
    with torch.no_grad():
        model.trunk.convs["conv5_3"].bias.fill_(1e5)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"\d\.png.*float16 cannot represent. Set runtime.cache=0"):
        run(tmp_path / "run", dataset, model)


def test_maps_of_other_weights_or_another_precision_are_not_taken() -> None:
    model, other = tiny(), tiny()
    names = {maps_module.digest(model, torch.float16), maps_module.digest(other, torch.float16)}
    assert len(names) == 1
    with torch.no_grad():
        other.head.fc6.weight.add_(1)  # type: ignore[operator]
    assert {maps_module.digest(other, torch.float16)} == names
    with torch.no_grad():
        other.trunk.convs["conv3_2"].weight.add_(1)  # type: ignore[operator]
    names |= {maps_module.digest(m, t) for m, t in ((other, torch.float16), (model, torch.bfloat16))}
    names |= {maps_module.digest(tiny("conv5_1"), torch.float16)}
    assert len(names) == 4


def test_views_of_a_batch_are_what_pixels_are_made_of_again(dataset: DetectionDataset) -> None:
    from fastrcnn.data.loader import collate, with_pixels

    data = replace(dataset, augmentation=VARIED)
    keys = [(epoch, index) for epoch in range(3) for index in range(5)]
    whole = collate([data[key] for key in keys])
    without = collate([replace(data, unneeded=lambda s, _: s.image_id in "024")[key] for key in keys])
    assert without.sizes.all(dim=1).tolist() == [index % 2 == 1 for _, index in keys]
    again = with_pixels(without)
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.sizes, whole.sizes)
    assert torch.equal(without.scales, whole.scales)
    for a, b in zip(without.boxes + without.proposals, whole.boxes + whole.proposals, strict=True):
        assert torch.equal(a, b)
    image, scale = show(data.picture(0), whole.views[0])
    assert (image.shape[:2], scale) == (tuple(whole.sizes[0].tolist()), whole.scales[0])
