"""`fastrcnn propose convert=...`: from any format to a store, matched by id, and out again without a loss."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from voc_folder import VocFolder, fingerprint

from fastrcnn.errors import UserError
from fastrcnn.proposals.convert import match_ids
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store

Call = Callable[..., tuple[int, str, str]]

IDS = ["000005", "000012", "2008_000003"]
# Half-open, in pictures of 64 x 48; the first image has a box that touches all borders.
BOXES = {
    "000005": [[0, 0, 64, 48], [10, 5, 20, 25]],
    "000012": [[1, 2, 3, 4]],
    "2008_000003": [[30, 20, 64, 48], [0, 0, 1, 1], [7, 8, 9, 11]],
}


@pytest.fixture
def numbered(voc: VocFolder) -> VocFolder:
    """Three pictures with ids as VOC's: two to train on, one to test on."""
    for image_id in IDS:
        voc.add(image_id, ("cat", (1, 1, 32, 24), False))
    voc.split("trainval", *IDS[:2])
    voc.split("test", IDS[2])
    return voc


def author(path: Path, boxes: dict[str, list[list[int]]]) -> Path:
    """The author's layout, as scipy writes it: one-based, inclusive, y first."""
    io = pytest.importorskip("scipy.io", reason="needs the extra [mat]")
    cells, images = np.empty((len(boxes), 1), object), np.empty((len(boxes), 1), object)
    for n, (image_id, rows) in enumerate(boxes.items()):
        cells[n, 0] = np.array([[y1 + 1, x1 + 1, y2, x2] for x1, y1, x2, y2 in rows], np.uint16)
        images[n, 0] = image_id
    io.savemat(path, {"boxes": cells, "images": images}, do_compression=True)
    return path


def test_the_authors_file_becomes_a_store(numbered: VocFolder, tmp_path: Path, call: Call) -> None:
    path = author(tmp_path / "voc 2007.mat", {**BOXES, "stranger": [[0, 0, 5, 5]]})
    before = fingerprint(numbered.root)
    status, out, err = call("propose", f"convert={path}", f"data.root={numbered.root}")
    assert status == 0, err
    assert fingerprint(numbered.root) == before
    assert "Fast R-CNN author's .mat, 4 images, boxes read as yxyx-1-inclusive" in out
    assert "images with proposals in the file: 3 of 3\n" in out
    assert "image ids in the file that match no image: 1 (stranger)" in out
    assert "6 boxes kept, 0 of them clipped; 0 dropped\n" in out
    assert "proposals-check" not in out
    assert "Use the proposals with data.proposals=data/proposals/voc 2007.proposals" in out
    store = ProposalStore("data/proposals/voc 2007.proposals")
    assert {i: store.boxes(i).tolist() for i in store.ids} == BOXES
    assert store.size("000005") == (48, 64)
    assert store.meta["settings"] == {
        "format": "Fast R-CNN author's .mat",
        "convention": "yxyx-1-inclusive",
        "sources": {"voc 2007.mat": hashlib.sha256(path.read_bytes()).hexdigest()},
    }


def test_ids_are_matched_and_what_lacks_is_said(numbered: VocFolder, tmp_path: Path, call: Call) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps({"ids": [12, 99], "boxes": [np.array([[1.0, 2, 3, 4]]), np.zeros((0, 4))]}))
    status, out, err = call("propose", f"convert={path}", f"data.root={numbered.root}", "output=x.proposals")
    assert status == 0, err
    assert "images with proposals in the file: 1 of 3\n" in out
    assert "images without proposals in the file: 2 (000005, 2008_000003)\n" in out
    assert "image ids in the file that match no image: 1 (99)\n" in out
    assert ProposalStore("x.proposals").ids == ["000012"]


def test_no_id_in_common_is_an_error_that_shows_both_sides(numbered: VocFolder, tmp_path: Path, call: Call) -> None:
    path = author(tmp_path / "p.mat", {"COCO_1": [[0, 0, 5, 5]]})
    status, _, err = call("propose", f"convert={path}", f"data.root={numbered.root}")
    assert status == 1
    assert "has 3 image(s)" in err
    assert "'000005'" in err
    assert "'COCO_1'" in err
    assert not Path("data").exists()


def test_a_wrong_convention_is_suspected(numbered: VocFolder, tmp_path: Path, call: Call) -> None:
    path = author(tmp_path / "p.mat", BOXES)
    argument = (f"convert={path}", f"data.root={numbered.root}", "output=x.proposals")
    status, out, err = call("propose", *argument, "convention=xywh-0")
    assert status == 0, err
    # As x y width height, by hand: of the six boxes 1 1 48 64, 6 11 25 20, 3 2 4 3, 21 31 48 64, 1 1 1 1 and 9 8 11 9
    # two end below the picture, at 65 and 95, one of them also right of it, at 69.
    assert "6 boxes kept, 2 of them clipped (2 by more than a pixel); 0 dropped" in out
    assert f"fastrcnn proposals-check proposals={path} data=custom data.root={numbered.root}" in out
    status, out, err = call("propose", *argument, "convention=yxyx-0-halfopen")
    assert status == 0, err
    # Read as half-open from zero nothing leaves the picture, and 0 0 1 1 and none else is empty: 1 1 1 1.
    assert "5 boxes kept, 0 of them clipped; 1 dropped (1 inverted or empty)" in out


def test_an_unknown_convention_and_options_that_stand_alone(numbered: VocFolder, tmp_path: Path, call: Call) -> None:
    path = author(tmp_path / "p.mat", BOXES)
    status, _, err = call("propose", f"convert={path}", f"data.root={numbered.root}", "convention=yxyx-1")
    assert (status, "convention=yxyx-1: unknown convention. Did you mean" in err) == (1, True)
    status, _, err = call("propose", f"data.root={numbered.root}", "convention=xywh-0")
    assert (status, "convert=FILE" in err) == (1, True)
    status, _, err = call("propose", "convert=nowhere.mat", f"data.root={numbered.root}")
    assert (status, "nowhere.mat: this proposal file does not exist" in err) == (1, True)


def test_a_list_of_ids_for_a_file_that_has_none(numbered: VocFolder, tmp_path: Path, call: Call) -> None:
    path, ids = tmp_path / "p.pkl", tmp_path / "ids.txt"
    path.write_bytes(pickle.dumps([np.array([[*b, 0.5] for b in BOXES[i]]) for i in reversed(IDS)]))
    status, _, err = call("propose", f"convert={path}", f"data.root={numbered.root}")
    assert (status, "contains no image ids" in err) == (1, True)
    ids.write_text("".join(f"{i}.jpg\n" for i in reversed(IDS)))
    status, _, err = call(
        "propose", f"convert={path}", f"data.root={numbered.root}", f"ids={ids}", "output=x.proposals"
    )
    assert status == 0, err
    store = ProposalStore("x.proposals")
    assert {i: store.boxes(i).tolist() for i in store.ids} == BOXES
    scores = store.scores("000005")
    assert scores is not None
    assert scores.tolist() == [0.5, 0.5]
    status, _, err = call("propose", f"convert={path}", f"data.root={numbered.root}", "ids=none.txt")
    assert (status, "none.txt: the file cannot be read" in err) == (1, True)


def test_sizes_may_come_from_pictures_alone(numbered: VocFolder, tmp_path: Path, call: Call) -> None:
    path = author(tmp_path / "p.mat", BOXES)
    status, out, err = call(
        "propose", f"convert={path}", f"source={numbered.root}/JPEGImages/0*.jpg", "output=x.proposals"
    )
    assert status == 0, err
    assert "images with proposals in the file: 2 of 2\n" in out
    assert ProposalStore("x.proposals").size("000012") == (48, 64)


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A store with scores, fractions, and an image without boxes."""
    rng = np.random.default_rng(0)
    items = []
    for image_id, count in (("000005", 40), ("7", 0), ("é b", 3)):
        corner = rng.random((count, 2), np.float32) * 50
        boxes = np.hstack([corner, corner + 1 + rng.random((count, 2), np.float32) * 40])
        items.append(ImageProposals(image_id, 100, 120, boxes, rng.standard_normal(count).astype(np.float32)))
    write_store(tmp_path / "in.proposals", items, "test", {})
    return tmp_path / "in.proposals"


def test_a_store_goes_out_as_the_author_reads_it(scored: Path, call: Call) -> None:
    io = pytest.importorskip("scipy.io", reason="needs the extra [mat]")
    status, out, err = call("propose", f"convert={scored}", "output=new/out.mat")
    assert status == 0, err
    assert "43 boxes of 3 images to new/out.mat" in out
    store, content = ProposalStore(scored), io.loadmat("new/out.mat")
    raw_data = content["boxes"].ravel()
    assert [str(i[0]) for i in content["images"].ravel()] == store.ids == ["000005", "7", "é b"]
    for n, image_id in enumerate(store.ids):
        theirs = raw_data[n][:, (1, 0, 3, 2)] - 1  # as fast-rcnn's lib/datasets/pascal_voc.py; x2, y2 inclusive
        np.testing.assert_array_equal(theirs + np.array([0, 0, 1, 1]), store.boxes(image_id))
        np.testing.assert_array_equal(content["scores"].ravel()[n].ravel(), store.scores(image_id))


def test_a_store_goes_out_as_coco_reads_it(scored: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    status, _, err = call("propose", f"convert={scored}", "output=out.json")
    assert status == 0, err
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": 120, "height": 100} for i in ("000005", 7, "é b")],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [],
    }
    coco.createIndex()
    results = coco.loadRes("out.json")
    store = ProposalStore(scored)
    for image_id in ("000005", 7, "é b"):
        found = results.loadAnns(results.getAnnIds(imgIds=[image_id]))
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in found)]).reshape(-1, 4)
        np.testing.assert_array_equal(boxes.astype(np.float32), store.boxes(str(image_id)))
        np.testing.assert_array_equal([a["score"] for a in found], store.scores(str(image_id)))
        assert {a["category_id"] for a in found} <= {1}


@pytest.mark.parametrize("suffix", [".mat", ".json"])
def test_there_and_back_nothing_is_lost(numbered: VocFolder, tmp_path: Path, call: Call, suffix: str) -> None:
    rng = np.random.default_rng(1)
    items = []
    for image_id in IDS:
        corner = rng.random((30, 2), np.float32) * (40, 30)
        boxes = np.hstack([corner, corner + 1 + rng.random((30, 2), np.float32) * (20, 15)])
        items.append(ImageProposals(image_id, 48, 64, boxes, rng.random(30, np.float32)))
    write_store(tmp_path / "in.proposals", items, "test", {})
    for arguments in (
        (f"convert={tmp_path / 'in.proposals'}", f"output=x{suffix}"),
        (f"convert=x{suffix}", f"data.root={numbered.root}", "output=out.proposals"),
    ):
        status, _, err = call("propose", *arguments)
        assert status == 0, err
    for name in ("boxes.npy", "scores.npy", "ids.npy", "sizes.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / "in.proposals" / name), np.load(Path("out.proposals") / name))


def test_without_scores_there_are_none_in_the_mat_and_ones_in_the_json(tmp_path: Path, call: Call) -> None:
    io = pytest.importorskip("scipy.io", reason="needs the extra [mat]")
    write_store(tmp_path / "in.proposals", [ImageProposals("a", 9, 9, np.array([[1, 2, 4, 8]]))], "test", {})
    for name in ("out.mat", "out.json"):
        assert call("propose", f"convert={tmp_path / 'in.proposals'}", f"output={name}")[0] == 0
    assert "scores" not in io.loadmat("out.mat")
    assert json.loads(Path("out.json").read_text()) == [
        {"image_id": "a", "category_id": 1, "bbox": [1, 2, 3, 6], "score": 1}
    ]


def test_nothing_is_written_over(scored: Path, numbered: VocFolder, tmp_path: Path, call: Call) -> None:
    for name in ("out.mat", "out.json"):
        Path(name).write_text("mine")
        status, _, err = call("propose", f"convert={scored}", f"output={name}")
        assert (status, f"{name} already exists" in err) == (1, True)
        assert Path(name).read_text() == "mine"
        again = [f"convert={scored}", f"output=new/{name}"]
        assert [call("propose", *again)[0] for _ in range(2)] == [0, 0], "the same command may run again"
        assert call("propose", *again, "convention=yxyx-1-inclusive")[0] == 1, "other boxes"
    status, _, err = call("propose", f"convert={scored}", f"output={scored}", f"data.root={numbered.root}")
    assert (status, "the output cannot replace the input" in err) == (1, True)
    Path("folder").mkdir()
    status, _, err = call("propose", f"convert={scored}", "output=folder", f"data.root={numbered.root}")
    assert (status, "not a proposal store" in err) == (1, True)
    assert not [p for p in Path().iterdir() if p.name.endswith(".part")]


MATCHES = [
    (["000005"], ["000005"], {"000005": 0}),
    (["000005"], ["7", "000005.jpg"], {"000005": 1}),
    (["000005"], ["5"], {"000005": 0}),
    (["a.png"], ["a"], {"a.png": 0}),
    (["0"], ["000"], {"0": 0}),
    (["000005"], ["5", "000005"], {"000005": 1}),  # exact goes first
    (["000005"], ["5", "05"], {}),  # two could be meant
    (["000005", "5"], ["05"], {}),
    (["000005", "5"], ["05", "005"], {}),
    (["000005", "5"], ["5"], {"5": 0}),  # and the other is not matched to the same
    (["a.b"], ["a"], {}),  # not a picture's suffix
    (["050"], ["05"], {}),
    (["2008_000003"], ["2008_3"], {}),
]


@pytest.mark.parametrize(("wanted", "found", "matched"), MATCHES)
def test_ids_are_matched_where_no_other_could_be_meant(
    wanted: list[str], found: list[str], matched: dict[str, int]
) -> None:
    assert match_ids([(image_id, None) for image_id in wanted], found) == matched


def test_images_of_a_coco_file_are_matched_by_number_or_name() -> None:
    train = [("train/a.jpg", 1), ("train/b.jpg", 2)]
    assert match_ids(train, ["2", "1"]) == {"train/a.jpg": 1, "train/b.jpg": 0}
    assert match_ids(train, ["b", "a.jpg"]) == {"train/a.jpg": 1, "train/b.jpg": 0}
    assert match_ids([("val/000000000139.jpg", 139)], ["139"]) == {"val/000000000139.jpg": 0}
    with pytest.raises(UserError, match=r"'1' is the COCO id of both 'train/a\.jpg' and 'test/c\.jpg'"):
        match_ids([*train, ("test/c.jpg", 1)], ["1", "2"])
    with pytest.raises(
        UserError, match=r"'train/2\.jpg' .* its id in the COCO file .* id '1', but its name matches '2'"
    ):
        match_ids([("train/2.jpg", 1), ("train/1.jpg", 2)], ["1", "2"])


def test_no_two_images_get_the_same_proposals() -> None:
    """COCO numbers that begin at 0, beside file names that begin at 1."""
    images = [("1.jpg", 0), ("2.jpg", 1), ("3.jpg", 2)]
    assert match_ids(images, ["1.jpg", "3.jpg"]) == {"1.jpg": 0, "3.jpg": 1}  # 2.jpg has none
    with pytest.raises(
        UserError, match=r"id '1' is ambiguous: .* name of image '1\.jpg' .* id of '2\.jpg' in the COCO"
    ):
        match_ids(images, ["1", "5"])


def test_the_real_files_of_selective_search(test_data: Path, call: Call) -> None:
    """Of the two images one convention alone keeps every box and clips none."""
    root = test_data / "VOCdevkit" / "VOC2007"
    status, out, err = call("propose", f"convert={test_data / 'selective_search'}", f"data.root={root}")
    assert status == 0, err
    assert "images with proposals in the file: 2 of 409\n" in out
    assert "4,945 boxes kept, 0 of them clipped; 0 dropped" in out
    status, out, _ = call(
        "propose", f"convert={test_data / 'selective_search'}", f"data.root={root}", "convention=xyxy-1-inclusive"
    )
    assert status == 0
    assert "0 of them clipped" not in out


def test_files_of_several_splits_become_one_store(numbered: VocFolder, tmp_path: Path, call: Call) -> None:
    first = author(tmp_path / "trainval.mat", {i: BOXES[i] for i in IDS[:2]})
    second = author(tmp_path / "test.mat", {IDS[2]: BOXES[IDS[2]]})
    status, out, err = call("propose", f"convert=[{first},{second}]", f"data.root={numbered.root}")
    assert status == 0, err
    assert "images with proposals in the file: 3 of 3\n" in out
    store = ProposalStore("data/proposals/trainval.proposals")
    for image_id, boxes in BOXES.items():
        np.testing.assert_array_equal(store.boxes(image_id), boxes)
    digest = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (first, second)}
    assert store.meta["settings"]["sources"] == digest

    status, _, err = call("propose", f"convert=[{first},{second},{first}]", f"data.root={numbered.root}")
    assert (status, f"image '000005' is also in {first}" in err) == (1, True)
    other = tmp_path / "other.csv"
    other.write_text("image_id,x1,y1,x2,y2\nx,1,2,3,4\n")
    status, _, err = call("propose", f"convert=[{first},{other}]", f"data.root={numbered.root}")
    assert (status, "the box convention is xyxy-0-halfopen, but that of" in err) == (1, True)
