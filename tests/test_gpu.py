"""Training and detection on a GPU against the CPU. Needs nothing but torch, the package's own needs and pytest."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrcnn.cli import main
from fastrcnn.data.annotations.splits import load
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.demo import CLASSES, write_demo
from fastrcnn.data.loader import training_loader
from fastrcnn.data.transforms import Augmentation
from fastrcnn.inference.detect import detect_batch
from fastrcnn.inference.network import TorchNetwork
from fastrcnn.model.fast_rcnn import FastRCNN, scaled_rois
from fastrcnn.model.loss import fast_rcnn_loss
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store
from fastrcnn.settings import DetectionSettings
from fastrcnn.structures import Batch, RoITargets, Sample
from fastrcnn.training.svm import picture_features

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    exact = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield torch.device("cuda")
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = exact


def boxes_in(count: int, width: int, height: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width - 4, height - 4])
    return torch.cat([corners[:, 0], corners[:, 1] + 4], dim=1).round()


def network() -> FastRCNN:
    """Slim, with batch normalisation and outputs that tell RoIs apart."""
    torch.manual_seed(0)
    model = FastRCNN(3, width=0.25, batch_norm=True, roi_features=("conv4_3", "conv5_3"))
    for layer in (model.cls_score, model.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    sizes = [(160, 224), (150, 200)]
    return Batch(
        images=torch.randint(0, 256, (2, 3, 160, 224), generator=generator, dtype=torch.uint8),
        sizes=torch.tensor(sizes),
        proposals=[boxes_in(300, w, h) for h, w in sizes],
        boxes=[torch.zeros(0, 4)] * 2,
        labels=[torch.zeros(0, dtype=torch.int64)] * 2,
        scales=torch.ones(2, dtype=torch.float64),
        samples=[Sample(str(i), Path(), w, h, *nothing) for i, (h, w) in enumerate(sizes)],
    )


def halved(whole: Batch) -> Batch:
    """The same pictures at half their size."""
    images = whole.images[:, :, ::2, ::2].contiguous()
    return replace(whole, images=images, sizes=whole.sizes // 2, scales=whole.scales / 2)


def on(device: torch.device, model: FastRCNN) -> FastRCNN:
    return copy.deepcopy(model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize("levels", [1, 2])
def test_detections_are_the_cpus(gpu: torch.device, levels: int) -> None:
    model = network().eval()
    pyramid = [batch(), halved(batch())][:levels]
    settings = DetectionSettings(score_threshold=0.2, nms_iou=1.0, max_per_image=None, rois_per_chunk=70)
    want = detect_batch(TorchNetwork(model), pyramid, settings)
    found = detect_batch(TorchNetwork(on(gpu, model)), pyramid, settings)
    for a, b in zip(found, want, strict=True):
        assert abs(len(a) - len(b)) <= 1  # a score may lie at the threshold
        near = (a.boxes[None] - b.boxes[:, None]).abs().amax(2) <= 1e-2
        near &= (a.scores[None] - b.scores[:, None]).abs() <= 1e-4
        near &= a.labels[None] == b.labels[:, None]
        assert int(near.any(1).sum()) >= len(b) - 1 > 100


def test_features_are_the_cpus(gpu: torch.device) -> None:
    model = network().eval()
    pyramid = [batch(), halved(batch())]
    want = list(picture_features(model, [pyramid]))
    found = list(picture_features(on(gpu, model), [pyramid]))
    for a, b in zip(found, want, strict=True):
        assert np.linalg.norm(a.features - b.features) < 1e-4 * np.linalg.norm(b.features)


def test_pictures_are_pinned_on_their_way(gpu: torch.device, data_set: list[str], tmp_path: Path) -> None:
    root = tmp_path / "set"
    ids = (root / "ImageSets" / "Main" / "train.txt").read_text().split()
    samples, _ = load(root, ids, CLASSES)
    data = DetectionDataset(samples, ProposalStore(tmp_path / "all.proposals").boxes, Augmentation((100,), 200), seed=0)
    assert next(iter(training_loader(data, 2, workers=1, pin_memory=True))).images.is_pinned()


def test_detection_in_bfloat16_is_near(gpu: torch.device) -> None:
    """Scores of each RoI, before anything is suppressed."""
    model = network().eval()
    want = TorchNetwork(model).outputs([batch()])
    found = TorchNetwork(on(gpu, model), torch.bfloat16).outputs([batch()])
    for (scores, _), (exact, _) in zip(found, want, strict=True):
        error = (scores.cpu() - exact).norm() / exact.norm()
        assert 1e-6 < error < 2e-2


def test_gradients_are_the_cpus(gpu: torch.device) -> None:
    given = batch()
    index = torch.arange(2).repeat_interleave(300)[:, None].float()
    rois = torch.cat([index, torch.cat(given.proposals)], 1)[::9]
    generator = torch.Generator().manual_seed(1)
    targets = RoITargets(
        torch.randint(0, 4, (len(rois),), generator=generator), torch.randn(len(rois), 4, generator=generator)
    )
    slopes = []
    for device in (torch.device("cpu"), gpu):
        model = network().to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        model.head.dropout = 0.0
        maps = model.features(given.images.to(device), given.sizes.to(device))
        logits, deltas = model.classify(maps, scaled_rois(rois, model.roi_op).to(device))
        on_device = RoITargets(targets.labels.to(device), targets.deltas.to(device))
        fast_rcnn_loss(logits, deltas, on_device).total.backward()
        slopes.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    assert slopes[0].keys() == slopes[1].keys()
    for name, want in slopes[0].items():
        if "convs" in name and name.endswith("bias"):
            continue  # before a batch normalisation it is 0 but for rounding
        error = (slopes[1][name] - want).norm() / want.norm()
        assert error < 1e-3, name


@pytest.fixture
def data_set(tmp_path: Path) -> list[str]:
    """The keys of a small data set with its proposals."""
    root = write_demo(tmp_path / "set", train=6, val=2, test=3)
    rng = np.random.default_rng(0)
    stores = []
    for split in ("train", "test"):
        ids = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        samples, _ = load(root, ids, CLASSES)
        items = [
            ImageProposals(
                s.image_id,
                s.height,
                s.width,
                np.concatenate([boxes_in(200, s.width, s.height).numpy(), s.boxes + rng.uniform(-4, 4, s.boxes.shape)]),
            )
            for s in samples
        ]
        stores.append((split, items))
    store = tmp_path / "all.proposals"
    write_store(store, [item for _, items in stores for item in items], "drawn for a test", {})
    return ["data=custom", f"data.root={root}", "data.train=[train]", "data.test=[test]", f"data.proposals={store}"]


def test_training_goes_on_after_an_end_and_is_evaluated(
    gpu: torch.device, data_set: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ["recipe=scratch", *data_set, "runtime.device=cuda", "runtime.workers=1", "solver.warmup=0"]
    keys += ["runtime.log_every=1", "runtime.checkpoint_every=3", "run=run"]
    assert main(["train", *keys, "solver.iterations=3"]) == 0
    assert main(["train", "run=run", "resume=auto", "solver.iterations=6"]) == 0
    losses = [r.split(",")[2] for r in Path("run/metrics.csv").read_text().splitlines() if ",train/loss," in r]
    assert len(losses) == 6
    assert np.isfinite([float(loss) for loss in losses]).all()
    assert main(["eval", "checkpoint=run", "runtime.device=cuda", "output=again"]) == 0
    assert 0 <= json.loads(Path("again/metrics.json").read_text())["mAP"] <= 1
