"""COCO annotations: read as pycocotools reads them, and everything that can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import Compared, calls, in_bounds
from PIL import Image
from voc_folder import fingerprint

from fastrcnn.data.annotations import splits
from fastrcnn.data.annotations.formats import coco_file
from fastrcnn.data.annotations.formats.coco import coco_classes
from fastrcnn.data.annotations.formats.coco_file import find_coco_files, read_coco_file
from fastrcnn.data.truth.problems import Problems
from fastrcnn.errors import UserError
from fastrcnn.structures import Sample

CLASSES = ["cat", "dog"]


def content() -> dict[str, Any]:
    """Two pictures of 64 x 48; a crowd of dogs on the second."""
    return {
        "images": [
            {"id": 7, "file_name": "seven.png", "width": 64, "height": 48},
            {"id": 12, "file_name": "twelve.png", "width": 64, "height": 48},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 5, "name": "ship"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 17, "bbox": [3.5, 4.0, 10.25, 20.0], "iscrowd": 0, "area": 205.0},
            {"id": 2, "image_id": 12, "category_id": 18, "bbox": [0, 0, 64, 48], "iscrowd": 1, "area": 3072},
            {"id": 3, "image_id": 7, "category_id": 18, "bbox": [30, 20, 34.4, 28], "iscrowd": 0, "area": 963.2},
        ],
    }


def write(root: Path, value: dict[str, Any], name: str = "annotations.json") -> Path:
    """The file, and a picture for each entry."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    for image in value.get("images", []):
        picture = root / "images" / image["file_name"]
        picture.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(picture)
    return path


SEVEN, TWELVE = "images/seven.png", "images/twelve.png"
BOTH = (SEVEN, TWELVE)


def load(path: Path, ids: Sequence[str] | None = None, **how: bool) -> tuple[list[Sample], Problems]:
    ids = read_coco_file(path).ids(path.parent) if ids is None else ids
    return splits.load(path, ids, CLASSES, root=path.parent, **how)  # type: ignore[arg-type]


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_boxes_classes_and_crowds_are_those_that_pycocotools_reads(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    path = write(tmp_path, content())
    theirs = COCO(str(path))
    samples, problems = load(path)
    assert problems.lines == []
    for sample in samples:
        entries = theirs.loadAnns(theirs.getAnnIds(imgIds=sample.number))
        names = [theirs.cats[e["category_id"]]["name"] for e in entries]
        assert [CLASSES[i - 1] for i in sample.labels] == names
        np.testing.assert_array_equal(sample.difficult, [bool(e["iscrowd"]) for e in entries])
        want = np.array([e["bbox"] for e in entries], np.float64)
        np.testing.assert_array_equal(sample.sizes, want[:, 2:])
        np.testing.assert_array_equal(sample.areas, [e["area"] for e in entries])
        want[:, 2:] += want[:, :2]
        np.testing.assert_array_equal(sample.boxes, want)
        np.testing.assert_array_equal(sample.training_boxes, np.minimum(want, (64, 48, 64, 48)).astype(np.float32))
    (note,) = problems.notes
    assert (note.kind, note.object, note.what[:9]) == ("clipped", 3, "1 box(es)")  # 30 + 34.4 is .4 of a pixel too far
    assert samples[0].path == tmp_path / "images" / "seven.png"


def test_crowds_are_left_out_of_training(tmp_path: Path) -> None:
    samples, _ = load(write(tmp_path, content()), [TWELVE], training=True)
    assert len(samples[0].boxes) == 0


FLAGS = [(0, False), ("0", False), ("false", False), (None, False), (False, False), (0.0, False)]
FLAGS += [(1, True), ("1", True), ("True", True), (True, True), (1.0, True), (" yes ", True)]


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize(("flag", "crowd"), FLAGS)
def test_flags_are_read_as_tools_write_them(tmp_path: Path, key: str, flag: Any, crowd: bool) -> None:
    value = content()
    value["annotations"][0][key] = flag
    path = write(tmp_path, value)
    samples, problems = load(path, [SEVEN])
    assert samples[0].difficult.tolist() == [crowd and key == "iscrowd", False]
    what = "`ignore` is set. Training does not use the annotation, but evaluation counts it, as in pycocotools."
    said = [f"{path}, annotation 1 (cat): {what}"]
    assert [str(note) for note in problems.notes if note.kind != "clipped"] == (
        said if crowd and key == "ignore" else []
    )
    samples, problems = load(path, [SEVEN], training=True)
    assert samples[0].labels.tolist() == ([2] if crowd else [1, 2])
    said = [f"{path}, annotation 1 (cat): `{key}` is set, so training does not use the annotation."]
    assert [str(note) for note in problems.notes if note.kind != "clipped"] == (said if crowd else [])


@pytest.mark.parametrize("write_id", [int, float, str])
def test_ids_may_be_written_in_other_ways_in_each_list(tmp_path: Path, write_id: Callable[[int], Any]) -> None:
    value = content()
    for entry in value["annotations"]:
        entry |= {"image_id": write_id(entry["image_id"]), "category_id": write_id(entry["category_id"])}
    path = write(tmp_path, value)
    assert coco_classes(path) == ["cat", "dog"]
    assert [s.labels.tolist() for s in load(path)[0]] == [[1, 2], [2]]
    value["images"][0]["id"] = "seven"
    value["annotations"][0]["image_id"] = value["annotations"][2]["image_id"] = " seven"
    value["categories"][1]["id"] = value["annotations"][0]["category_id"] = "c"
    path = write(tmp_path, value)
    samples, _ = load(path)
    assert [(s.number, s.labels.tolist()) for s in samples] == [(12, [2]), ("seven", [1, 2])]
    assert read_coco_file(path).category_ids == {"dog": 18, "cat": "c", "ship": 5}


def test_images_come_in_the_order_of_their_ids_as_pycocotools_counts_them(tmp_path: Path) -> None:
    value = content()
    value["images"].reverse()
    path = write(tmp_path, value)
    assert read_coco_file(path).ids(tmp_path) == [SEVEN, TWELVE]


def test_categories_without_annotations_do_not_count(tmp_path: Path) -> None:
    """Roboflow adds a root category, which may have the name of a class."""
    value = content()
    value["categories"] += [{"id": 0, "name": "cat", "supercategory": "none"}, {"id": 99}]
    path = write(tmp_path, value)
    file = read_coco_file(path)
    assert (coco_classes(path), file.problems) == (["cat", "dog"], ())
    assert file.category_ids == {"dog": 18, "cat": 17, "ship": 5}
    value["annotations"][1]["category_id"] = 0
    assert "category 4: the name 'cat' is used twice" in refused(write(tmp_path, value))


def test_windows_paths_are_read(tmp_path: Path) -> None:
    value = content()
    path = write(tmp_path, value)
    for image in value["images"]:
        image["file_name"] = f".\\images\\{image['file_name']}"
    path.write_text(json.dumps(value))
    samples, problems = load(path)
    assert (problems.lines, [s.image_id for s in samples]) == ([], list(BOTH))


@pytest.mark.parametrize("folder", ["C:\\me\\", "/home/me/", "..\\"])
def test_one_cause_is_one_message(tmp_path: Path, folder: str) -> None:
    value = content()
    path = write(tmp_path, value)
    for image in value["images"]:
        image["file_name"] = folder + image["file_name"]
    path.write_text(json.dumps(value))
    file = read_coco_file(path)
    assert file.images == {}
    (problem,) = file.problems
    assert (
        f"image 1: `file_name` is '{folder}seven.png', which points outside the folder of the data set" in problem.what
    )
    assert "The same problem occurs in 2 images. This is the first." in problem.what
    assert "3 annotation(s) of unusable images are not read" in problem.what


def test_a_rotated_box_becomes_the_one_around_it(tmp_path: Path) -> None:
    """CVAT gives the box before its rotation about its centre: 20 x 10 at (20, 15), turned by 90 degrees."""
    value = content()
    value["annotations"][0] |= {"bbox": [10, 10, 20, 10], "attributes": {"rotation": 90.0, "occluded": False}}
    value["annotations"][1]["attributes"] = {"rotation": 180.0}
    samples, problems = load(write(tmp_path, value))
    np.testing.assert_allclose(samples[0].boxes[0], [15, 5, 25, 25], atol=1e-9)
    np.testing.assert_allclose(samples[0].sizes[0], [10, 20], atol=1e-9)  # type: ignore[index]
    (note,) = [note for note in problems.notes if note.kind != "clipped"]
    assert (note.kind, note.object, "rotated by 90 degrees" in note.what) == (
        "rotated",
        1,
        True,
    )


def test_images_that_are_all_missing_are_one_problem(tmp_path: Path) -> None:
    value = content()
    value["images"] = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(20)]
    value["annotations"] = []
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(value))
    message = refused(path)
    assert message.count("no such image") == 1
    assert "The same problem occurs in 20 files" in message


def test_boxes_normalised_to_1_are_one_problem(tmp_path: Path) -> None:
    value = content()
    for entry in value["annotations"]:
        entry["bbox"] = [0.1, 0.2, 0.5, 1]
    path = write(tmp_path, value)
    (problem,) = read_coco_file(path).problems
    assert (problem.kind, "all coordinates of the 3 box(es) are between 0 and 1" in problem.what) == (
        "normalised",
        True,
    )
    assert "look normalised" in refused(path)
    value["annotations"][0]["bbox"] = [0, 0, 1, 1.5]
    assert read_coco_file(write(tmp_path, value)).problems == ()


def test_classes_are_those_with_objects_in_the_order_of_their_ids(tmp_path: Path) -> None:
    assert coco_classes(write(tmp_path, content())) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("_annotations.coco.json", "."),
        ("annotations.json", "JPEGImages"),
    ],
)
def test_pictures_are_found_in_the_usual_places(tmp_path: Path, name: str, where: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content()))
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    for image in content()["images"]:
        Image.new("RGB", (64, 48)).save(tmp_path / where / image["file_name"])
    file = read_coco_file(path)
    assert file.base == tmp_path / where
    ids = file.ids(tmp_path)
    assert ids == [(Path(where) / name).as_posix() for name in ("seven.png", "twelve.png")]
    assert [s.image_id for s in splits.load(path, ids, CLASSES, root=tmp_path)[0]] == ids


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox": [3, 4, 0, 5]}, "annotation 1 (cat): the box [3, 4, 0, 5] has no area"),
        ({"bbox": [3, 4, -2, 5]}, "annotation 1 (cat): the box [3, 4, -2, 5] has no area"),
        ({"bbox": [3, 4, 5]}, "annotation 1 (cat): the box [3, 4, 5] is not a list of four numbers"),
        ({"bbox": None}, "annotation 1 (cat): the box None is not a list of four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "is not a list of four numbers"),
        ({"bbox": [1, 2, True, 4]}, "is not a list of four numbers"),
        ({"bbox": [60, 4, 8, 5]}, "extends beyond the image of 64 x 48 pixels"),
        ({"category_id": 99}, "annotation 1: unknown class 'category 99'"),
        ({"category_id": 5}, "annotation 1: unknown class 'ship'. Known classes: cat, dog."),
        ({"image_id": 8}, "annotation 1: the file has no image with the id 8"),
        ({"iscrowd": "maybe"}, "annotation 1: `iscrowd` must be 0 or 1, but is 'maybe'"),
        ({"ignore": 2}, "annotation 1: `ignore` must be 0 or 1, but is 2"),
    ],
)
def test_what_is_wrong_with_an_annotation_is_said_with_its_number(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    value = content()
    value["annotations"][0] |= change
    path = write(tmp_path, value)
    assert said in refused(path)
    samples, problems = load(path, skip_bad=True)
    assert [len(s.boxes) for s in samples] == [1, 1]
    assert len(problems.lines) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"file_name": "../x.png"},
            "image 1: `file_name` is '../x.png', which points outside the folder of the data set",
        ),
        ({"file_name": "/etc/passwd"}, "which points outside the folder of the data set"),
        ({"file_name": ""}, "image 1: `file_name` is missing"),
        ({"width": 0}, "image 1: `width` must be an integer from 1 to 999,999 (pixels), but is 0"),
        ({"height": "48"}, "image 1: `height` must be an integer from 1 to 999,999 (pixels), but is '48'"),
        ({"height": 48.5}, "image 1: `height` must be an integer from 1 to 999,999 (pixels), but is 48.5"),
        ({"id": 1.5}, "image 1: `id` is missing"),
        ({"id": 12}, "image 2: the id 12 is used twice"),
        ({"id": "12"}, "image 2: the id 12 is used twice"),
        ({"file_name": "twelve.png"}, "image 2: `file_name` 'twelve.png' is the same as in image 1"),
        ({"file_name": "eight.png"}, "eight.png: no such image"),
    ],
)
def test_what_is_wrong_with_an_image_is_said_with_its_number(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write(tmp_path, content())
    value = content()
    value["images"][0] |= change
    path.write_text(json.dumps(value))
    assert said in refused(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [\n{]}', "line 2, column 2: not valid JSON"),
        ("[]", "the list `images` or `categories` is missing"),
        ('{"images": []}', "the list `images` or `categories` is missing"),
        ('{"images": [], "categories": [], "annotations": 5}', "`annotations` must be a list"),
        ("[" * 100_000, "the JSON cannot be read"),
        ("\xff\xfe", "not valid UTF-8 (at byte 0)"),
        ('{"a": ' + "9" * 10_000 + "}", "the JSON cannot be read"),
    ],
)
def test_what_is_no_coco_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    assert said in refused(path)


def test_a_link_out_of_the_data_set_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "set", content())
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 48)).save(secret)
    (tmp_path / "set" / "images" / "seven.png").unlink()
    (tmp_path / "set" / "images" / "seven.png").symlink_to(secret)
    assert "the link points outside the folder of the data set" in refused_data(path)


def refused_data(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    return str(caught.value)


def test_a_box_thinner_than_single_precision_can_tell_is_refused(tmp_path: Path) -> None:
    value = content()
    value["annotations"][1]["bbox"] = [0, 0, 1.0, 1e-50]
    assert "[0, 0, 1.0, 1e-50] has no area" in refused_data(write(tmp_path, value))


def test_other_json_files_are_not_taken_for_annotations(tmp_path: Path) -> None:
    path = write(tmp_path, content())
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "folder.json").mkdir()
    broken = tmp_path / "broken.json"
    assert find_coco_files(tmp_path) == ([path], {broken: refused(broken)})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("../x.png"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, v in inner for place in places(v, (*at, key)))]


@given(changes=st.lists(st.tuples(st.sampled_from(places(content())[1:]), values), min_size=1, max_size=3))
def test_whatever_the_file_holds_there_is_a_result_or_a_message_that_names_it(
    tmp_path: Path, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    value: Any = content()
    for place, new in changes:
        inner = value
        try:
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = new
        except (TypeError, LookupError):  # an earlier change took the place away
            continue
    path = tmp_path / "any.json"
    path.write_text(json.dumps(value))
    before = fingerprint(tmp_path)
    message = ""
    with in_bounds():
        try:
            ids = read_coco_file(path).ids(tmp_path)
            coco_classes(path)
            for sample in load(path, ids, need_pictures=False)[0]:
                assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
                assert (sample.training_boxes >= 0).all()
                assert (sample.training_boxes <= (sample.width, sample.height) * 2).all()
        except UserError as error:
            message = str(error)
    assert not message or str(path) in message
    assert fingerprint(tmp_path) == before


def test_categories_are_compared_with_few_others() -> None:
    """With and without annotations; both their ids and their names are texts here."""
    entries: list[dict[str, Any]] = [{"id": Compared(f"i{n}"), "name": Compared(f"n{n}")} for n in range(1000)]
    used = frozenset(f"i{n}" for n in range(500))
    names, faults = coco_file._categories(Path("a.json"), entries, used)
    assert (list(names)[499:501], len(names), faults) == (["i499", "i500"], 1000, [])
    assert calls(lambda: coco_file._categories(Path("a.json"), entries, used)) < 30_000


BIG = "9" * 400


def damaged(root: Path, old: str, new: str) -> Path:
    """A file of three pictures, where the text `old` of the first or of its annotation is replaced."""
    value = content()
    value["images"].append({"id": 20, "file_name": "twenty.png", "width": 64, "height": 48})
    path = write(root, value)
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[3.5, ", f"[{BIG}, ", "annotation 1 (cat): the box"),
        ('7, "category_id": 17', f'7, "category_id": {BIG}', "annotation 1: unknown class 'category 999"),
        ('"iscrowd": 0, "area": 205.0', f'"iscrowd": {BIG}', "annotation 1: `iscrowd` must be 0 or 1, but is 999"),
        ("[3.5, 4.0, 10.25, 20.0]", '[3.5, 4.0, 10.25, 20.0], "bbox": [0, 0, 5, 5]', "annotation 1: the key `bbox`"),
        (
            '"area": 205.0',
            '"attributes": {"rotation": 1, "rotation": 2}',
            "annotation 1: the key `rotation` occurs more",
        ),
        ('"seven.png", "width": 64', f'"seven.png", "width": {BIG}', "image 1: `width` must be an integer"),
        ('"seven.png",', '"seven.png", "file_name": "8.png",', "image 1: the key `file_name` occurs more than once"),
        ('"seven.png"', r'"se\ud800ven.png"', r"image 1: `file_name` contains the character '\ud800'"),
        ('"seven.png"', f'"{"7" * 300}.png"', f"{'7' * 300}.png: no such image"),
        ('"seven.png"', f'"{"7/" * 3000}.png"', "no such image"),
    ],
)
def test_extreme_values_are_errors_or_are_skipped(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = damaged(tmp_path, old, new)
    assert says in refused(path)
    samples, problems = load(path, skip_bad=True)
    assert "twelve.png" in [s.path.name for s in samples]
    assert [says in line for line in problems.lines] == [True]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('{"images": ', '{"images": [], "images": ', "the key `images` occurs more than once"),
        ("[3.5, ", f"[{'9' * 5000}, ", "a number has more than 4,300 digits"),
    ],
)
def test_a_file_of_two_meanings_or_of_endless_numbers_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert says in refused(damaged(tmp_path, old, new))


def test_a_category_of_two_names_is_refused(tmp_path: Path) -> None:
    path = damaged(tmp_path, '"name": "cat"', '"name": "cat", "name": "dog"')
    assert "category 2: the key `name` occurs more than once" in refused(path)


def test_if_all_images_have_names_that_are_too_long_none_is_searched_for_in_vain(tmp_path: Path) -> None:
    value = content()
    value["images"] = [{"id": n, "file_name": f"{n}{'7' * 300}.png", "width": 64, "height": 48} for n in range(6)]
    value["annotations"] = []
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(value))
    assert "6 problem(s)" in refused(path)
