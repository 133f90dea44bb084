"""The embedded data set: repeatable, exact, found by selective search, never in the way of other files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import defusedxml.ElementTree
import numpy as np
import pytest

from fastrcnn.data import demo
from fastrcnn.data.demo import CLASSES, draw_picture, write_demo
from fastrcnn.errors import UserError

SMALL = {"train": 3, "val": 1, "test": 2, "size": (96, 64)}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def default_pictures() -> list[tuple[np.ndarray, list[demo.DrawnObject]]]:
    return [draw_picture(0, number, (224, 160)) for number in range(1, 61)]


# ------------------------------------------------------------------------------------------ files


def test_layout_and_splits(tmp_path: Path) -> None:
    root = write_demo(tmp_path / "new" / "demo", **SMALL)
    assert root == tmp_path / "new" / "demo"
    ids = [f"00000{n}" for n in range(1, 7)]
    assert sorted(p.name for p in (root / "JPEGImages").iterdir()) == [f"{i}.jpg" for i in ids]
    assert sorted(p.name for p in (root / "Annotations").iterdir()) == [f"{i}.xml" for i in ids]
    lists = {p.stem: p.read_text().split() for p in (root / "ImageSets" / "Main").iterdir()}
    assert lists == {"train": ids[:3], "val": ids[3:4], "trainval": ids[:4], "test": ids[4:]}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["demo"]  # nothing temporary is left


def test_annotations_hold_the_drawn_objects(tmp_path: Path) -> None:
    """VOC's one-based inclusive corners are the first and the last pixel of each mask, counted from 1."""
    root = write_demo(tmp_path / "demo", seed=5, train=12, val=0, test=0, size=(160, 120))
    for number in range(1, 13):
        tree = defusedxml.ElementTree.parse(root / "Annotations" / f"{number:06d}.xml")
        picture, objects = draw_picture(5, number, (160, 120))
        assert tree.findtext("filename") == f"{number:06d}.jpg"
        assert [int(tree.findtext(f"size/{k}")) for k in ("width", "height", "depth")] == [160, 120, 3]
        read = tree.findall("object")
        assert len(read) == len(objects)
        for item, drawn in zip(read, objects, strict=True):
            ys, xs = np.nonzero(drawn.mask)
            corners = [int(item.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
            assert corners == [xs.min() + 1, ys.min() + 1, xs.max() + 1, ys.max() + 1]
            assert item.findtext("name") == drawn.name
            assert item.findtext("difficult") == str(int(drawn.difficult))
            assert item.findtext("truncated") == str(int(drawn.truncated))
            assert item.findtext("pose") == "Unspecified"
        jpeg = cv2.imread(str(root / "JPEGImages" / f"{number:06d}.jpg"))
        assert jpeg.shape == (120, 160, 3)
        assert np.abs(jpeg.astype(int) - picture).mean() < 4


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path) -> None:
    first = contents(write_demo(tmp_path / "a", **SMALL))
    assert contents(write_demo(tmp_path / "b", **SMALL)) == first
    other = contents(write_demo(tmp_path / "c", seed=1, **SMALL))
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first if name.startswith(("JPEG", "Annotations")))
    pictures = {data for name, data in first.items() if name.startswith("JPEG")}
    assert len(pictures) == 6


def test_a_finished_demo_is_left_alone(tmp_path: Path) -> None:
    root = write_demo(tmp_path / "demo", **SMALL)
    (root / "proposals").mkdir()  # what a user keeps beside it
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert write_demo(root, **SMALL) == root
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


@pytest.mark.parametrize("existing", ["file", "empty folder", "own data", "other seed", "broken marker", "link"])
def test_anything_else_is_refused_and_not_touched(tmp_path: Path, existing: str) -> None:
    root = tmp_path / "demo"
    if existing == "file":
        root.write_text("mine")
    elif existing == "link":
        root.symlink_to(tmp_path / "nowhere")
    elif existing == "other seed":
        write_demo(root, seed=3, **SMALL)
    else:
        root.mkdir()
        if existing == "own data":
            (root / "JPEGImages").mkdir()
        if existing == "broken marker":
            (root / "demo.json").write_text('{"seed": 0}')
    before = contents(tmp_path)
    with pytest.raises(UserError, match="not overwritten") as error:
        write_demo(root, **SMALL)
    assert str(root) in str(error.value)
    assert contents(tmp_path) == before


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_at_third(seed: int, number: int, size: tuple[int, int]) -> tuple:
        if number == 3:
            raise OSError(28, "No space left on device")
        return draw_picture(seed, number, size)

    monkeypatch.setattr(demo, "draw_picture", fail_at_third)
    with pytest.raises(UserError, match="No space left"):
        write_demo(tmp_path / "demo", **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"train": -1}, {"size": (10, 160)}, {"size": (224, 100_000)}])
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError):
        write_demo(tmp_path / "demo", **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())


def test_marker_says_what_the_folder_holds(tmp_path: Path) -> None:
    marker = json.loads((write_demo(tmp_path / "demo", **SMALL) / "demo.json").read_text())
    assert marker == {"seed": 0, "train": 3, "val": 1, "test": 2, "size": [96, 64], "version": demo.VERSION}


# ------------------------------------------------------------------------------------------ pictures


def test_pictures_hold_what_a_detector_must_learn(default_pictures: list) -> None:
    objects = [item for _, of_picture in default_pictures for item in of_picture]
    sides = np.array([max(o.box[2] - o.box[0], o.box[3] - o.box[1]) for o in objects if not o.truncated])
    assert all(image.shape == (160, 224, 3) and image.dtype == np.uint8 for image, _ in default_pictures)
    counts = [len(of_picture) for _, of_picture in default_pictures]
    assert min(counts) >= 1
    assert max(counts) >= 5
    assert all(sum(o.name == name for o in objects) >= 20 for name in CLASSES)
    assert sides.min() < 32
    assert 96 < sides.max() <= 112  # 110 pixels, and a row of edge pixels at either side
    assert 0.01 < np.mean([o.difficult for o in objects]) < 0.12
    assert 0.03 < np.mean([o.truncated for o in objects]) < 0.25


def test_difficult_is_what_is_tiny_or_mostly_hidden(default_pictures: list) -> None:
    seen = {True: 0, False: 0}
    for _, objects in default_pictures:
        for k, item in enumerate(objects):
            hidden = np.zeros_like(item.mask)
            for later in objects[k + 1 :]:
                hidden |= later.mask
            side = max(item.box[2] - item.box[0], item.box[3] - item.box[1])
            if item.truncated or abs(side - demo.SMALLEST) <= 2:
                continue  # the picture alone does not tell the whole object's size
            share = (item.mask & ~hidden).sum() / item.mask.sum()
            assert item.difficult == (side < demo.SMALLEST or share < 0.5)
            seen[item.difficult] += 1
    assert min(seen.values()) > 0


def test_only_objects_at_the_border_are_truncated(default_pictures: list) -> None:
    for image, objects in default_pictures:
        height, width = image.shape[:2]
        for item in objects:
            x1, y1, x2, y2 = item.box
            at_border = x1 == 0 or y1 == 0 or x2 == width or y2 == height
            assert at_border or not item.truncated


def test_colour_does_not_tell_the_class() -> None:
    """The nearest class mean of the objects' colours is right about as often as guessing among five."""
    features, names = [], []
    for number in range(200):
        image, objects = draw_picture(1, number, (128, 96))
        for k, item in enumerate(objects):
            visible = item.mask & ~np.any([o.mask for o in objects[k + 1 :]] or [np.zeros_like(item.mask)], axis=0)
            features.append(image[visible].mean(0) if visible.any() else np.zeros(3))
            names.append(CLASSES.index(item.name))
    colours, labels = np.array(features), np.array(names)
    half = len(labels) // 2
    means = np.stack([colours[:half][labels[:half] == c].mean(0) for c in range(5)])
    guess = np.linalg.norm(colours[half:, None] - means, axis=2).argmin(1)
    assert (guess == labels[half:]).mean() < 0.32


def test_selective_search_finds_the_objects(tmp_path: Path) -> None:
    """From the files, as a user's detector would: recall at .5, and boxes that fit what is seen."""
    root = write_demo(tmp_path / "demo", seed=7, train=18, val=0, test=0)
    best = []
    for path in sorted((root / "JPEGImages").iterdir()):
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(cv2.imread(str(path)))
        search.switchToSelectiveSearchFast()
        x, y, w, h = search.process().astype(float).T
        tree = defusedxml.ElementTree.parse(root / "Annotations" / f"{path.stem}.xml")
        for item in tree.findall("object"):
            if item.findtext("difficult") == "1":
                continue
            left, top, right, bottom = (int(item.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            left, top = left - 1, top - 1
            meet_x = np.clip(np.minimum(x + w, right) - np.maximum(x, left), 0, None)
            meet_y = np.clip(np.minimum(y + h, bottom) - np.maximum(y, top), 0, None)
            meet = meet_x * meet_y
            best.append((meet / (w * h + (right - left) * (bottom - top) - meet)).max())
    assert len(best) > 45
    assert np.mean(np.array(best) >= 0.5) >= 0.97
    assert np.mean(best) > 0.85
