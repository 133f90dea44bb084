"""COCO exports as whole data sets: splits that number their images alike, crowds, classes of one split alone."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from voc_folder import VocFolder

from fastrcnn.build import annotations, datasets
from fastrcnn.config.schema import DataConfig
from fastrcnn.data.annotations.formats import coco_file
from fastrcnn.data.annotations.formats.coco_file import read_coco_file
from fastrcnn.data.annotations.unused import unused_coco
from fastrcnn.errors import UserError
from fastrcnn.proposals.store import ImageProposals, write_store
from fastrcnn.settings import SelectiveSearchSettings

Call = Callable[..., tuple[int, str, str]]
NAME = "_annotations.coco.json"


def export(root: Path, split: str, images: int = 3, cats: int = 1, dogs: int = 0, **flags: Any) -> Path:
    """A split as Roboflow and supervision export it: numbers and file names begin anew. The pixels differ."""
    folder = root / split
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(split))
    entries, annotations = [], []
    for n in range(images):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{n}.png")
        entries.append({"id": n, "file_name": f"{n}.png", "width": 64, "height": 48})
        for category in [1] * cats + [2] * dogs:
            box = [4.0 + n, 4.0, 20.0, 16.0]
            annotations.append({"id": len(annotations), "image_id": n, "category_id": category, "bbox": box} | flags)
    categories = [{"id": 0, "name": "pets"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (folder / NAME).write_text(json.dumps({"images": entries, "categories": categories, "annotations": annotations}))
    return root


def config_of(root: Path, **changes: Any) -> DataConfig:
    quick = SelectiveSearchSettings(side=48, k=[50.0])
    return DataConfig(root=str(root), proposal_cache=str(root.parent / "cache"), selective_search=quick, **changes)


def check(call: Call, root: Path, *more: str) -> tuple[int, str, dict[str, Any]]:
    status, out, err = call("check", f"data.root={root}", f"output={root.parent / 'report'}", *more)
    assert "Traceback" not in err
    return status, out, json.loads((root.parent / "report/report.json").read_text())


def test_images_of_one_number_in_two_splits_keep_their_own_proposals(tmp_path: Path) -> None:
    root = export(export(tmp_path / "set", "train"), "test")
    config = config_of(root)
    train, _, test = datasets.run_sets(config, ["cat"], 0)
    assert [s.image_id for s in train.samples] == ["train/0.png", "train/1.png", "train/2.png"]
    assert test is not None
    assert [(s.image_id, s.number) for s in test.samples] == [("test/0.png", 0), ("test/1.png", 1), ("test/2.png", 2)]

    boxes = np.array([[0, 0, 9, 9]], np.float32)
    own = tmp_path / "train.proposals"
    write_store(own, [ImageProposals(s.image_id, 48, 64, boxes) for s in train.samples], "test", {})
    with pytest.raises(
        UserError, match=r"do not fit the images. .* does not contain 3 of 3 images, for example 'test/0"
    ):
        datasets.test_set(config_of(root, proposals=str(own)), ["cat"])


def test_proposals_leave_with_the_numbers_of_the_file(tmp_path: Path, call: Call) -> None:
    root = export(export(tmp_path / "set", "train"), "test", images=2)
    boxes = np.array([[0, 0, 9, 9]], np.float32)
    for split, images in (("train", 3), ("test", 2)):
        ids = [f"{split}/{n}.png" for n in range(images)]
        write_store(tmp_path / f"{split}.proposals", [ImageProposals(i, 48, 64, boxes) for i in ids], "test", {})
        out = tmp_path / f"{split}.json"
        status, said, err = call(
            "propose", f"convert={tmp_path / split}.proposals", f"output={out}", f"data.root={root}"
        )
        assert (status, said.splitlines()[-1]) == (0, f"Wrote {images} boxes of {images} images to {out}"), err
        assert [entry["image_id"] for entry in json.loads(out.read_text())] == list(range(images))
    both = f"convert=[{tmp_path}/train.proposals,{tmp_path}/test.proposals]"
    status, _, err = call("propose", both, f"output={tmp_path}/both.json", f"data.root={root}")
    assert (status, "have the same id in different COCO files" in err) == (1, True)


def test_check_finds_a_leak_by_content_and_not_by_number(tmp_path: Path, call: Call) -> None:
    root = export(export(tmp_path / "set", "train"), "test")
    status, _, report = check(call, root)
    assert (status, [p for p in report["notes"] if p["kind"] == "leak"]) == (0, [])
    page = (tmp_path / "report/report.html").read_text()
    assert "test/0.png, 1 object(s)" in page
    shutil.copy(root / "train/1.png", root / "test/2.png")
    (leak,) = [p for p in check(call, root)[2]["notes"] if p["kind"] == "leak"]
    assert leak["what"] == "'train/1.png' (trainval) is byte-identical to 'test/2.png' (test)."


def test_one_id_of_two_images_is_refused(tmp_path: Path, call: Call) -> None:
    """Folders in VOC's layout that number their images alike."""
    for split in ("a", "b"):
        voc = VocFolder(tmp_path / "set" / split)
        voc.add("0", ("cat", (1, 1, 32, 24), False))
        voc.split("all", "0")
    config = config_of(tmp_path / "set", train=["a/all"], test=["b/all"])
    with pytest.raises(
        UserError, match=r"Two images in different splits have the id '0': .*a/JPEGImages/0.jpg and .*b/JPEG"
    ):
        datasets.run_sets(config, ["cat"], 0)
    status, _, report = check(call, tmp_path / "set", "data.train=[a/all]", "data.test=[b/all]")
    assert (status, [p["kind"] for p in report["errors"]]) == (1, ["duplicate_id"])
    assert "'0' is the id of " in report["errors"][0]["what"]


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_a_set_of_crowds_alone_is_refused_before_proposals_are_made(tmp_path: Path, call: Call, key: str) -> None:
    root = export(export(tmp_path / "set", "train", images=6, **{key: 1}), "test")
    status, out, report = check(call, root)
    assert (status, "NOT READY" in out) == (1, True)
    (error,) = report["errors"]
    assert (error["kind"], "none of the 6 objects in the training images is used for training" in error["what"]) == (
        "no_objects",
        True,
    )
    notes = [p for p in report["notes"] if p["kind"] == "crowd"]
    assert [(p["file"], p["object"]) for p in notes] == [(str(root / "train" / NAME), n) for n in range(1, 7)]
    assert "annotation 1 (cat): `" in out
    with pytest.raises(UserError, match="none of the 6 images has an object to train on"):
        datasets.run_sets(config_of(root), ["cat"], 0)
    assert not (tmp_path / "cache").exists()


def test_some_crowds_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = export(export(tmp_path / "set", "train", cats=2), "test")
    path = root / "train" / NAME
    content = json.loads(path.read_text())
    for entry in content["annotations"][::2]:
        entry["iscrowd"] = "1"
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            found = annotations.samples(config_of(root), ["trainval"], ["cat"], training=True)
    assert [len(s.labels) for s in found] == [1, 1, 1]
    assert caplog.text.count("Annotations with iscrowd or ignore, excluded from training (3): ") == 1
    assert f"{path}, annotation 1 (cat): `iscrowd` is set" in caplog.text


def test_classes_are_those_of_all_splits(tmp_path: Path, call: Call, caplog: pytest.LogCaptureFixture) -> None:
    root = export(export(tmp_path / "set", "train"), "test", dogs=2)
    config = config_of(root)
    assert annotations.classes(config) == ["cat", "dog"]
    train, *_ = datasets.run_sets(config, ["cat", "dog"], 0)
    assert {label for s in train.samples for label in s.labels.tolist()} == {1}
    assert "these classes have no training objects: dog" in caplog.text
    status, _, report = check(call, root)
    (alone,) = [p for p in report["notes"] if p["kind"] == "test_only"]
    assert (status, alone["what"]) == (0, "'dog' has no training object, but 6 in the validation and test splits.")


def test_a_wrong_test_image_shows_before_proposals_are_made(tmp_path: Path) -> None:
    root = export(export(tmp_path / "set", "train"), "test")
    (root / "test/1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"test/1.png: the file is empty"):
        datasets.run_sets(config_of(root), ["cat"], 0)
    assert not (tmp_path / "cache").exists()


def test_paths_of_another_machine_are_one_message(tmp_path: Path, call: Call) -> None:
    root = export(export(tmp_path / "set", "train"), "test")
    for split in ("train", "test"):
        path = root / split / NAME
        path.write_text(path.read_text().replace('"file_name": "', '"file_name": "C:\\\\me\\\\'))
    for verb in ("check", "train"):
        status, _, err = call(verb, f"data.root={root}", *(["recipe=scratch", "data=custom"] * (verb == "train")))
        assert (status, err.count(f"{root}/train/{NAME}: image 1: `file_name` is 'C:\\me\\0.png'")) == (1, 1), err
        assert "The same problem occurs in 3 images. This is the first." in err


def test_files_and_images_that_are_not_used_are_reported(
    tmp_path: Path, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    root = export(export(export(tmp_path / "set", "train"), "test"), "valid", images=2)
    shutil.copy(root / "train/0.png", root / "train/new.PNG")
    datasets.run_sets(config_of(root), ["cat"], 0)
    _, _, report = check(call, root, "data.val=[]")
    notes = {p["kind"]: (p["file"], p["what"]) for p in report["notes"]}
    file, what = notes["unused_file"]
    assert (file, what.startswith("its 2 image(s) are not in any used split")) == (str(root / "valid" / NAME), True)
    assert notes["lone"] == (str(root / "train/new.PNG"), "1 image(s) are not in any annotation file and are not used.")
    for file, what in (notes["unused_file"], notes["lone"]):
        assert f"{file}: {what}" in caplog.text


def test_of_another_file_of_the_same_images_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = export(export(tmp_path / "set", "train"), "test")
    shutil.copy(root / "train" / NAME, root / "train/keypoints.json")
    (root / "train/captions.json").write_text('{"images": [], "annotations": []}')
    read = []
    monkeypatch.setattr(coco_file, "_json", lambda path, real=coco_file._json: read.append(path.name) or real(path))
    config = config_of(root, train=[f"train/{NAME}"], test=[f"test/{NAME}"])
    for _ in range(2):
        datasets.run_sets(config, ["cat"], 0)
    assert (
        f"{root}/train/keypoints.json: the file is not read, because the used files contain all of its images (3)"
        in caplog.text
    )
    assert sorted(read) == [NAME, NAME, "captions.json", "keypoints.json"]


def test_rotated_boxes_to_test_on_are_reported_too(tmp_path: Path, call: Call) -> None:
    root = export(export(tmp_path / "set", "train"), "test", attributes={"rotation": 30.0})
    status, _, report = check(call, root)
    rotated = [p["file"] for p in report["notes"] if p["kind"] == "rotated"]
    assert (status, rotated) == (0, [str(root / "test" / NAME)] * 3)


def change(path: Path, how: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def twice(content: Any) -> None:
    content["images"].append(content["images"][0])


@pytest.mark.parametrize("fault", ["cut", "utf-16", "an id twice", "no list"])
def test_a_broken_file_does_not_let_another_take_its_place(tmp_path: Path, fault: str) -> None:
    """Without the training file the test file would be divided, and trained on."""
    root = export(export(tmp_path / "set", "train"), "test")
    path = root / "train" / NAME
    text = path.read_text()
    if fault == "an id twice":
        change(path, twice)
    elif fault == "no list":
        change(path, lambda content: content.update(images={}))
    else:
        path.write_bytes(text[:-9].encode() if fault == "cut" else text.encode("utf-16"))
    for split in ("trainval", "test"):
        with pytest.raises(UserError, match=rf"train/{NAME}(.|\n)*Fix or move each file named above"):
            annotations.image_ids(config_of(root), [split])
    (tested,) = annotations.image_ids(config_of(root), [f"test/{NAME}"])
    notes = unused_coco(root, [tested[0]])
    assert [(n.kind, n.file) for n in notes] == [("unused_file", str(path))]


def test_a_broken_file_alone_is_why_there_is_no_data_set(tmp_path: Path) -> None:
    root = export(tmp_path / "set", "train")
    (root / "train" / NAME).write_text("{")
    with pytest.raises(UserError, match=rf"train/{NAME}, line 1, column 2: not valid JSON"):
        annotations.image_ids(config_of(root), ["trainval"])


def test_coco_files_too_far_down_are_named(tmp_path: Path) -> None:
    export(tmp_path / "set/export", "train")
    with pytest.raises(UserError, match=r"in a subfolder of this folder\. Set data\.root=.*set/export\."):
        annotations.image_ids(config_of(tmp_path / "set"), ["trainval"])


def test_xml_files_beside_coco_files_are_reported(tmp_path: Path) -> None:
    root = export(export(tmp_path / "set", "train"), "test")
    (root / "Annotations").mkdir()
    (root / "Annotations/7.xml").write_text("<annotation/>")
    (note,) = unused_coco(root, [root / "train" / NAME, root / "test" / NAME])
    assert (note.kind, note.what.startswith("1 XML file(s), such as 7.xml, are not used")) == ("unused_file", True)


def test_rotated_boxes_of_the_test_split_are_notes_of_check_too(tmp_path: Path, call: Call) -> None:
    root = export(export(tmp_path / "set", "train"), "test", attributes={"rotation": 90}, iscrowd=1)
    _, _, report = check(call, root)
    rotated = [(p["file"], p["object"]) for p in report["notes"] if p["kind"] == "rotated"]
    assert rotated == [(str(root / "test" / NAME), n) for n in (1, 2, 3)]
    assert not [p for p in report["notes"] if p["kind"] == "crowd"]


def test_training_images_without_any_object_are_an_error_of_check_too(tmp_path: Path, call: Call) -> None:
    root = export(export(tmp_path / "set", "train"), "test")
    change(root / "train" / NAME, lambda content: content["annotations"].clear())
    lists = [f"data.train=[train/{NAME}]", f"data.test=[test/{NAME}]"]
    status, _, report = check(call, root, *lists)
    assert (status, [(p["kind"], p["what"]) for p in report["errors"]]) == (
        1,
        [("no_objects", "none of the 3 training images has an object.")],
    )
    with pytest.raises(UserError, match="none of the 3 images has an object to train on"):
        datasets.run_sets(config_of(root, train=[f"train/{NAME}"], test=[f"test/{NAME}"]), ["cat"], 0)
    with pytest.raises(UserError, match=rf"which file to use for 'trainval'.*train/{NAME} \(without annotations\)"):
        annotations.image_ids(config_of(root), ["trainval"])


def test_a_box_that_all_annotations_lack_is_one_message(tmp_path: Path, call: Call) -> None:
    """As in exports of masks alone. What follows from it is not reported as well."""
    root = export(export(tmp_path / "set", "train", images=6), "test", images=6)
    for split in ("train", "test"):
        change(root / split / NAME, lambda content: [a.pop("bbox") for a in content["annotations"]])
    status, _, report = check(call, root)
    said = "the box None is not a list of four numbers below 10,000,000. The same problem occurs in 6 annotations in 1 "
    said += "file. This is the first."
    assert (status, [p["what"] for p in report["errors"]]) == (1, [said] * 2)
    assert not {p["kind"] for p in report["notes"]} & {"test_only", "no_truth", "lone"}
    with pytest.raises(UserError) as caught:
        datasets.run_sets(config_of(root), ["cat"], 0)
    assert str(caught.value).count("the box None") == 1


def test_where_images_are_that_nearly_all_are_missing(tmp_path: Path, call: Call) -> None:
    root = export(tmp_path / "set", "train", images=12)
    (root / "photos").mkdir()
    for n in range(12):
        (root / f"train/{n}.png").rename(root / f"photos/{n}.png")
    said = f"no such image. It is named in {root}/train/{NAME}, but was found at {root}/photos/"
    status, _, report = check(call, root)
    (error,) = report["errors"]
    assert (status, error["what"].startswith(said)) == (1, True)
    assert "The same problem occurs in 12 files" in error["what"]
    assert [p["kind"] for p in report["notes"]] == []
    with pytest.raises(UserError) as caught:
        datasets.run_sets(config_of(root), ["cat"], 0)
    assert str(caught.value).count(said) == 1


def test_the_annotations_of_an_image_that_comes_twice_are_counted(tmp_path: Path) -> None:
    root = export(tmp_path / "set", "train")
    change(root / "train" / NAME, lambda content: content["images"].append(content["images"][0] | {"id": 9}))
    change(root / "train" / NAME, lambda content: content["annotations"][0].update(image_id=9))
    (problem,) = read_coco_file(root / "train" / NAME).problems
    assert problem.what.endswith("1 annotation(s) of unusable images are not read.")


def test_sizes_that_all_images_lack_are_one_message_and_whole_floats_are_sizes(tmp_path: Path) -> None:
    root = export(export(tmp_path / "set", "train"), "test")
    change(root / "train" / NAME, lambda content: [entry.update(width=64.0) for entry in content["images"]])
    assert [(i.width, type(i.width)) for i in read_coco_file(root / "train" / NAME).images.values()] == [(64, int)] * 3
    change(root / "test" / NAME, lambda content: [entry.pop("width") for entry in content["images"]])
    (problem,) = read_coco_file(root / "test" / NAME).problems
    assert problem.what == (
        "image 1: `width` must be an integer from 1 to 999,999 (pixels), but is None. The same problem occurs in 3 "
        "images. This is the first. 3 annotation(s) of unusable images are not read."
    )


def test_annotations_without_an_image_are_one_message(tmp_path: Path, call: Call) -> None:
    root = export(export(tmp_path / "set", "train", cats=2), "test")
    change(root / "train" / NAME, lambda content: content["images"].pop())
    status, _, report = check(call, root)
    (error,) = report["errors"]
    what = "the file has no image with the id 2. 2 annotations have no image. This is the first."
    assert (status, error["what"], error["object"]) == (1, what, 5)


def test_folders_and_coco_files_beside_xml_that_are_not_used_are_reported(
    tmp_path: Path, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    voc = VocFolder(tmp_path / "voc")
    for n in range(4):
        voc.add(str(n), ("cat", (1, 1, 32, 24), False))
    root = tmp_path / "set"
    for n, split in enumerate(("train", "test", "valid", "other")):
        (root / split).mkdir(parents=True)
        shutil.copy(voc.root / f"JPEGImages/{n}.jpg", root / split)
        shutil.copy(voc.root / f"Annotations/{n}.xml", root / split)
    datasets.run_sets(config_of(root), ["cat"], 0)
    _, _, report = check(call, root, "data.val=[]")
    unused = [f"{p['file']}: {p['what']}" for p in report["notes"] if p["kind"] == "unused_file"]
    assert unused == [
        f"{root}/valid: its 1 image(s) are not in any used split. To test on them, set data.test=[valid].",
        f"{root}: 1 XML file(s) outside the folders test, train, valid, such as other/3.xml, are not used.",
    ]
    assert unused[0] in caplog.text
    voc.split("trainval", "0", "1")
    voc.split("test", "2")
    export(tmp_path / "other", "x")
    shutil.copy(tmp_path / "other/x" / NAME, voc.root / "coco.json")
    _, _, report = check(call, voc.root)
    (note,) = [p for p in report["notes"] if p["kind"] == "unused_file"]
    assert (note["file"], note["what"].split(",")[0]) == (str(voc.root / "coco.json"), "the file is not read")


@pytest.mark.parametrize(
    ("name", "says"),
    [("do\ud800g", r"contains the character '\ud800'"), ("d" * 300, "is too long"), ("d/g", "a slash")],
)
def test_objects_of_a_class_that_cannot_be_written_are_an_error_or_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, says: str
) -> None:
    root = export(export(tmp_path / "set", "train", dogs=2), "test")
    for split in ("train", "test"):
        change(root / split / NAME, lambda content: content["categories"][2].update(name=name))
    with pytest.raises(UserError) as error:
        annotations.classes(config_of(root))
    assert says in str(error.value)
    config = config_of(root, skip_bad=True)
    assert annotations.classes(config) == ["cat"]
    samples = annotations.samples(config, config.train, ["cat"], training=True)
    assert [s.labels.tolist() for s in samples] == [[1], [1], [1]]
    assert "skipped 1 invalid item(s)" in caplog.text, "one problem for the class"
    assert "5 more object(s) have this class" in caplog.text
    assert says in caplog.text
