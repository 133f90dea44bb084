"""Which images belong to which split, in every layout that a data set may have."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from voc_folder import VocFolder, fingerprint

from fastrcnn.data.annotations.formats import voc_xml
from fastrcnn.data.annotations.formats.voc_layout import pictures_without_annotation
from fastrcnn.data.annotations.splits import class_names, divide, find_split, load
from fastrcnn.errors import UserError


def coco_text(*image_ids: int) -> str:
    return json.dumps(
        {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in image_ids],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4]} for i in image_ids],
        }
    )


def test_an_image_is_for_testing_where_its_ids_hash_is_in_the_lowest_fifth() -> None:
    ids = [f"{n:06d}" for n in range(1000)]
    test = divide(ids, "test")
    # the first byte below 51 is a hash in the lowest fifth, the first byte above 51 is none
    first = {i: hashlib.sha256(i.encode()).digest()[0] for i in ids}
    assert {i for i in ids if first[i] < 51} <= set(test)
    assert not {i for i in ids if first[i] > 51} & set(test)
    assert divide(ids, "trainval") == [i for i in ids if i not in set(test)]


def test_an_image_stays_in_its_split_when_others_come_and_go() -> None:
    ids = [f"p{n}" for n in range(500)]
    assert divide(ids[:300], "test") == [i for i in divide(ids, "test") if i in set(ids[:300])]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_split_is_empty(count: int) -> None:
    for start in range(0, 100, count):
        ids = [str(n) for n in range(start, start + count)]
        train, test = divide(ids, "trainval"), divide(ids, "test")
        assert train
        assert test
        assert sorted(train + test) == sorted(ids)


def raw(tmp_path: Path, pictures: str, annotations: str) -> Path:
    """Ten pictures with XML files in folders of the given names, without lists."""
    voc = VocFolder(tmp_path / "voc")
    root = tmp_path / "raw"
    for n in range(10):
        voc.add(f"p{n}", ("cat", (1, 1, 32, 24), False))
    for folder, old in ((pictures, "JPEGImages"), (annotations, "Annotations")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in (voc.root / old).iterdir():
            shutil.copy(file, root / folder)
    return root


@pytest.mark.parametrize(
    ("pictures", "annotations"), [("JPEGImages", "Annotations"), ("images", "annotations"), ("", "")]
)
def test_a_folder_without_lists_is_divided_and_not_written_to(tmp_path: Path, pictures: str, annotations: str) -> None:
    root = raw(tmp_path, pictures, annotations)
    before = fingerprint(root)
    ids = [f"p{n}" for n in range(10)]
    for split in ("trainval", "test"):
        source, found, made = find_split(root, split)
        assert (source, found, made) == (root, divide(ids, split), True)
        assert class_names(source, found)[0] == ["cat"]
        samples, problems = load(
            source,
            found,
            ["cat"],
        )
        assert problems.lines == []
        assert [s.image_id for s in samples] == found
        assert all(s.path == root / pictures / f"{s.image_id}.jpg" for s in samples)
    assert fingerprint(root) == before


def test_lists_count_where_there_are_some(tiny: VocFolder) -> None:
    assert find_split(tiny.root, "trainval") == (tiny.root, ["a", "b"], False)
    assert find_split(tiny.root.parent, f"{tiny.root.name}/test") == (tiny.root, ["c"], False)
    with pytest.raises(UserError, match="no image list for the split 'val'"):
        find_split(tiny.root, "val")


@pytest.mark.parametrize(
    ("files", "split", "chosen"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), "trainval", 0),
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), "test", 1),
        (
            ("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"),
            "trainval",
            0,
        ),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"), "test", 2),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"), "val", 1),
    ],
)
def test_coco_files_are_told_apart_by_their_names(
    tmp_path: Path, files: tuple[str, ...], split: str, chosen: int
) -> None:
    for n, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(coco_text(n + 1))
    folder = (tmp_path / files[chosen]).relative_to(tmp_path).parent
    image = (folder / f"{chosen + 1}.jpg").as_posix()  # unique in the data set, unlike the file's numbers
    assert find_split(tmp_path, split) == (tmp_path / files[chosen], [image], False)


def test_one_coco_file_is_divided_and_may_be_the_root_itself(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(coco_text(*range(1, 21)))
    ids = [f"{n}.jpg" for n in range(1, 21)]
    for root in (tmp_path, tmp_path / "labels.json"):
        for split in ("trainval", "test"):
            assert find_split(root, split) == (tmp_path / "labels.json", divide(ids, split), True)


def test_a_coco_file_may_be_named_as_a_split(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(coco_text(1, 2))
    (tmp_path / "b.json").write_text(coco_text(3))
    assert find_split(tmp_path, "b.json") == (tmp_path / "b.json", ["3.jpg"], False)


def test_which_file_is_asked_where_the_names_do_not_say(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(coco_text(1, 2))
    (tmp_path / "b.json").write_text(coco_text(3))
    with pytest.raises(UserError, match=r"which file to use for 'trainval'\. Available: a\.json, b\.json"):
        find_split(tmp_path, "trainval")


def test_a_folder_without_anything_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no supported annotations found\. .*data\.yaml.*docs/data\.md"):
        find_split(tmp_path, "trainval")


def test_a_split_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    root = raw(tmp_path, "", "")
    with pytest.raises(UserError, match=r"no split 'val'.*divided into trainval and test"):
        find_split(root, "val")
    for file in sorted(root.glob("*.xml"))[1:]:
        file.unlink()
    with pytest.raises(UserError, match="found 1 annotated image"):
        find_split(root, "trainval")


# ------------------------------------------------------------------------------------------ folders for splits


def split_set(root: Path, layout: str, *folders: str) -> Path:
    """Six images in each folder; the same names in all of them. `layout` has the folders of images and XML files."""
    pictures, annotations = layout.split()
    for folder in folders:
        voc = VocFolder(root.with_name(f"of {folder}"))
        for n in range(6):
            voc.add(f"p{n}", ("cat", (1, 1, 20 + n, 24), False))
        for pattern, old in ((pictures, "JPEGImages"), (annotations, "Annotations")):
            shutil.copytree(voc.root / old, root / pattern.replace("*", folder), dirs_exist_ok=True)
    return root


LAYOUTS = (
    "* *",
    "*/images */annotations",
    "*/images */labels",
    "*/JPEGImages */Annotations",
    "images/* annotations/*",
    "JPEGImages/* Annotations/*",
    "imgs/* labels/*",
    "images/* images/*",
    "export/* export/*",
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_for_the_splits_are_the_splits(tmp_path: Path, layout: str) -> None:
    """Ids hold the folder, so that they differ between splits, and the right image belongs to each."""
    root = split_set(tmp_path / "set", layout, "train", "valid", "test")
    for split, folder in (
        ("trainval", "train"),
        ("train", "train"),
        ("test", "test"),
        ("valid", "valid"),
        ("val", "valid"),
    ):
        source, ids, made = find_split(root, split)
        assert (source, ids, made) == (root, [f"{folder}/p{n}" for n in range(6)], False)
        samples, problems = load(source, ids, ["cat"])
        images = root / layout.split()[0].replace("*", folder)
        assert [s.path for s in samples] == [images / f"p{n}.jpg" for n in range(6)]
        assert [s.boxes[0].tolist() for s in samples] == [[0, 0, 20 + n, 24] for n in range(6)]
        assert (problems.lines, problems.notes) == ([], [])
    assert pictures_without_annotation(root) == []
    lone = root / layout.split()[0].replace("*", "valid") / "lone.png"
    shutil.copy(tmp_path / "of train/JPEGImages/p0.jpg", lone)
    assert pictures_without_annotation(root) == [lone]


@pytest.mark.parametrize(
    ("folders", "split", "chosen"),
    [
        (("train", "valid"), "test", "valid"),  # as for COCO files
        (("train", "val", "trainval"), "trainval", "trainval"),
        (("Train", "Validation", "TEST"), "trainval", "Train"),
        (("Train", "Validation", "TEST"), "test", "TEST"),
        (("training", "testing"), "trainval", "training"),
        (("valid", "test"), "trainval", None),
        (("train", "valid", "test"), "tests", None),
        (("train", "valid", "validation"), "test", None),
    ],
)
def test_which_folder_a_split_means(tmp_path: Path, folders: tuple[str, ...], split: str, chosen: str | None) -> None:
    root = split_set(tmp_path / "set", "* *", *folders)
    if chosen:
        assert find_split(root, split)[1] == [f"{chosen}/p{n}" for n in range(6)]
    else:
        said = rf"folder to use for '{split}'\. Available: {', '.join(sorted(folders))}\. Select the folders"
        with pytest.raises(UserError, match=said):
            find_split(root, split)


def test_one_folder_with_a_split_s_name_is_divided_with_the_rest(tmp_path: Path) -> None:
    """Folders of classes may have such a name: `train` beside `bus`."""
    root = split_set(tmp_path / "set", "* *", "train", "bus")
    ids = [f"{folder}/p{n}" for folder in ("bus", "train") for n in range(6)]
    assert find_split(root, "test") == (root, divide(ids, "test"), True)


@pytest.mark.parametrize("layout", ["my/export/* my/export/*", "images/a/* annotations/a/*"])
def test_splits_further_down_are_not_mixed(tmp_path: Path, layout: str) -> None:
    root = split_set(tmp_path / "set", layout, "train", "valid")
    with pytest.raises(UserError, match=r"(export|a)/train, .*(export|a)/valid look like splits"):
        find_split(root, "trainval")
    if layout.startswith("my"):
        assert find_split(root / "my", "test")[1] == find_split(root, "my/test")[1]
        assert find_split(root, "my/test")[1] == [f"valid/p{n}" for n in range(6)]


def test_one_list_of_another_name_is_divided(tiny: VocFolder) -> None:
    folder = tiny.root / "ImageSets" / "Main"
    (folder / "test.txt").unlink()
    with pytest.raises(UserError, match=r"'test'\. Available lists: trainval\.$"):
        find_split(tiny.root, "test")  # its images are not divided: `trainval` means all of them
    tiny.split("val", "c")
    with pytest.raises(UserError, match=r"For example, set data\.train=\[trainval\] data\.test=\[val\]\.$"):
        find_split(tiny.root, "test")
    (folder / "val.txt").unlink()
    (folder / "trainval.txt").rename(folder / "default.txt")
    tiny.split("cat_default", "a 1", "b -1")  # CVAT writes those too
    for split in ("trainval", "test"):
        assert find_split(tiny.root, split) == (tiny.root, divide(["a", "b"], split), True)
    assert find_split(tiny.root, "default") == (tiny.root, ["a", "b"], False)


def test_the_log_says_which_folders_or_list_were_taken(
    tmp_path: Path, tiny: VocFolder, caplog: pytest.LogCaptureFixture
) -> None:
    from fastrcnn.build.annotations import image_ids
    from fastrcnn.config.schema import DataConfig

    caplog.set_level("INFO", "fastrcnn")
    root = split_set(tmp_path / "folders", "* *", "train", "valid", "other")
    image_ids(DataConfig(root=str(root)), ["trainval", "test"])
    assert "2 folders: train 6, valid 6" in caplog.text
    assert "the split 'test' uses the folder valid (6 images). Other folders: train (6)" in caplog.text
    assert "'trainval' uses the folder" not in caplog.text, "that goes without saying"
    for file in (tiny.root / "ImageSets" / "Main").glob("*.txt"):
        file.unlink()
    tiny.split("default", "a", "b", "c")
    image_ids(DataConfig(root=str(tiny.root)), ["test"])
    assert "1 list: default 3, divided by their ids into trainval 2 and test 1" in caplog.text


def test_an_annotation_is_parsed_once_for_classes_and_samples_until_it_changes(
    tiny: VocFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    monkeypatch.setattr(
        voc_xml, "parse", lambda path, real=voc_xml.parse, **how: parsed.append(path) or real(path, **how)
    )
    files = [tiny.root / f"Annotations/{i}.xml" for i in "abc"]
    for age, number in ((3600, 3), (1800, 6), (0, 12)):  # a file that has just changed may change again within its date
        for file in files:
            os.utime(file, (time.time() - age,) * 2)
        names, _ = class_names(tiny.root, ["a", "b", "c"])
        samples, _ = load(tiny.root, ["a", "b", "c"], names, root=tiny.root, training=True)
        assert (len(samples), len(parsed)) == (3, number)
