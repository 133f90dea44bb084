"""What a comparison needs of an evaluation goes through its file unchanged, and a bad file is one clear message."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mistakes import CASES, CATS, DETECTIONS

from fastrcnn.errors import UserError
from fastrcnn.evaluation.matches import FILE, ClassMatches, Matches, class_matches, data_hash, read, write
from fastrcnn.evaluation.voc_ap import class_ap
from fastrcnn.structures import Sample

CAT = class_matches(DETECTIONS["cat"], CATS, class_ap(DETECTIONS["cat"], CATS))
NOTHING = class_matches(DETECTIONS["dog"], CATS, class_ap(DETECTIONS["dog"], CATS))
MATCHES = Matches("voc10", 0.25, {"cat": 0.5, "dög": 0.0}, ["a", "b"], "1f", {"cat": CAT, "dög": NOTHING})


def test_detections_that_count_by_falling_score() -> None:
    kept = [case for case in CASES if case[1] != "left out"]
    assert CAT.scores.tolist() == [case[0][1] for case in kept]
    assert CAT.correct.tolist() == [case[1] == "right" for case in kept]
    assert CAT.images.tolist() == [case[0][0] for case in kept]
    assert CAT.objects.tolist() == [0, 0]  # two of three, as one is difficult


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    write(tmp_path / FILE, MATCHES)
    again = read(tmp_path)
    assert replace(again, classes={}) == replace(MATCHES, classes={})
    for name, c in MATCHES.classes.items():
        for field in ("images", "scores", "correct", "objects"):
            np.testing.assert_array_equal(getattr(again.classes[name], field), getattr(c, field))


def test_nothing_detected_where_nothing_is(tmp_path: Path) -> None:
    nothing = ClassMatches(np.zeros(0, int), np.zeros(0), np.zeros(0, bool), np.zeros(0, int))
    write(tmp_path / FILE, Matches("coco", None, {"cat": None}, ["a"], "", {"cat": nothing}))
    again = read(tmp_path)
    assert (again.mean, again.ap, len(again.classes["cat"].scores)) == (None, {"cat": None}, 0)


def broken(path: Path, **changes: np.ndarray) -> None:
    write(path, MATCHES)
    with np.load(path) as file:
        content = dict(file) | changes
    out = io.BytesIO()
    np.savez(out, **content)
    path.write_bytes(out.getvalue())


def test_files_that_cannot_be_used_are_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with pytest.raises(UserError, match=r"contains no matches.npz.*fastrcnn eval checkpoint=RUN"):
        read(tmp_path)
    write(path, MATCHES)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:300], whole[:-40]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path)
    newer = json.dumps({"version": 2, "metric": "voc10", "ap": {"cat": 1, "dog": 1}, "image_ids": []}).encode()
    for changes in (
        {"images": CAT.images + 2},
        {"images": CAT.images - 1},
        {"scores": CAT.scores[1:]},
        {"scores": CAT.scores * np.nan},
        {"detections": np.array([3])},
        {"about": np.frombuffer(b"[]", np.uint8)},
        {"about": np.frombuffer(newer, np.uint8)},
        {"images": np.array([{}], object)},
    ):
        broken(path, **changes)
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path)


def test_the_hash_tells_what_was_asked() -> None:
    boxes, labels, difficult = np.ones((1, 4), np.float32), np.ones(1, np.int64), np.zeros(1, bool)
    one = Sample("a", Path("x.jpg"), 5, 4, boxes, labels, difficult)
    known = data_hash([one], ["cat"])
    assert known == data_hash([replace(one, path=Path("elsewhere.jpg"))], ["cat"])
    others = [
        data_hash([one], ["dog"]),
        data_hash([one, one], ["cat"]),
        data_hash([replace(one, image_id="b")], ["cat"]),
        data_hash([replace(one, width=6)], ["cat"]),
        data_hash([replace(one, boxes=2 * boxes)], ["cat"]),
        data_hash([replace(one, labels=2 * labels)], ["cat"]),
        data_hash([replace(one, difficult=~difficult)], ["cat"]),
    ]
    assert len({known, *others}) == 8
