"""Which mistakes are shown, and the cuts of their pictures."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mistakes import DETECTIONS, OBJECTS, diagnosed, found, truth
from PIL import Image

from fastrcnn.report import gallery
from fastrcnn.report.gallery import Case, choose, cut_out
from fastrcnn.structures import Sample


def sample(image_id: str, width: int, height: int) -> Sample:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Sample(image_id, Path(f"{image_id}.jpg"), width, height, *nothing)


def case(box: tuple[float, float, float, float], image: int = 0) -> Case:
    return Case(True, "not detected", "cat", "", image, None, 0.0, (("object", box),))


def chosen() -> list[Case]:
    return choose(DETECTIONS, OBJECTS, diagnosed(DETECTIONS, OBJECTS))


def test_kinds_take_turns_and_scores_fall_within_a_turn() -> None:
    shown = [(c.kind, c.score) for c in chosen() if not c.missed]
    first = [("duplicate", 0.8), ("localisation", 0.6), ("confusion", 0.5), ("both", 0.4), ("background", 0.3)]
    second = [("localisation", 0.2), ("both", 0.09), ("background", 0.08), ("confusion", 0.07)]
    assert shown == [*first, *second, ("localisation", 0.1), ("background", 0.06)]


def test_what_is_drawn_says_why() -> None:
    cases = {(c.kind, c.score): c for c in chosen()}
    duplicate = cases["duplicate", 0.8]
    assert duplicate.boxes == (
        ("detection", (0, 0, 10, 9)),
        ("object", (0, 0, 10, 10)),
        ("better detection", (0, 0, 10, 10)),
    )
    confusion = cases["confusion", 0.5]
    assert (confusion.name, confusion.other) == ("cat", "dog")
    assert confusion.boxes[1] == ("other object", (0, 20, 10, 30))
    assert [part for part, _ in cases["background", 0.3].boxes] == ["detection"]
    taken = cases["wrong class", None]
    assert (taken.name, taken.other, taken.missed) == ("dog", "cat", True)
    assert taken.boxes == (("object", (0, 20, 10, 30)), ("detection", (0, 20, 10, 30)))
    assert cases["misplaced", None].boxes[1] == ("detection", (40, 0, 50, 4))  # the better one of three


def test_the_largest_missed_objects_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {"cat": truth((0, (0, 0, 5, 5), False), (0, (0, 0, 50, 50), False), (1, (0, 0, 20, 20), False))}
    detections = {"cat": found()}
    monkeypatch.setattr(gallery, "MOST_MISSED", 2)
    cases = choose(detections, objects, diagnosed(detections, objects))
    assert [c.boxes[0][1][2] for c in cases] == [50, 20]


def test_the_gallery_is_bounded() -> None:
    rng = np.random.default_rng(0)
    many = {f"c{k}": found(*((0, s, (0, 0, 9, 9)) for s in rng.random(300))) for k in range(4)}
    objects = {name: truth(*((1, (0, 0, 9, 9), False) for _ in range(50))) for name in many}
    cases = choose(many, objects, diagnosed(many, objects))
    assert [c.missed for c in cases] == [False] * 60 + [True] * 30
    assert {c.name for c in cases[:4]} == set(many)  # the best of each class first


def test_cuts_and_boxes_by_hand() -> None:
    """A box of 40 x 20 with a margin of a quarter of 40; at the border there is no more picture than there is."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[50:70, 100:140] = 255  # what is in the first box
    inside, corner = cut_out(
        [case((100, 50, 140, 70)), case((0, 0, 40, 20))], [sample("a", 200, 100)], lambda _: pixels
    )
    assert (inside.width, inside.height, inside.boxes[0][1]) == (60, 40, (10, 10, 50, 30))
    assert (corner.width, corner.height, corner.boxes[0][1]) == (50, 30, (0, 0, 40, 20))
    shown = np.asarray(Image.open(io.BytesIO(inside.jpeg or b"")))
    assert shown.shape == (40, 60, 3)
    assert shown[13:27, 13:47].min() > 200
    assert max(shown[:7].max(), shown[33:].max(), shown[:, :7].max(), shown[:, 53:].max()) < 50
    assert (inside.image_id, inside.problem) == ("a", "")


def test_large_cuts_are_scaled_and_tiny_pictures_work() -> None:
    sizes = [(4000, 1000), (1, 1), (3, 5000)]
    samples = [sample(str(i), *size) for i, size in enumerate(sizes)]
    cases = [case((0, 0, *size), i) for i, size in enumerate(sizes)]
    cut = cut_out(cases, samples, lambda s: np.zeros((s.height, s.width, 3), np.uint8))
    assert [(c.width, c.height) for c in cut] == [(320, 80), (1, 1), (1, 320)]
    assert cut[0].boxes[0][1] == (0, 0, 320, 80)
    assert all(c.jpeg for c in cut)


def test_pictures_that_cannot_be_read_are_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "here.png")
    samples = [replace(sample(name, 50, 50), path=tmp_path / f"{name}.png") for name in ("gone", "here")]
    samples.append(replace(samples[1], width=60))
    gone, here, other = cut_out([case((0, 0, 9, 9), i) for i in range(3)], samples)
    assert (gone.jpeg, gone.image_id) == (None, "gone")
    assert f"{tmp_path / 'gone.png'}: the file cannot be read (No such file" in gone.problem
    assert gone.width > 0
    assert here.jpeg
    assert "here.png: the image has 50 x 50 pixels, but its annotation has size 60 x 50." in other.problem
