"""Several processes that do one job: what they share, and that the job is the one that a process alone would have done.

Two processes are started once, and do everything that is looked at here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from a_run import a_run
from limits import PATIENCE

from fastrcnn.build.datasets import make_proposals
from fastrcnn.config.schema import DataConfig
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.loader import EndlessBatches, training_loader
from fastrcnn.data.transforms import Augmentation
from fastrcnn.errors import UserError
from fastrcnn.model.fast_rcnn import FastRCNN, freeze_before
from fastrcnn.model.sampling import RoISampler
from fastrcnn.parallel import distributed
from fastrcnn.parallel.launch import launch
from fastrcnn.settings import DetectionSettings, SelectiveSearchSettings, SolverSettings
from fastrcnn.structures import Sample
from fastrcnn.training import checkpoint
from fastrcnn.training.loop import Schedule
from fastrcnn.training.run import Settings
from fastrcnn.training.tracking import Silent, Tracker

CLASSES = 2
DATA = DataConfig(selective_search=SelectiveSearchSettings(side=48, k=[50], max_boxes=20))


def dataset(folder: Path, count: int = 7) -> DetectionDataset:
    """Pictures of one size, the even ones with few RoIs to draw."""
    rng = np.random.default_rng(1)
    samples, proposals = [], {}
    for i in range(count):
        file = folder / f"{i}.png"
        if not file.exists():
            cv2.imwrite(str(file), np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8))
        box = np.array([[10, 8, 44, 36]], np.float32)
        samples.append(Sample(str(i), file, 64, 48, box, np.array([1 + i % 2]), np.zeros(1, dtype=bool)))
        near = box + rng.uniform(-4, 4, (12, 4))
        far = box * 0.4 + rng.uniform(0, 12, (20 if i % 2 else 3, 4))
        proposals[str(i)] = np.concatenate((near, far)).astype(np.float32)
    return DetectionDataset(samples, proposals.__getitem__, Augmentation((48,), 100), seed=3)


def trained(folder: Path, images: int, accumulate: int, tracker: Tracker, kept: Path | None = None) -> dict[str, Any]:
    """Gradients of the third step and the weights after it, of a network in double precision without dropout.

    kept: a folder for the maps of the layers below conv5_1, which are frozen then; and four steps."""
    torch.manual_seed(0)
    model = FastRCNN(CLASSES, width=0.03, roi_size=3, dropout=0.0).double()
    sampler = RoISampler(torch.zeros(CLASSES + 1, 4), torch.ones(CLASSES + 1, 4), SolverSettings(rois_per_image=24))
    plan = Schedule(4 if kept else 3, lambda _: 0.01, 5, log_every=1, images_every=0, accumulate=accumulate)
    if kept:
        freeze_before(model, "conv5_1")
    settings = Settings(DetectionSettings(), "voc07", images_per_batch=images, cache=1e8 if kept else 0)
    options = {"dataset": dataset(folder), "settings": settings, "tracker": tracker}
    run = a_run(kept or folder, model, sampler, plan, **options)
    run.keep_maps()
    if kept:
        assert run.maps is not None
        files = [file for file in kept.glob("maps/*/*") if not file.name.startswith(".")]
        assert len(files) == len(run.train_set.views(range(3))) > 7, "of every image, and of mirror images"
    run.fit(training_loader(run.train_set, images))
    tracker.close()
    return {
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "weights": model.state_dict(),
    }


def broken(folder: Path) -> str:
    """What is said where the second process alone has a loss that is not finite; the first writes what it was."""
    torch.manual_seed(0)
    model = FastRCNN(CLASSES, width=0.03, roi_size=3)
    sampler = RoISampler(torch.zeros(CLASSES + 1, 4), torch.ones(CLASSES + 1, 4), SolverSettings(rois_per_image=24))
    batch = next(iter(training_loader(dataset(folder), 4)))
    if distributed.rank():
        batch = replace(batch, images=torch.full(batch.images.shape, float("inf")))

    plan = Schedule(1, lambda _: 0.01, images_every=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    place = folder / f"broken-{distributed.rank()}"
    try:
        a_run(place, model, sampler, plan, tracker=Silent()).fit([batch])
    except UserError as error:
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        return str(error)
    return "nothing"


def process(number: int, port: int, folder: Path, together: Barrier) -> None:
    """What each of the two does; together: where one waits for the other."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with distributed.join_processes(torch.device("cpu")):
        found["place"] = distributed.rank(), distributed.size(), distributed.leads()
        found["summed"] = distributed.total(torch.tensor([1.0, number])).tolist()
        found["any"] = [distributed.any_of(flag) for flag in (number == 1, False)]
        found["from first"] = distributed.from_first(f"of {number}")
        found["in order"] = distributed.in_order(distributed.share(list("abcde")))
        for accumulate in (1, 2):
            (folder / f"run-{accumulate}").mkdir(exist_ok=True)
            tracker = Silent() if number else Tracker(folder / f"run-{accumulate}")
            found[f"trained {accumulate}"] = trained(folder, 4, accumulate, tracker)
        found["kept"] = trained(folder, 4, 1, Silent(), folder / "kept")
        found["broken"] = broken(folder)
        make_proposals(DATA, dataset(folder).samples, folder / "two.proposals")
    torch.save(found, folder / f"found-{number}")
    said = []
    for name, wrong in (("both", True), ("second", number == 1)):

        def meet(_: float = 0.0, name: str = name) -> None:
            if name == "both":
                together.wait(PATIENCE)

        distributed.time = SimpleNamespace(sleep=meet)  # type: ignore[attr-defined] - however slow the machine is
        os.environ["MASTER_PORT"] = str(port + 1 + len(said))
        try:
            with distributed.join_processes(torch.device("cpu")):
                if wrong:
                    raise UserError(f"{name} is wrong")
                distributed.wait_for_all()
        except (UserError, SystemExit) as error:
            said.append(repr(error))
            meet()  # the first process has what the second one reads
        torch.distributed.destroy_process_group()
    (folder / f"said-{number}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the pictures, what the two processes found, and what they wrote."""
    place = tmp_path_factory.mktemp("processes")
    dataset(place)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(2)
    both = [context.Process(target=process, args=(number, port, place, together)) for number in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(PATIENCE)
        assert each.exitcode == 0
    return place


def found(folder: Path, number: int) -> dict[str, Any]:
    return torch.load(folder / f"found-{number}", weights_only=True)


def test_a_process_alone_is_number_zero_of_one() -> None:
    assert (distributed.rank(), distributed.size(), distributed.leads()) == (0, 1, True)
    assert distributed.gather("x") == ["x"]
    assert distributed.in_order(distributed.share("abc")) == ["a", "b", "c"]
    with distributed.join_processes(torch.device("cpu")):
        assert not torch.distributed.is_initialized()


def test_what_fails_with_others_is_a_lost_process_whatever_the_error_says(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = RuntimeError("in no known words\nand more")
    with pytest.raises(RuntimeError, match="in no known"), distributed.exchange():
        raise fault
    monkeypatch.setattr(distributed, "size", lambda: 2)
    gone = r"another process of this job ended unexpectedly \(torch: in no known words\)\. .* which process it was\.$"
    with pytest.raises(distributed.LostError, match=gone), distributed.exchange():
        raise fault
    with pytest.raises(torch.OutOfMemoryError), distributed.exchange():
        raise torch.OutOfMemoryError


def test_the_environment_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch().size == 1
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    here = launch()
    assert (here.rank, here.size, here.local_rank, here.local_size) == (5, 8, 1, 1)
    assert here.attempt == 0, "machines count for themselves, and the store is new"
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert launch().attempt == 2


def test_what_they_tell_each_other(folder: Path) -> None:
    first, second = found(folder, 0), found(folder, 1)
    assert (first["place"], second["place"]) == ((0, 2, True), (1, 2, False))
    for each in (first, second):
        assert each["summed"] == [2, 1]
        assert each["any"] == [True, False]
        assert each["from first"] == "of 0"
    assert first["in order"] == list("abcde")
    assert second["in order"] == []


@pytest.mark.parametrize(("length", "batch"), [(7, 4), (10, 2), (3, 8)])
def test_the_shares_of_a_batch_are_the_batch(length: int, batch: int) -> None:
    whole = iter(EndlessBatches(length, batch, seed=1, start=3))
    parts = [iter(EndlessBatches(length, batch, 1, 3, (number, 2))) for number in range(2)]
    for _ in range(10):
        shares = [next(part) for part in parts]
        assert [len(s) for s in shares] == [batch // 2] * 2
        assert [*shares[0], *shares[1]] == next(whole)


def test_maps_that_each_computes_a_share_of_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    expected = trained(folder, 4, 1, Silent(), tmp_path / "kept")
    for number in range(2):
        ours = found(folder, number)["kept"]
        assert ours["gradients"].keys() == expected["gradients"].keys()
        assert not any("conv4" in name for name in ours["gradients"])
        for kind in ("gradients", "weights"):
            for name, value in expected[kind].items():
                assert (ours[kind][name] - value).norm() <= 1e-6 * value.norm() + 1e-9, name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_those_of_one_process_with_all_the_pictures(
    folder: Path, tmp_path: Path, accumulate: int
) -> None:
    """Pictures have 24 RoIs or fewer: the mean of the processes' losses would be another."""
    expected = trained(folder, 4, accumulate, Tracker(tmp_path))
    largest = 0.0
    for number in range(2):
        ours = found(folder, number)[f"trained {accumulate}"]
        for kind in ("gradients", "weights"):
            assert ours[kind].keys() == expected[kind].keys()
            for name, value in expected[kind].items():
                torch.testing.assert_close(ours[kind][name], value, rtol=1e-6, atol=1e-9)
        largest = max(largest, *(float(g.abs().max()) for g in ours["gradients"].values()))
    assert largest > 1e-3, "there is something to compare"

    def rows(run: Path) -> dict[tuple[str, str], float]:
        lines = [line.split(",") for line in (run / "metrics.csv").read_text().split()[1:]]
        return {(step, name): float(value) for step, name, value in lines}

    both, alone = rows(folder / f"run-{accumulate}"), rows(tmp_path)
    counted = [name for name in alone if not name[1].endswith(("_per_s", "_wait_share"))]
    assert len(counted) == 3 * 9
    for name in counted:
        assert both[name] == pytest.approx(alone[name], rel=1e-5), name
    assert alone["1", "train/rois"] < 24 * 4 * accumulate, "the RoIs are not as many as they could be"


def test_a_loss_that_is_not_finite_in_one_ends_both_and_the_first_keeps_what_it_was(folder: Path) -> None:
    texts = [found(folder, number)["broken"] for number in range(2)]
    assert texts[0] == texts[1]
    assert "step 0: the loss is nan" in texts[0]
    kept = checkpoint.load(folder / "broken-0" / "failed-step-0.pt")
    assert torch.isinf(kept["images"]).all()
    assert ", ".join(kept["image_ids"]) in texts[0]
    assert not list((folder / "broken-1").iterdir())


def test_proposals_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    make_proposals(DATA, dataset(folder).samples, tmp_path / "one.proposals", workers=1)
    for file in sorted((tmp_path / "one.proposals").iterdir()):
        assert (folder / "two.proposals" / file.name).read_bytes() == file.read_bytes(), file.name
    assert not list(folder.glob(".*.work"))


def test_what_is_wrong_is_said_once_and_where(folder: Path) -> None:
    first, second = (json.loads((folder / f"said-{number}.json").read_text()) for number in range(2))
    assert first == ["UserError('both is wrong')", "SystemExit(1)"]
    assert second == ["SystemExit(1)", "UserError('rank 1 of 2 processes: second is wrong')"]
