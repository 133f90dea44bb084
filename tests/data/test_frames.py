"""Which way round images are used: by hand, and against Pillow's exif_transpose."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from voc_folder import VocFolder, voc_xml

from fastrcnn.audit.check import Settings, Task, read_all
from fastrcnn.build import annotations, datasets
from fastrcnn.build.audit import truth_pictures
from fastrcnn.config.schema import DataConfig
from fastrcnn.data.annotations.splits import load
from fastrcnn.data.dataset import DetectionDataset
from fastrcnn.data.frames import image_notes, look_at, read_sample, turn_for, without_objects
from fastrcnn.data.images import Stored
from fastrcnn.errors import UserError
from fastrcnn.proposals.store import ProposalStore
from fastrcnn.report.gallery import Case, cut_out
from fastrcnn.settings import SelectiveSearchSettings
from fastrcnn.structures import Sample

Call = Callable[..., tuple[int, str, str]]
SIDEWAYS = (5, 6, 7, 8)


def photo(path: Path, orientation: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Writes a PNG, `size` as stored, with a bright square in a corner of it; returns the upright pixels, by Pillow."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack((x, y, (x + y) // 2), axis=2).astype(np.uint8)
    pixels[4:24, 8:28] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image))


def bright(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The square, half-open."""
    y, x = np.nonzero(pixels.min(axis=2) == 255)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def sample(path: Path, width: int, height: int, turn: int = 1) -> Sample:
    return replace(without_objects(path.stem, path, (width, height)), turn=turn)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_the_annotation_decides(tmp_path: Path, orientation: int) -> None:
    stored, sideways = Stored(64, 48, orientation), orientation in SIDEWAYS
    assert turn_for(stored, (64, 48)) == 1
    assert turn_for(stored, (48, 64)) == (orientation if sideways else None)
    assert turn_for(stored, (64, 47)) is None
    assert turn_for(stored, None) == orientation
    assert turn_for(Stored(50, 50, orientation), (50, 50)) == 1
    path = tmp_path / "a.png"
    upright = photo(path, orientation)
    plain = photo(tmp_path / "plain.png", 1)
    np.testing.assert_array_equal(read_sample(sample(path, 64, 48)), plain)
    height, width = upright.shape[:2]
    np.testing.assert_array_equal(read_sample(sample(path, width, height, orientation)), upright)
    if sideways:
        np.testing.assert_array_equal(read_sample(sample(path, 48, 64)), upright)
    else:
        with pytest.raises(UserError, match=r"a\.png: the image has 64 x 48 pixels, .* has size 48 x 64\. .*swapped"):
            read_sample(sample(path, 48, 64))


def config_of(voc: VocFolder, **values: object) -> DataConfig:
    search = SelectiveSearchSettings(side=64, k=[50.0], min_side=4)
    cache = str(voc.root.parent / "cache")
    options = {"train": ["trainval"], "test": ["test"], "proposal_cache": cache, "selective_search": search}
    return DataConfig(name="photos", root=str(voc.root), **(options | values))


def annotate(voc: VocFolder, image_id: str, pixels: np.ndarray) -> None:
    x1, y1, x2, y2 = bright(pixels)
    square = ("cat", (x1 + 1, y1 + 1, x2, y2), False)
    voc.annotation(image_id, voc_xml([square], pixels.shape[1], pixels.shape[0], f"{image_id}.png"))


def training_set(config: DataConfig, names: list[str]) -> DetectionDataset:
    return datasets.run_sets(replace(config, test=[]), names, seed=0)[0]


@pytest.fixture
def album(voc: VocFolder) -> VocFolder:
    """Photos stored sideways and annotated upright, o5 to o8, and `s`, annotated as it is stored."""
    for orientation in SIDEWAYS:
        name = f"o{orientation}"
        annotate(voc, name, photo(voc.root / f"JPEGImages/{name}.png", orientation))
    plain = photo(voc.root / "JPEGImages/s.png", 1)
    photo(voc.root / "JPEGImages/s.png", 8)
    annotate(voc, "s", plain)
    voc.split("trainval", "o5", "o6", "o7", "o8", "s")
    voc.split("test", "o6", "s")
    return voc


def test_training_and_its_proposals_see_what_was_annotated(album: VocFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    annotations.say_once.cache_clear()
    config = config_of(album)
    data = training_set(config, ["cat"])
    assert [s.turn for s in data.samples] == [5, 6, 7, 8, 1]
    (kept,) = (album.root.parent / "cache").glob("*.proposals")
    store = ProposalStore(kept)
    for index, s in enumerate(data.samples):
        assert tuple(s.boxes[0]) == bright(data.picture(index))
        assert store.size(s.image_id) == (s.height, s.width)
        gap = np.abs(data.proposal_boxes(index) - s.boxes[0]).max(axis=1).min()
        assert gap <= 2, "selective search finds the square, in the frame of the truth"
    assert (
        "o5.png: 4 image(s) are rotated upright according to their EXIF orientation. The first is o5.png, stored as"
        in caplog.text
    )
    assert "s.png: 1 image(s) have an EXIF orientation but are used as stored" in caplog.text
    turned = annotations.samples(config, ["trainval"], ["cat"])
    path = datasets.proposal_path(config, turned, "trainval")
    assert path == kept
    assert datasets.proposal_path(config, [replace(s, turn=1) for s in turned], "trainval") != path


def test_check_finds_the_same_frames_and_the_proposals_of_training(album: VocFolder, call: Call) -> None:
    search = ["data.selective_search.side=64", "data.selective_search.k=[50]", "data.selective_search.min_side=4"]
    given = ["data=custom", "data.name=photos", f"data.root={album.root}", *search]
    assert call("propose", *given)[0] == 0
    status, out, err = call("check", *given, "output=checked")
    assert status == 0, out + err
    assert "Images rotated upright: " in out
    report = json.loads(Path("checked/report.json").read_text())
    assert report["proposals"]["splits"]["trainval"] == {"objects": 5, "at_50": 1.0, "at_70": 1.0, "best_overlap": 1.0}


def test_checks_pictures_are_drawn_in_the_frame_of_their_truth(album: VocFolder) -> None:
    ids = ["o5", "o6", "o7", "o8", "s"]
    records = read_all([Task("train", "trainval", album.root, i, None) for i in ids], Settings())
    for (caption, jpeg), record in zip(truth_pictures(records, ["cat"]), records, strict=True):
        drawn = np.asarray(Image.open(io.BytesIO(jpeg)))
        assert drawn.shape[1::-1] == record.size == record.image.size, caption
        _, _, x2, y2 = (int(v) for v in record.boxes[0])
        assert drawn[y2 - 6 : y2 - 3, x2 - 8 : x2 - 3].min() > 150, "the square is in its box, whose name is above"


def test_the_reports_cuts_are_in_the_frame_of_the_truth(album: VocFolder) -> None:
    """Also those of a re-evaluation, which does not look at the images before."""
    ids = ["o5", "o6", "o7", "o8", "s"]
    samples, _ = load(album.root, ids, ["cat"], need_pictures=False)
    boxes = [tuple(s.boxes[0].tolist()) for s in samples]
    cases = [Case(True, "not detected", "cat", "", i, None, 0.0, (("object", box),)) for i, box in enumerate(boxes)]
    for case in cut_out(cases, samples):
        assert case.jpeg, case.problem
        x1, y1, x2, y2 = (round(v) for v in case.boxes[0][1])
        cut = np.asarray(Image.open(io.BytesIO(case.jpeg)))
        assert cut[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() > 200
        assert np.median(cut) < 200


def test_images_without_truth_are_used_as_with_it_or_upright(album: VocFolder) -> None:
    photo(album.root / "JPEGImages/free.png", 6)
    photo(album.root / "JPEGImages/other.png", 6, size=(64, 40))
    album.annotation("other", voc_xml([("cat", (1, 1, 9, 9), False)], 50, 50))
    samples, looks, faults = annotations.load_unannotated([(album.root, ["o6", "s", "free", "other"])], album.root)
    assert [(s.image_id, s.width, s.height, s.turn) for s in samples] == [
        ("o6", 48, 64, 6),
        ("s", 64, 48, 1),
        ("free", 48, 64, 6),
    ]
    assert [turn for _, _, turn in looks] == [6, 1, 6]
    assert [f.split(": ", 1)[1] for f in faults] == [
        "the image has 64 x 40 pixels (upright: 40 x 64), but its annotation has size 50 x 50. Fix the size and the "
        "boxes in the annotation."
    ]


def test_a_coco_files_sizes_decide_with_and_without_truth(tmp_path: Path) -> None:
    upright = photo(tmp_path / "images/a.png", 6)
    photo(tmp_path / "images/b.png", 6)
    x1, y1, x2, y2 = bright(upright)
    images = [
        {"id": 1, "file_name": "a.png", "width": 48, "height": 64},
        {"id": 2, "file_name": "b.png", "width": 64, "height": 48},
    ]
    truth = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0, "area": 400}]
    file = tmp_path / "truth.json"
    file.write_text(
        json.dumps({"images": images, "annotations": truth, "categories": [{"id": 1, "name": "cat"}]}), encoding="utf-8"
    )
    ids = ["images/a.png", "images/b.png"]
    found = look_at(load(file, ids, ["cat"], root=tmp_path)[0])[0]
    assert [s.turn for s in found] == [6, 1]
    assert bright(read_sample(found[0])) == tuple(found[0].boxes[0])
    samples, _, faults = annotations.load_unannotated([(file, ids)], tmp_path)
    assert [(s.width, s.height, s.turn) for s in samples] == [(48, 64, 6), (64, 48, 1)]
    assert faults == []


def test_notes_count_and_name_the_first() -> None:
    a, b, c = Path("x/a.png"), Path("x/b.png"), Path("x/c.tif")
    looks = [
        (a, Stored(4, 3), 1),
        (b, Stored(4, 3, bits=12), 1),
        (c, Stored(4, 3, bits=12), 1),
        (c, Stored(4, 3, bits=10), 1),
        (a, Stored(4, 3, bits=16), 1),
    ]
    what = "image(s) with 16 bits per channel use only"
    assert [str(note) for note in image_notes(looks)] == [
        f"x/c.tif: 1 {what} 10 of them (values up to 1023) and are scaled accordingly. The first is c.tif.",
        f"x/b.png: 2 {what} 12 of them (values up to 4095) and are scaled accordingly. The first is b.png.",
    ]
    assert image_notes([]) == []
