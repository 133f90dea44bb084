"""scripts/pack_dataset.py: what is unpacked is what was packed, within what the pack is allowed to lose."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
import script_module
import torch
from safetensors.torch import load_file, save_file

from fastrcnn.data.demo import write_demo
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store

pack_dataset = script_module.load("pack_dataset")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["pack_dataset.py", *map(str, arguments)])
    pack_dataset.main()


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Twelve images of 200 x 150 with their annotations, a store with five boxes each, and weights."""
    root = write_demo(tmp_path / "devkit" / "SET", train=8, val=1, test=4, size=(200, 150))
    rng = np.random.default_rng(0)
    ids = [p.stem for p in sorted((root / "JPEGImages").iterdir())]
    boxes = np.sort(rng.uniform(0, 149, (len(ids), 5, 2, 2)), axis=2).reshape(-1, 5, 4)
    boxes += np.array([0, 0, 1, 1])
    items = [ImageProposals(i, 150, 200, b.astype(np.float32)) for i, b in zip(ids, boxes, strict=True)]
    write_store(tmp_path / "all.proposals", items, "drawn", {})
    save_file({"w": torch.linspace(-3, 3, 2000), "n": torch.tensor([7])}, tmp_path / "net.safetensors")
    return root


def packed(monkeypatch: pytest.MonkeyPatch, root: Path, *options: object) -> Path:
    folder = root.parents[1]
    extra = ["--proposals", folder / "all.proposals", "--weights", folder / "net.safetensors"]
    run(monkeypatch, "pack", root, folder / "pack", "--splits", "train", "test", *extra, *options)
    return folder / "pack"


def test_round_trip(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = packed(monkeypatch, original, "--max-proposals", 3, "--part", 0.03)
    parts = sorted(pack.glob("*.zip"))
    assert len(parts) > 1
    assert max(p.stat().st_size for p in parts) <= 30_000

    run(monkeypatch, "unpack", pack, tmp_path / "out")
    root = tmp_path / "out" / "VOCdevkit" / "SET"
    for split in ("train", "test"):
        name = Path("ImageSets", "Main", f"{split}.txt")
        assert (root / name).read_text().split() == (original / name).read_text().split()
    ids = [i for split in ("train", "test") for i in (root / f"ImageSets/Main/{split}.txt").read_text().split()]
    assert {p.stem for p in (root / "JPEGImages").iterdir()} == set(ids)  # not the image of val
    store, want = ProposalStore(tmp_path / "out" / "SET.proposals"), ProposalStore(tmp_path / "all.proposals")
    assert store.ids == sorted(ids)
    for image_id in ids:
        name = f"Annotations/{image_id}.xml"
        assert ET.canonicalize((root / name).read_text()) == ET.canonicalize((original / name).read_text())
        (source,) = (original / "JPEGImages").glob(f"{image_id}.*")
        before, after = cv2.imread(str(source)), cv2.imread(str(root / "JPEGImages" / f"{image_id}.bmp"))
        assert cv2.PSNR(before, after) > 30  # the colours, and where they are
        assert store.size(image_id) == (150, 200)
        boxes = sorted(np.rint(want.boxes(image_id)[[0, 1, 3]]).tolist())
        assert store.boxes(image_id).tolist() == boxes
    weights = load_file(tmp_path / "out" / "net.safetensors")
    assert torch.equal(weights["w"], torch.linspace(-3, 3, 2000).half())
    assert weights["n"].dtype == torch.int64


def test_proposals_are_exact_in_large_images_and_can_be_none(tmp_path: Path) -> None:
    boxes = [[5000, 0, 5001, 60000], [256, 7, 9000, 8], [256, 7, 300, 8], [0, 3, 255, 256]]
    items = [
        ImageProposals("a", 60000, 9000, np.zeros((0, 4))),
        ImageProposals("b", 60000, 9000, np.array(boxes, np.float32)),
        ImageProposals("c", 60000, 9000, np.array(boxes[1:], np.float32)),
    ]
    write_store(tmp_path / "large.proposals", items, "drawn", {})
    chunks = pack_dataset.packed_proposals([tmp_path / "large.proposals"], ["c", "a", "b"], 10)
    found = list(pack_dataset.unpacked_proposals(content for _, content in chunks))
    assert [(f.image_id, f.height, f.width) for f in found] == [(i, 60000, 9000) for i in "cab"]
    assert [f.boxes.tolist() for f in found] == [sorted(boxes[1:]), [], sorted(boxes)]


def test_opencv_without_avif(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = packed(monkeypatch, original)
    monkeypatch.setattr(cv2, "haveImageWriter", lambda name: False)
    for command in (("pack", original, tmp_path / "again"), ("unpack", pack, tmp_path / "again")):
        with pytest.raises(SystemExit, match=r"built without AVIF. Install"):
            run(monkeypatch, *command)
    assert not (tmp_path / "again").exists()


def test_quality_is_the_highest_that_fits(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = packed(monkeypatch, original, "--megabytes", 0.045)
    assert sum(p.stat().st_size for p in pack.glob("*.zip")) <= 45_000
    quality = json.loads((pack / "parts.json").read_text())["avif_quality"]
    assert 1 <= quality < 95
    ids = pack_dataset.read_split(original, "train") + pack_dataset.read_split(original, "test")
    sizes = [sum(len(c) for _, c in pack_dataset.encoded(original, ids, q)) for q in (quality, quality + 1)]
    rest = sum(p.stat().st_size for p in pack.glob("*.zip")) - sizes[0]
    assert sizes[1] + rest > 45_000 - pack_dataset.END  # one step more would not have fitted


def test_limit_takes_images_at_equal_distances() -> None:
    assert pack_dataset.spaced(list("abcdefghij"), 3) == ["a", "d", "g"]
    assert pack_dataset.spaced(["a", "b"], 3) == ["a", "b"]
    assert pack_dataset.spaced(["a", "b"], None) == ["a", "b"]


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (lambda part: part.write_bytes(part.read_bytes()[:-1] + b"?"), r"part-01\.zip: the part is damaged"),
        (lambda part: part.unlink(), r"part-01\.zip: this part is missing"),
    ],
)
def test_incomplete_pack(
    harm: object, error: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = packed(monkeypatch, original)
    harm(pack / "part-01.zip")  # type: ignore[operator]
    with pytest.raises(SystemExit, match=error):
        run(monkeypatch, "unpack", pack, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["JPEGImages/../../../escaped.avif", "/escaped.avif"])
def test_a_path_outside_the_data_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(pack_dataset.UserError, match="outside the data set"):
        pack_dataset._decode(tmp_path / "root", (name, b""))


def test_an_image_without_proposals(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = ProposalStore(tmp_path / "all.proposals").ids[1:]
    write_store(tmp_path / "all.proposals", [ImageProposals(i, 150, 200, np.ones((0, 4))) for i in some], "drawn", {})
    with pytest.raises(SystemExit, match=r"no proposals for 1 image\(s\)"):
        packed(monkeypatch, original)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--megabytes", 0.001], "lists, proposals and weights alone need more"),
        (["--megabytes", 0.013], "do not fit into .* even with AVIF quality 1"),
        (["--part", 0.001], "do not fit into a part"),
    ],
)
def test_a_pack_that_would_be_too_large(
    options: list[object], error: str, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=error):
        packed(monkeypatch, original, *options)
    assert not (original.parents[1] / "pack").exists()
