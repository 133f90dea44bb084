"""The proposal store: what goes in comes out, by id; broken, foreign and half-written stores are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from limits import full_disk

from fastrcnn import files
from fastrcnn.errors import UserError
from fastrcnn.proposals import store
from fastrcnn.proposals.clean import BoxCounts, clean
from fastrcnn.proposals.files import open_proposals
from fastrcnn.proposals.store import ImageProposals, ProposalStore, write_store

A = ImageProposals("b/2", 50, 100, np.array([[0, 0, 10, 20], [5, 6, 100, 50]], np.float32))
B = ImageProposals("a", 30, 40, np.zeros((0, 4), np.float32))
C = ImageProposals("bé-long-name", 7, 9, np.array([[1.5, 2.5, 3.5, 4.5]], np.float32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of A, B and C."""
    path = tmp_path / "x.proposals"
    write_store(path, [A, B, C], "a test", {"k": [1, 2]})
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_goes_in_comes_out_by_id(path: Path) -> None:
    store = ProposalStore(path)
    assert len(store) == 3
    assert store.ids == ["a", "b/2", "bé-long-name"]  # whatever the order they came in
    for item in (A, B, C):
        assert item.image_id in store
        np.testing.assert_array_equal(store.boxes(item.image_id), item.boxes)
        assert store.boxes(item.image_id).dtype == np.float32
        assert store.size(item.image_id) == (item.height, item.width)
    assert store.scores("a") is None
    assert store.meta["generator"] == "a test"
    assert store.meta["settings"] == {"k": [1, 2]}
    assert store.meta["images"] == 3


def test_the_folder_holds_plain_arrays_in_the_promised_types(path: Path) -> None:
    arrays = {f.stem: np.load(f, allow_pickle=False) for f in path.glob("*.npy")}
    assert {name: (a.dtype.str, a.shape) for name, a in arrays.items()} == {
        "ids": ("|S13", (3,)),
        "offsets": ("<i8", (3, 2)),
        "sizes": ("<i4", (3, 2)),
        "boxes": ("<f4", (3, 4)),
    }


def test_scores_follow_their_boxes_when_some_are_dropped(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 5, 5], [np.nan, 0, 1, 1], [2, 2, 8, 8]], np.float32)
    item = ImageProposals("i", 10, 10, boxes, np.array([0.3, 0.2, 0.1]))
    write_store(tmp_path / "s.proposals", [item], "test", {})
    store = ProposalStore(tmp_path / "s.proposals")
    np.testing.assert_array_equal(store.boxes("i"), boxes[[0, 2]])
    np.testing.assert_array_equal(store.scores("i"), np.array([0.3, 0.1], np.float32))


def test_scores_for_some_images_only_are_refused(tmp_path: Path) -> None:
    items = [replace(A, scores=np.array([1.0, 2.0])), C]
    with pytest.raises(UserError, match="bé-long-name"):
        write_store(tmp_path / "s.proposals", items, "test", {})


@pytest.mark.parametrize("unknown", ["", "b", "b/22", "an id that is longer than every id in the store", "zz"])
def test_an_unknown_id_is_named_together_with_the_store(path: Path, unknown: str) -> None:
    store = ProposalStore(path)
    assert unknown not in store
    with pytest.raises(UserError, match=rf"x\.proposals.*'{unknown}'.*fastrcnn propose"):
        store.boxes(unknown)


def test_boxes_are_a_copy_that_may_be_written_to(path: Path) -> None:
    store = ProposalStore(path)
    store.boxes("b/2")[:] = -1
    np.testing.assert_array_equal(store.boxes("b/2"), A.boxes)


def test_a_store_travels_to_a_worker_as_its_path_alone(path: Path) -> None:
    store = ProposalStore(path)
    sent = pickle.dumps(store)
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent).boxes("b/2"), A.boxes)


def test_an_id_may_be_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    image_id = os.fsdecode(b"caf\xe9")
    write_store(tmp_path / "u.proposals", [replace(A, image_id=image_id)], "test", {})
    store = ProposalStore(tmp_path / "u.proposals")
    assert store.ids == [image_id]
    np.testing.assert_array_equal(store.boxes(image_id), A.boxes)


def test_a_full_disk_is_the_reason_that_is_given(tmp_path: Path) -> None:
    """Without boxes, the ids and offsets are what does not fit."""
    items = [ImageProposals(f"{n:03}", 9, 9, np.zeros((0, 4))) for n in range(300)]
    with full_disk(3000), pytest.raises(UserError, match=r"x\.proposals: cannot be written \(File too large\)"):
        write_store(tmp_path / "x.proposals", items, "test", {})
    assert not list(tmp_path.iterdir())


def test_an_empty_store_is_a_store(tmp_path: Path) -> None:
    write_store(tmp_path / "e.proposals", [], "test", {})
    store = ProposalStore(tmp_path / "e.proposals")
    assert len(store) == 0
    assert "a" not in store


def test_many_images_in_any_order_are_all_found(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(300)
    items = (ImageProposals(str(n), 400, 400, np.full((n % 4, 4), [0, 0, n + 1, 9])) for n in order)
    write_store(tmp_path / "m.proposals", items, "test", {})
    store = ProposalStore(tmp_path / "m.proposals")
    for n in range(300):
        assert store.boxes(str(n)).tolist() == [[0, 0, n + 1, 9]] * (n % 4)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory from /proc")
def test_reading_leaves_no_pages_behind(tmp_path: Path) -> None:
    boxes = np.tile(np.array([0, 0, 9, 9], np.float32), (2000, 1))
    items = (ImageProposals(f"{n:04d}", 10, 10, boxes) for n in range(1000))  # 32 MB of boxes
    write_store(tmp_path / "p.proposals", items, "test", {})
    store = ProposalStore(tmp_path / "p.proposals")

    def of_the_boxes() -> int:
        """KiB of boxes.npy that are mapped by this process now."""
        text = Path("/proc/self/smaps").read_text()
        part = text[text.index("p.proposals/boxes.npy") :]
        return int(part[part.index("Rss:") :].split()[1])

    for n in range(1000):
        store.boxes(f"{n:04d}")
    assert of_the_boxes() < 2048


def test_clean_clips_drops_and_counts() -> None:
    boxes = [
        [10, 10, 20, 20],  # kept
        [-5, 90, 20, 120],  # clipped
        [np.nan, 0, 1, 1],
        [0, 0, np.inf, 1],
        [20, 10, 10, 20],  # inverted
        [10, 10, 10, 20],  # empty
        [200, 0, 210, 5],  # right of the image
        [0, -9, 5, 0],  # above it
        [0, 0, 200, 100],  # the whole image is no clipping
        [-1, 0, 201, 100],  # clipped by a pixel, which is not far
    ]
    kept, rows, counts = clean(np.array(boxes), height=100, width=200)
    assert kept.tolist() == [[10, 10, 20, 20], [0, 90, 20, 100], [0, 0, 200, 100], [0, 0, 200, 100]]
    assert rows.tolist() == [0, 1, 8, 9]
    assert counts == BoxCounts(kept=4, clipped=2, not_finite=2, inverted=2, outside=2, far=1)
    assert counts.dropped == 6


def test_counts_of_all_images_are_returned_and_stored(tmp_path: Path) -> None:
    bad = ImageProposals("d", 10, 10, np.array([[0, 0, 20, 5], [3, 3, 1, 1]]))
    assert write_store(tmp_path / "c.proposals", [A, bad], "test", {}) == BoxCounts(3, 1, 0, 1, 0, 1)
    assert ProposalStore(tmp_path / "c.proposals").meta["cleaning"]["inverted"] == 1


def test_check_names_the_first_image_that_differs(path: Path) -> None:
    store = ProposalStore(path)
    store.check(["b/2", "a"], [(50, 100), (30, 40)])
    with pytest.raises(UserError, match=r"x\.proposals.* 2 of 3 images.*example 'q'"):
        store.check(["a", "q", "r"])
    with pytest.raises(UserError, match=r"'b/2' has 100x50 pixels in the store, but the image file has 50x100"):
        store.check(["a", "b/2"], [(30, 40), (100, 50)])
    assert store.missing(["q", "a"]) == ["q"]


@pytest.mark.parametrize("twice", ["a", "bé-long-name"])
def test_an_id_that_comes_twice_is_named(tmp_path: Path, twice: str) -> None:
    with pytest.raises(UserError, match=f"more than once, for example '{twice}'"):
        write_store(tmp_path / "t.proposals", [A, B, C, replace(A, image_id=twice)], "test", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image_id", ["", "a\0"])
def test_an_id_that_the_array_cannot_hold_is_refused(tmp_path: Path, image_id: str) -> None:
    with pytest.raises(UserError, match="image id"):
        write_store(tmp_path / "t.proposals", [replace(A, image_id=image_id)], "test", {})


def test_a_failure_while_writing_leaves_the_old_store_and_nothing_else(path: Path) -> None:
    before = content(path)

    def items() -> Iterator[ImageProposals]:
        yield C
        assert content(path) == before  # still there while the new one grows
        raise RuntimeError("out of the blue")

    with pytest.raises(RuntimeError, match="out of the blue"):
        write_store(path, items(), "test", {})
    assert content(path) == before
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_at_the_last_step_brings_the_old_store_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(path)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # as on file systems that cannot
    with pytest.raises(UserError, match=r"x\.proposals.*No space left"):
        write_store(path, [C], "test", {})
    assert content(path) == before
    assert list(path.parent.iterdir()) == [path]


def test_a_new_store_replaces_the_old_one_and_an_open_one_keeps_reading(path: Path) -> None:
    opened = ProposalStore(path)
    write_store(path, [C], "test", {})
    assert ProposalStore(path).ids == [C.image_id]
    assert list(path.parent.iterdir()) == [path]
    np.testing.assert_array_equal(opened.boxes("b/2"), A.boxes)


def test_a_folder_that_is_no_store_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match="photos: the path exists and is not a proposal store"):
        write_store(tmp_path / "photos", [A], "test", {})
    assert (tmp_path / "photos" / "me.jpg").read_bytes() == b"precious"


def test_a_missing_store_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.proposals.*fastrcnn propose"):
        ProposalStore(tmp_path / "none.proposals")
    with pytest.raises(UserError, match=r"meta\.json"):
        ProposalStore(tmp_path)


@pytest.mark.parametrize("name", ["ids", "offsets", "sizes", "boxes"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "other", "pickle", "archive"])
def test_a_damaged_array_is_named(path: Path, name: str, damage: str) -> None:
    file = path / f"{name}.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "other":
        np.save(file, np.zeros((3, 3), np.int16))
    elif damage == "pickle":
        np.save(file, np.array([{}, {}, {}], dtype=object), allow_pickle=True)
    else:
        np.savez(path / "z.npz", a=np.zeros(3))
        shutil.move(path / "z.npz", file)
    with pytest.raises(UserError, match=rf"{name}\.npy: the proposal store is damaged"):
        ProposalStore(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "something else"}, "`format` is 'something else'"),
        ({"version": 99}, "`version` is 99"),
        ({"convention": "y1 x1 y2 x2"}, "y1 x1 y2 x2"),
        ({"images": 2}, "ids.npy"),
        ({"boxes": 4}, "boxes.npy"),
        ({"boxes": "3"}, "`boxes` is '3'"),
        ({"scores": True}, "scores.npy"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(path: Path, change: dict[str, object], match: str) -> None:
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(UserError, match=match):
        ProposalStore(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_description_that_cannot_be_read_is_refused(path: Path, text: bytes) -> None:
    (path / "meta.json").write_bytes(text)
    with pytest.raises(UserError, match=r"meta\.json"):
        ProposalStore(path)


@pytest.mark.parametrize("rows", [(0, 9), (-1, 1), (2, 1)])
def test_rows_that_are_not_there_are_refused(path: Path, rows: tuple[int, int]) -> None:
    np.save(path / "offsets.npy", np.array([rows] * 3, np.int64))
    with pytest.raises(UserError, match=r"offsets\.npy.*'b/2'"):
        ProposalStore(path).boxes("b/2")


def test_the_public_face_needs_no_torch() -> None:
    import subprocess

    code = "import sys, fastrcnn.proposals.store, fastrcnn.proposals.generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert store.VERSION == 1


@pytest.mark.parametrize("name", ["ids.npy", "offsets.npy", "sizes.npy", "boxes.npy", "meta.json"])
def test_a_named_pipe_in_place_of_a_file_is_refused_without_waiting_for_it(path: Path, name: str) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(UserError, match=r"not a proposal store" if name == "meta.json" else "not a regular file"):
        ProposalStore(path)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("ids.npy", [b"a", b"a", b"b/2"], r"ids\.npy: .*the id 'a' is repeated or not in order"),
        ("ids.npy", [b"b/2", b"a", b"c"], r"ids\.npy: .*the id 'a' is repeated or not in order"),
        ("sizes.npy", [[30, 40], [50, -1], [7, 9]], r"sizes\.npy: .*less than 1"),
        ("sizes.npy", [[0, 40], [50, 10], [7, 9]], r"sizes\.npy: .*less than 1"),
    ],
)
def test_ids_and_sizes_that_no_images_have_are_refused_when_the_store_is_opened(
    path: Path, name: str, value: list[object], match: str
) -> None:
    array = np.load(path / name)
    array[:] = value
    np.save(path / name, array)
    with pytest.raises(UserError, match=match):
        ProposalStore(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_boxes_that_are_not_finite_are_refused_when_they_are_read(path: Path, value: float) -> None:
    boxes = np.load(path / "boxes.npy")
    boxes[1, 2] = value  # the second box of A
    np.save(path / "boxes.npy", boxes)
    store = ProposalStore(path)
    assert store.boxes("a").shape == (0, 4)
    np.testing.assert_array_equal(store.boxes(C.image_id), C.boxes)
    with pytest.raises(UserError, match=r"boxes\.npy: .*a box of 'b/2' is not finite"):
        store.boxes("b/2")


def test_a_named_pipe_is_no_proposal_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "boxes.csv")
    with pytest.raises(UserError, match=r"boxes\.csv: this proposal file is not a regular file"):
        open_proposals(tmp_path / "boxes.csv")
