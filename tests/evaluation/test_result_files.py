"""comp4 and COCO files: conventions, round trips that leave AP alone, and what malformed files get."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastrcnn.errors import UserError
from fastrcnn.evaluation.result_files import read_coco, read_comp4, write_coco, write_comp4
from fastrcnn.evaluation.voc_ap import ClassDetections
from fastrcnn.files import replace_file
from fastrcnn.names import same_files

IDS = ["000001", "2008_000002", "img-3"]


def some(seed: int, count: int = 50) -> ClassDetections:
    """Detections whose scores and boxes were float32, as a network's are."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 300, (count, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(1, 200, (count, 2))), axis=1).astype(np.float32)
    return ClassDetections(rng.integers(0, 3, count), rng.random(count, np.float32), boxes)


def assert_same(a: ClassDetections, b: ClassDetections) -> None:
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.boxes, b.boxes)


# ------------------------------------------------------------------------------------------ comp4


def test_comp4_line_is_one_based_and_inclusive(tmp_path: Path) -> None:
    """The pixels 0 .. 9 along x and 20 .. 20 along y: in the devkit's counting 1 .. 10 and 21 .. 21."""
    detections = {"dog": ClassDetections(np.array([1]), np.array([0.25]), np.array([[0, 20, 10, 21]]))}
    (path,) = write_comp4(tmp_path / "new", "test", detections, IDS)
    assert path == tmp_path / "new" / "comp4_det_test_dog.txt"
    assert [float(v) for v in path.read_text().split()[1:]] == [0.25, 1, 21, 10, 21]
    assert path.read_text().split()[0] == "2008_000002"
    assert path.read_text().count("\n") == 1


def test_comp4_reads_a_line_as_half_open(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_dog.txt").write_text("img-3 0.5 1 21 10 21\n\n  000001\t1e-3 1.5 2 3 4  \r\n")
    found = read_comp4(tmp_path, "test", ["cat", "dog"], IDS)
    assert list(found) == ["dog"]  # no file of cats, no cats in the answer
    assert found["dog"].images.tolist() == [2, 0]
    assert found["dog"].scores.tolist() == [0.5, 0.001]
    assert found["dog"].boxes.tolist() == [[0, 20, 10, 21], [0.5, 1, 3, 4]]


def test_comp4_round_trip_is_exact(tmp_path: Path) -> None:
    detections = {"dog": some(0), "potted plant": some(1), "none": some(2, 0)}
    write_comp4(tmp_path, "val", detections, IDS)
    back = read_comp4(tmp_path, "val", ["none", "dog", "potted plant"], IDS)
    assert list(back) == ["none", "dog", "potted plant"]
    for name in detections:
        assert_same(back[name], detections[name])


def test_comp4_replaces_its_own_files_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_dog.txt").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    write_comp4(tmp_path, "test", {"dog": some(0, 2)}, IDS)
    assert len(read_comp4(tmp_path, "test", ["dog"], IDS)["dog"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["comp4_det_test_dog.txt", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("000001 0.5 1 2 3", "found '000001 0.5 1 2 3'"),
        ("000001 0.5 1 2 3 4 5", "expected `id score xmin ymin xmax ymax`"),
        ("000001 high 1 2 3 4", "'high' is not a finite number"),
        ("000001 nan 1 2 3 4", "'nan'"),
        ("000001 0.5 1 2 inf 4", "'inf'"),
        ("000009 0.5 1 2 3 4", "image '000009'"),
    ],
)
def test_comp4_names_the_malformed_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "comp4_det_test_dog.txt"
    path.write_text(f"000001 0.5 1 2 3 4\n\n{line}\n")
    with pytest.raises(UserError) as error:
        read_comp4(tmp_path, "test", ["dog"], IDS)
    assert f"{path}, line 3: " in str(error.value)
    assert says in str(error.value)


def test_comp4_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file comp4_det_test_<class>\.txt"):
        read_comp4(tmp_path, "test", ["dog"], IDS)
    (tmp_path / "comp4_det_test_dgo.txt").write_text("")
    with pytest.raises(UserError, match="Did you mean 'dog'"):
        read_comp4(tmp_path, "test", ["cat", "dog"], IDS)
    (tmp_path / "comp4_det_test_dgo.txt").rename(tmp_path / "comp4_det_test_dog.txt")
    (tmp_path / "comp4_det_test_dog.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_comp4(tmp_path, "test", ["dog"], IDS)


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("", "test", "has an empty name"),
        ("a/b", "test", "'a/b' contains a slash"),
        ("a\\b", "test", "contains a slash"),
        ("a\nb", "test", r"contains the character '\\n'"),
        ("a\tb", "test", r"contains the character '\\t'"),
        ("a\u2028b", "test", r"contains the character '\\u2028'"),
        ("a\ud800b", "test", r"contains the character '\\ud800'"),
        (" a", "test", "starts or ends with whitespace"),
        ("a\u00a0", "test", "starts or ends with whitespace"),
        ("c" * 237, "test", "would have 256 bytes, and the limit is 255"),  # comp4_det_test_ and .txt are 19
        ("ü" * 119, "test", "would have 257 bytes"),
        ("c", "s" * 241, "would have 257 bytes"),  # comp4_det_ and _ and .txt are 15
    ],
)
def test_a_class_that_cannot_have_a_file_is_refused(tmp_path: Path, name: str, split: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        write_comp4(tmp_path, split, {name: some(0)}, IDS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", ".", "a b", "c" * 236, "ü" * 118, "mAP", "<b>&%s", "[x]*?", "\u65e5\u672c"])
def test_any_other_class_has_a_file_that_reads_back(tmp_path: Path, name: str) -> None:
    (path,) = write_comp4(tmp_path, "test", {name: some(0)}, IDS)
    assert path.is_file()
    assert_same(read_comp4(tmp_path, "test", [name], IDS)[name], some(0))


def test_ids_with_spaces_are_percent_encoded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The encoding is that of addresses, RFC 3986: a percent sign and two digits for each byte of UTF-8."""
    ids = ["Screenshot (578)", "a b", "a%20b", "50%", "caf\udce9", "no\u00a0break", "plain-1_é"]
    encoded = ["Screenshot%20(578)", "a%20b", "a%2520b", "50%25", "caf%ED%B3%A9", "no%C2%A0break", "plain-1_é"]
    corners = np.arange(14.0).reshape(7, 2)
    detections = {"dog": ClassDetections(np.arange(7), np.linspace(0, 1, 7), np.hstack((corners, corners + 9)))}
    (path,) = write_comp4(tmp_path, "test", detections, ids)
    assert [line.split(" ")[0] for line in path.read_text(encoding="utf-8").splitlines()] == encoded
    assert "6 image id(s)" in caplog.text
    assert_same(read_comp4(tmp_path, "test", ["dog"], ids)["dog"], detections["dog"])
    path.write_text("50% .5 1 1 2 2\n50%25 .5 1 1 2 2\n", encoding="utf-8")  # as other programs write the id, too
    assert read_comp4(tmp_path, "test", ["dog"], ids)["dog"].images.tolist() == [3, 3]
    caplog.clear()
    write_comp4(tmp_path, "test", {"dog": some(0)}, IDS)
    assert not caplog.text


def test_names_that_one_file_system_takes_and_another_mixes_up() -> None:
    names = ["Cat", "dog", "cat", "caf\u00e9", "cafe\u0301", "cart"]
    assert same_files(names) == [["Cat", "cat"], ["caf\u00e9", "cafe\u0301"]]


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_comp4(tmp_path / "file", "test", {"dog": some(0)}, IDS)
    with pytest.raises(UserError, match="cannot be written"):
        write_coco(tmp_path / "file" / "results.json", {"dog": some(0)}, IDS, {"dog": 1})


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_comp4(tmp_path, "test", {"dog": some(0)}, IDS)
    before = path.read_text()

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write_comp4(tmp_path, "test", {"dog": some(1)}, IDS)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == before


def test_real_comp4_files_survive_a_round_trip(tmp_path: Path) -> None:
    data = os.environ.get("FASTRCNN_TEST_DATA")
    if not data:
        pytest.skip("FASTRCNN_TEST_DATA is not set: no real VOC detections to read")
    folder = Path(data) / "voc_eval"
    classes = ["aeroplane", "bottle", "cow", "dog", "tvmonitor"]
    ids = sorted({line.split()[0] for p in folder.glob("comp4*.txt") for line in p.read_text().splitlines()})
    first = read_comp4(folder, "test", classes, ids)
    lines = {"aeroplane": 2342, "bottle": 8712, "cow": 1547, "tvmonitor": 2802}
    assert {name: len(found) for name, found in first.items()} == lines
    write_comp4(tmp_path, "test", first, ids)
    again = read_comp4(tmp_path, "test", classes, ids)
    for name in first:
        np.testing.assert_array_equal(again[name].scores, first[name].scores)
        np.testing.assert_allclose(again[name].boxes, first[name].boxes, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------ COCO


def test_coco_entry(tmp_path: Path) -> None:
    detections = {"dog": ClassDetections(np.array([1]), np.array([0.25]), np.array([[3, 20, 10, 21]]))}
    path = write_coco(tmp_path / "results.json", detections, [7, 12], {"cat": 1, "dog": 18})
    expected = [{"image_id": 12, "category_id": 18, "bbox": [3.0, 20.0, 7.0, 1.0], "score": 0.25}]
    assert json.loads(path.read_text()) == expected


def test_coco_round_trip_is_exact(tmp_path: Path) -> None:
    detections = {"dog": some(0), "cat": some(1), "none": some(2, 0)}
    categories = {"none": 5, "cat": 1, "dog": 18}
    path = write_coco(tmp_path / "results.json", detections, IDS, categories)
    back = read_coco(path, IDS, categories)
    assert list(back) == list(categories)
    for name in detections:
        assert_same(back[name], detections[name])
    assert json.loads(write_coco(path, {}, IDS, categories).read_text()) == []


def test_coco_ids_as_numbers_or_strings(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    entry = {"category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    path.write_text(json.dumps([{"image_id": i, **entry} for i in (12, "000012", "12", "a")]))
    assert read_coco(path, ["a", "000012"], {"dog": 1})["dog"].images.tolist() == [1, 1, 1, 0]
    path.write_text(json.dumps([{"image_id": i, **entry} for i in (12, "012")]))
    assert read_coco(path, ["12", "012"], {"dog": 1})["dog"].images.tolist() == [
        0,
        1,
    ]  # the exact id goes first


GOOD = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ([1], "found [1]"),
        ({k: v for k, v in GOOD.items() if k != "score"}, 'expected {"image_id"'),
        (GOOD | {"score": None}, "None is not a finite number"),
        (GOOD | {"score": True}, "True is not a finite number"),
        (GOOD | {"score": 10**400}, "not a finite number"),
        (GOOD | {"bbox": [0, 0, 1]}, "[x, y, width, height]"),
        (GOOD | {"bbox": [0, 0, 1, float("nan")]}, "nan is not a finite number"),
        (GOOD | {"category_id": 3}, "the data set has no category 3"),
        (GOOD | {"category_id": [1]}, "category"),
        (GOOD | {"image_id": 4}, "image '4'"),
        (GOOD | {"image_id": {}}, "image"),
    ],
)
def test_coco_names_the_malformed_entry(tmp_path: Path, entry: object, says: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD, entry]))
    with pytest.raises(UserError) as error:
        read_coco(path, ["1"], {"dog": 1})
    assert f"{path}, entry 2: " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[\n{"image_id": 1,\n', "line 3: .*not valid JSON"),
        ("", "line 1: .*not valid JSON"),
        ('{"annotations": []}', "must be a JSON list of detections"),
        ("[" * 100_000, "results.json"),
        (f"[{'1' * 5000}]", "results.json"),
    ],
)
def test_coco_refuses_other_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_coco(path, ["1"], {"dog": 1})
    with pytest.raises(UserError, match="cannot be read"):
        read_coco(tmp_path / "missing.json", ["1"], {"dog": 1})


def test_a_name_may_have_all_its_bytes_while_it_is_written(tmp_path: Path) -> None:
    path = replace_file(tmp_path / ("n" * 255), b"x")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_comp4_does_not_quote_a_file_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:x:secret\n")
    folder = tmp_path / "detections"
    folder.mkdir()
    (folder / "comp4_det_test_cat.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"comp4_det_test_cat\.txt: the link points outside the folder") as caught:
        read_comp4(folder, "test", ["cat"], ["a"])
    assert "root:x" not in str(caught.value)
